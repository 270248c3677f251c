"""Stage figure: one figure of a study, from results files alone, as figures/<name>.pdf and .png.

python stages/figure.py --name figure2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm import report
from nxm.command import run
from nxm.report import style
from nxm.report.evidence import read_evidence


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw one figure of a study into figures.")
    parser.add_argument("--name", required=True, help=", ".join(report.known("figures")))
    arguments = parser.parse_args()

    draw = report.load("figures", arguments.name).draw
    style.render(draw, read_evidence(Path()), Path("figures", arguments.name))


if __name__ == "__main__":
    run(main)
