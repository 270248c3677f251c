"""Durations in words."""

from __future__ import annotations


def say_duration(seconds: float) -> str:
    """Return a duration as `95 s`, `12 min` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
