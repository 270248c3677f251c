"""docs/extending.md is right: its set passes the common suite and its figure is drawn, with nothing else edited."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from copied import ROOT

BLOCKS = re.findall(r"```python\n# (src/nxm/\S+)\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> dict[str, str]:
    """The environment of a copy of the library with the modules of docs/extending.md in it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for place, code in BLOCKS:
        assert not (folder / place).exists()
        (folder / place).write_text(code)
    return os.environ | {"PYTHONPATH": str(folder / "src")}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_document_has_a_set_and_a_figure():
    assert [Path(place).parent.name for place, _ in BLOCKS] == ["sets", "figures"]


def test_its_set_passes_the_common_suite_and_is_read_from_its_text(extended):
    done = run(extended, "-m", "pytest", "tests/sets/test_every_set.py", "-k", "rows", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\b\d+ passed", done.stdout), done.stdout[-500:]
    code = "from nxm.sets import parse_set; print(parse_set('rows 25 %'))"
    assert run(extended, "-c", code).stdout.strip() == "rows 25 %"


def test_its_figure_is_drawn_from_the_committed_results(extended, tmp_path):
    code = (
        "import sys; from pathlib import Path; from nxm import report; from nxm.report import style\n"
        "from nxm.report.evidence import read_evidence\n"
        "style.render(report.load('figures', 'scores').draw, read_evidence(Path()), Path(sys.argv[1]))"
    )
    done = run(extended, "-c", code, str(tmp_path / "scores"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "scores.png").stat().st_size > 10_000
