"""The report's figures and tables by name, and the stages that write them."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from nxm import report
from nxm.errors import UserError
from nxm.report import style
from nxm.report.evidence import read_evidence
from synthetic_study import ROOT, make_study

FIGURES, TABLES = report.known("figures"), report.known("tables")


@pytest.mark.parametrize(("kind", "known"), [("figures", FIGURES), ("tables", TABLES)])
def test_an_unknown_name_lists_the_known_ones(kind: report.Kind, known: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        report.load(kind, "figure9")
    assert all(name in str(caught.value) for name in ("figure9", *known))


def test_the_names_are_those_of_the_paper_and_ours() -> None:
    figures = [f"figure{n}" for n in (1, 2, 3, 4)]
    before = ["ablation", "bits", "deployment", "dynamics", "encoders"]
    after = ["latency", "products", "sensitivity", "structure"]
    assert [*before, *figures, *after, "summary", "tradeoff"] == FIGURES
    extra = ["ablation", "allocation", "bits", "blocks", "comparison", "cost", "deployment", "encoders", "products"]
    extra += ["published", "selection", "structure", "tuning"]
    assert ["table1", "table2", "table3", *(f"table_{name}" for name in extra)] == TABLES


def stage(script: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a stage in a study's folder, as DVC does."""
    command = [sys.executable, str(ROOT / "stages" / script), "--name", name]
    environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(folder), "PATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_stage_writes_its_outputs_where_dvc_expects_them(tmp_path: Path) -> None:
    make_study(tmp_path)
    done = stage("table.py", "table1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "paper_tables").iterdir()} == {"table1.csv", "table1.md", "table1.tex"}
    table = pd.read_csv(StringIO((tmp_path / "paper_tables" / "table1.csv").read_text()))
    assert set(table["column"]) == {"stsb"}
    done = stage("figure.py", "figure4", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"figure4.pdf", "figure4.png"}
    here = style.render(report.load("figures", "figure4").draw, read_evidence(tmp_path), tmp_path / "here")
    for path in here:  # another process, the same bytes
        assert path.read_bytes() == (tmp_path / "figures" / f"figure4{path.suffix}").read_bytes()


def test_a_stage_given_an_unknown_name_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = stage("figure.py", "figure9", tmp_path)
    assert done.returncode == 1
    assert "figure2" in done.stderr
    assert "Traceback" not in done.stderr
