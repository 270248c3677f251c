"""Stage report: all that a study's results show on one page, report.html, which opens from disk.

python stages/report.py
"""

from __future__ import annotations

from pathlib import Path

from nxm.command import run
from nxm.report.html.document import write


def main() -> None:
    write(Path())


if __name__ == "__main__":
    run(main)
