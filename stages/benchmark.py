"""Stage benchmark: the cost of the methods in training, as results/benchmark.json.

python stages/benchmark.py
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.measure.step import run_benchmark
from nxm.study.settings import load_study


def main() -> None:
    run_benchmark(load_study(), Path())


if __name__ == "__main__":
    run(main)
