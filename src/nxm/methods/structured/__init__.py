"""Structured pruning: heads, FFN rows and blocks, by learned thresholds (MLPruning) or by their importance."""
