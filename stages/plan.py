"""Stage plan: the list of the study's trainings, as plan.yaml and values.json.

python stages/plan.py   (in the study's folder, as every stage)
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.study.plan import PLAN, write_plan
from nxm.study.settings import load_study


def main() -> None:
    before = Path(PLAN).read_text(encoding="utf-8") if Path(PLAN).exists() else ""
    write_plan(load_study(), Path())
    if Path(PLAN).read_text(encoding="utf-8") != before:
        print(f"{PLAN} has changed: `nxm repro` goes on by itself; after plain `dvc repro`, call it once more")


if __name__ == "__main__":
    run(main)
