"""Stage select: the values of a run's best trial on a task, as results/chosen/<task>/<run>.json.

python stages/choose.py --task stsb --run nxm
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.command import run
from nxm.errors import UserError
from nxm.study.results import read_failures, read_study, write_chosen
from nxm.study.search import choose
from nxm.study.settings import load_study, say_value


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose a run's values among the trials of the search.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--run", required=True, help="a run of params.yaml that 'search' tries values for")
    arguments = parser.parse_args()

    study = load_study()
    if study.search.by is None:
        raise UserError("params.yaml: search.by is null, so nothing chooses: set it to heldout or dev")
    choice = choose(study, arguments.task, arguments.run, read_study("."), read_failures("."), study.search.by)
    if choice is None:
        raise UserError(
            f"the search has chosen nothing for {arguments.run} on {arguments.task}: a trial is not done, or every "
            "trial diverged (then 'search' needs other values)"
        )
    path = Path("results/chosen", arguments.task, f"{arguments.run}.json")
    write_chosen(path, arguments.task, arguments.run, study.search.by, choice.trial, choice.values)
    words = ", ".join(f"{name} {say_value(value)}" for name, value in choice.values.items())
    print(f"chosen on {study.search.by}: {arguments.run} on {arguments.task}: {words} -> {path}")


if __name__ == "__main__":
    run(main)
