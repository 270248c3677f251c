"""Stage scores: what `dvc metrics` and `dvc plots` show, as paper_tables/<study>/scores.json and courses.csv.

python stages/scores.py --params params.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm import report
from nxm.cli import run
from nxm.files import write_text
from nxm.report.scores import courses, scores
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a study's scores and courses for DVC's own commands.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    arguments = parser.parse_args()

    study = load_study(arguments.params).study
    evidence = report.read_evidence(Path(), study)
    folder = Path("paper_tables") / study
    write_text(folder / "scores.json", scores(evidence))
    write_text(folder / "courses.csv", courses(evidence))


if __name__ == "__main__":
    run(main)
