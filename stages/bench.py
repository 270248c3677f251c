"""Stage bench: products, encoders and kernels on one device, as results/bench/<device>.json.

python stages/bench.py --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.command import run
from nxm.measure.bench.run import run_bench
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what 2:4 and block sparsity gain on a device.")
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    device = parser.parse_args().device

    bench = load_study().bench
    run_bench(
        Path("results", "bench", f"{device}.json"),
        device,
        budget=bench.budget,
        parts=bench.parts,
        force=True,
    )


if __name__ == "__main__":
    run(main)
