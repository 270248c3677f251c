"""Stage figure: one figure of a study, from its results files alone, as figures/<study>/<name>.pdf and .png.

python stages/figure.py --params params.yaml --name figure2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm import report
from nxm.cli import run
from nxm.report import style
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw one figure of a study into figures/<study>.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    parser.add_argument("--name", required=True, help=", ".join(report.known("figures")))
    arguments = parser.parse_args()

    draw = report.load("figures", arguments.name).draw
    study = load_study(arguments.params).study
    style.render(draw, report.read_evidence(Path(), study), Path("figures") / study / arguments.name)


if __name__ == "__main__":
    run(main)
