"""Stage prepare: one task's tokenised datasets, under data/<study>/prepared/<task>.

python stages/prepare.py --params params.yaml --task stsb
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.cli import run
from nxm.data.prepare import prepare
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenise a task's data into data/<study>/prepared/<task>.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    parser.add_argument("--task", required=True, help="a GLUE task of the study")
    arguments = parser.parse_args()

    study = load_study(arguments.params)
    data = Path("data") / study.study
    prepare(arguments.task, data / "source", study.prepare, data / "prepared" / arguments.task)


if __name__ == "__main__":
    run(main)
