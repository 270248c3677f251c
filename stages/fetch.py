"""Stage fetch: the study's weights, student and data, as canonical files under data/<study>/source.

python stages/fetch.py --params params.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nxm.cli import run
from nxm.data.fetch import fetch
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Bring a study's weights and data into data/<study>/source.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study's settings")
    arguments = parser.parse_args()

    study = load_study(arguments.params)
    fetch(study, Path("data") / study.study / "source")


if __name__ == "__main__":
    run(main)
