"""Stage table: one table of a study, from results files alone, as paper_tables/<name>.md, .csv and .tex.

python stages/table.py --name table1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm import report
from nxm.command import run
from nxm.report.evidence import read_evidence
from nxm.report.table import write_table


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one table of a study into paper_tables.")
    parser.add_argument("--name", required=True, help=", ".join(report.known("tables")))
    arguments = parser.parse_args()

    make = report.load("tables", arguments.name).make
    write_table(make(read_evidence(Path())), Path("paper_tables", arguments.name))


if __name__ == "__main__":
    run(main)
