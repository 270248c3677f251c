"""Stage prepare: one task's tokenised datasets, under data/prepared/<task>.

python stages/prepare.py --task stsb
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.command import run
from nxm.data.prepare import prepare
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenise a task's data into data/prepared/<task>.")
    parser.add_argument("--task", required=True, help="a GLUE task of the study")
    arguments = parser.parse_args()

    prepare(arguments.task, Path("data/source"), load_study().prepare, Path("data/prepared", arguments.task))


if __name__ == "__main__":
    run(main)
