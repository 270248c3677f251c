"""Stage fetch: the study's weights, student and data, as canonical files under data/source.

python stages/fetch.py
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.data.fetch import fetch
from nxm.study.settings import load_study


def main() -> None:
    study = load_study()
    fetch(study, Path("data/source"), root=Path(study.root))


if __name__ == "__main__":
    run(main)
