r"""Train one run, variant or trial of the study in the working directory.

    accelerate launch --config_file hardware/auto.yaml stages/train.py nxm@stsb-nxm-seed0

The name is that of the stage, as in `dvc stage list`; its values come from params.yaml.
"""

from __future__ import annotations

import argparse
import os

from nxm import command
from nxm.errors import UserError
from nxm.launch.estimate import planned, say_progress
from nxm.study.results import read_study
from nxm.study.settings import load_study
from nxm.training.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", help="such as nxm@stsb-nxm-seed0")
    name = parser.parse_args().stage
    study = load_study()
    if name not in planned(study):
        raise UserError(
            f"params.yaml: the study has no training '{name}'; it has {', '.join(planned(study)) or 'none'}"
        )
    progress = say_progress(study, read_study("."))
    if progress and os.environ.get("RANK", "0") == "0":
        print(progress, flush=True)
    run(study, planned(study)[name])


if __name__ == "__main__":
    command.run(main)
