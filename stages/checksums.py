"""Stage code: checksums of the code that trainings share, one file per group in code/.

python stages/checksums.py
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.study.code import write_code
from nxm.study.settings import load_study


def main() -> None:
    write_code(Path(load_study().root), Path())


if __name__ == "__main__":
    run(main)
