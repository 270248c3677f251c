"""Stage deployment: models in the forms that they are deployed in, as results/deployment/<device>.json.

python stages/deployment.py --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.command import run
from nxm.measure.forms import run_deployment
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, weigh and score models in the forms they are deployed in.")
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    arguments = parser.parse_args()

    run_deployment(load_study(), arguments.device, Path())


if __name__ == "__main__":
    run(main)
