"""Stage scores: the data of `dvc metrics` and `dvc plots`, as paper_tables/scores.json and courses.csv.

python stages/scores.py
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.files import write_text
from nxm.report.evidence import read_evidence
from nxm.report.scores import courses, scores


def main() -> None:
    evidence = read_evidence(Path())
    write_text("paper_tables/scores.json", scores(evidence))
    write_text("paper_tables/courses.csv", courses(evidence))


if __name__ == "__main__":
    run(main)
