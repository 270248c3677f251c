"""Stage benchmark: what the methods cost in training, as results/<study>/benchmark.json.

python stages/benchmark.py --params params.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.cli import run
from nxm.measure.step import run_benchmark
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps and projections.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    arguments = parser.parse_args()

    run_benchmark(load_study(arguments.params), Path())


if __name__ == "__main__":
    run(main)
