r"""Train one cell of a study's grid.

    accelerate launch --config_file hardware/auto.yaml stages/grid.py \
        --params studies/tune/params.yaml --cell stsb-nxm-lr9e-05-seed100
"""

from __future__ import annotations

import argparse
import os

from nxm import cli
from nxm.errors import UserError
from nxm.launch.estimate import say_progress
from nxm.study.results import read_study
from nxm.study.settings import load_study
from nxm.training.run import Cell, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", required=True)
    parser.add_argument("--cell", required=True)
    args = parser.parse_args()
    study = load_study(args.params)
    cells = study.cells | study.plus_cells
    if args.cell not in cells:
        raise UserError(f"{args.params}: there is no cell '{args.cell}'; known are {', '.join(cells) or 'none'}")
    cell = cells[args.cell]
    progress = say_progress(study, read_study("results", study.study))
    if progress and os.environ.get("RANK", "0") == "0":
        print(progress, flush=True)
    values = tuple(cell.values.items())
    own = Cell(cell.task, cell.method, cell.seed, cell.cell, values, cell.dense_seed)
    run(study, own, keep_model=False, keep_predictions=args.cell in study.plus_cells)


if __name__ == "__main__":
    cli.run(main)
