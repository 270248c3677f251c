"""Compress a model on a table of your own, and look at what it cost.

    python examples/own_csv.py distilbert-base-uncased reviews.csv compressed

The same as `nxm compress distilbert-base-uncased --train reviews.csv --to "2:4 int8" --out compressed --max-drop 1.0`.
"""

from __future__ import annotations

import sys

import nxm


def main(model: str, table: str, out: str) -> None:
    """Compress `model` on the rows of `table`; the report and the compressed model are in `out`."""
    outcome = nxm.compress_model(model, table, to="2:4 int8", out=out, max_drop=1.0)
    scores = outcome.report["scores"]
    print(
        f"{outcome.report['metric']}: {scores['before']['value']:.2f} dense, {scores['after']['value']:.2f} compressed"
    )
    compressed = nxm.load(outcome.model)
    print(f"{type(compressed).__name__} in {outcome.model}; {'passed' if outcome.passed else 'lost too much'}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
