"""The committed tables and figures are what the code makes of the committed results, to the byte.

A figure's bytes also depend on the version of matplotlib, so they are compared only on demand (marker `long`).
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from nxm import report
from nxm.report import scores, style
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.table import write_table
from nxm.study.studies import studies, study_folder
from synthetic_study import ROOT

FOLDERS = [study_folder(ROOT, name) for name in studies(ROOT)]


@functools.cache
def evidence_of(folder: Path) -> Evidence:
    return read_evidence(folder)


def committed(folder: str, ending: str) -> list[pytest.param]:
    """Return every study and name that has a file in a folder of the study's."""
    files = [(own, path) for own in FOLDERS for path in sorted((own / folder).glob(f"*.{ending}"))]
    return [pytest.param(own, path.stem, id=f"{name_of(own)}-{path.stem}") for own, path in files]


def name_of(folder: Path) -> str:
    return "embedded" if folder == ROOT else folder.name


@pytest.mark.parametrize(("folder", "name"), committed("paper_tables", "md"))
def test_a_committed_table_is_what_the_code_makes(folder: Path, name: str, tmp_path: Path) -> None:
    made = write_table(report.load("tables", name).make(evidence_of(folder)), tmp_path / name)
    assert {path.name: path.read_text() for path in made} == {
        path.name: (folder / "paper_tables" / path.name).read_text() for path in made
    }


@pytest.mark.parametrize(("folder", "name"), committed("paper_tables", "json"))
def test_committed_scores_and_courses_are_what_the_code_makes(folder: Path, name: str) -> None:
    assert name == "scores"
    assert (folder / "paper_tables" / "scores.json").read_text() == scores.scores(evidence_of(folder))
    assert (folder / "paper_tables" / "courses.csv").read_text() == scores.courses(evidence_of(folder))


@pytest.mark.long
@pytest.mark.parametrize(("folder", "name"), committed("figures", "pdf"))
def test_a_committed_figure_is_what_the_code_draws(folder: Path, name: str, tmp_path: Path) -> None:
    for path in style.render(report.load("figures", name).draw, evidence_of(folder), tmp_path / name):
        assert path.read_bytes() == (folder / "figures" / path.name).read_bytes(), path.name


def test_every_table_and_figure_of_a_study_with_results_is_committed() -> None:
    for folder in FOLDERS:
        evidence = evidence_of(folder)
        if evidence.results:
            tables = {path.stem for path in (folder / "paper_tables").glob("*.md")}
            figures = {path.stem for path in (folder / "figures").glob("*.pdf")}
            assert (tables, figures) == (set(evidence.settings.tables), set(evidence.settings.figures)), folder
