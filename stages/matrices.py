"""Stage matrices: products of single matrices, dense and 2:4, as results/matrices/<device>.json.

python stages/matrices.py --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.command import run
from nxm.measure.products import run_matrices
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Time products of single matrices and name the kernels that ran.")
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    arguments = parser.parse_args()

    run_matrices(load_study(), arguments.device, Path())


if __name__ == "__main__":
    run(main)
