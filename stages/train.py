r"""Train one cell of the study.

    accelerate launch --config_file hardware/auto.yaml stages/train.py \
        --params params.yaml --method nxm --task stsb --seed 0

A cell of the sweep over rho also says `--cell NAME` and what it changes: `--rho`, `--recipe`.
"""

from __future__ import annotations

import argparse
import os

from nxm import cli
from nxm.launch.estimate import say_progress
from nxm.study.results import read_study
from nxm.study.settings import load_study
from nxm.training.run import Cell, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cell")
    parser.add_argument("--rho", type=float)
    parser.add_argument("--recipe")
    args = parser.parse_args()
    given = {"rho": args.rho, "recipe": args.recipe}
    changes = tuple((name, value) for name, value in given.items() if value is not None)
    cell = Cell(args.task, args.method, args.seed, args.cell, changes)
    study = load_study(args.params)
    progress = say_progress(study, read_study("results", study.study))
    if progress and os.environ.get("RANK", "0") == "0":
        print(progress, flush=True)
    run(study, cell, keep_model=args.cell is None, keep_predictions=args.cell is None)


if __name__ == "__main__":
    cli.run(main)
