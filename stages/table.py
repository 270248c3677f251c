"""Stage table: one table of a study, from its results files alone, as paper_tables/<study>/<name>.md, .csv and .tex.

python stages/table.py --params params.yaml --name table1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm import report
from nxm.cli import run
from nxm.report.table import write_table
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one table of a study into paper_tables/<study>.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    parser.add_argument("--name", required=True, help=", ".join(report.known("tables")))
    arguments = parser.parse_args()

    make = report.load("tables", arguments.name).make
    study = load_study(arguments.params).study
    write_table(make(report.read_evidence(Path(), study)), Path("paper_tables") / study / arguments.name)


if __name__ == "__main__":
    run(main)
