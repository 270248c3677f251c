"""`nxm verify --evidence`: the committed numbers are those of the stored predictions, or are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from committed_study import OWN, SHARED
from nxm.cli import app
from nxm.files import write_text
from nxm.report.verdict import FILES, Verdict, conclusion, verify_evidence
from nxm.report.verdict.provenance import Finding, Status
from nxm.study.results import (
    bootstrap_path,
    floor_path,
    predictions_path,
    read_predictions,
    read_result,
    write_floor,
    write_predictions,
)
from synthetic_study import ROOT

NXM = "results/stsb/nxm/seed0.json"


def check(root: Path) -> Verdict:
    return verify_evidence(root, download=False)


def bad(verdict: Verdict) -> list[Finding]:
    return [finding for finding in verdict.findings if not finding.status.good]


@pytest.mark.situation("verify --evidence", "the committed evidence of this repository, on a fresh clone", "works")
def test_the_committed_evidence_is_what_the_predictions_and_the_code_give():
    verdict = check(ROOT)
    assert bad(verdict) == []
    assert [claim for claim in verdict.claims if not claim.holds] == []
    assert verdict.stopped == ""
    checked = sum(finding.status is Status.CHECKED for finding in verdict.findings)
    assert checked > 300  # no loop is empty, even where the labels of only one task are in the repository


def test_every_number_of_a_study_is_computed_again(repository):
    verdict = check(repository.root)
    assert verdict.good
    assert {finding.status for finding in verdict.findings} == {Status.CHECKED}
    places = {finding.place for finding in verdict.findings}
    assert {NXM, "results/bootstrap/stsb.npz", "results/bootstrap/stsb.json", "README.md"} <= places
    assert {"paper_tables/table1.md", "paper_tables/scores.json", "paper_tables/courses.csv", "report.html"} <= places


@pytest.mark.situation("verify --evidence", "neither git nor a write permission", "works")
def test_it_needs_no_git_and_changes_nothing(repository, monkeypatch):
    shutil.rmtree(repository.root / ".git")
    (repository.root / ".cache").write_text("in the way")
    monkeypatch.chdir(repository.root)
    before = {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")}
    done = CliRunner().invoke(app, ["verify", "--evidence"])
    assert done.exit_code == 0
    assert "the verdict is not saved" in done.output
    assert before == {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")}


@pytest.mark.situation(
    "verify --evidence",
    "no labels of a task on this machine: its scores count as recorded, and are counted as not checked",
    "works",
)
def test_without_labels_scores_are_not_checked_and_said_to_be_so(repository):
    shutil.rmtree(repository.root / "data")
    verdict = check(repository.root)
    unchecked = [one.place for one in verdict.findings if one.status is Status.UNCHECKED]
    assert sum(place.startswith("results/stsb") for place in unchecked) == 6
    assert verdict.good
    assert "8 could not be checked here" in conclusion(verdict)


@pytest.mark.situation("verify --evidence", "a damaged, edited or missing file", "refused")
@pytest.mark.parametrize(
    ("place", "harm", "status"),
    [
        (NXM, "cut", Status.DAMAGED),
        (NXM, "remove", Status.MISSING),
        ("results/stsb/nxm/seed0.npz", "cut", Status.DAMAGED),
        ("results/stsb/nxm/seed0.npz", "remove", Status.MISSING),
        ("results/bootstrap/stsb.npz", "cut", Status.EDITED),
        ("results/bootstrap/stsb.npz", "remove", Status.MISSING),
        ("results/bootstrap/stsb.json", "cut", Status.EDITED),
        ("paper_tables/table1.md", "cut", Status.EDITED),
        ("paper_tables/table1.csv", "remove", Status.MISSING),
        ("paper_tables/scores.json", "cut", Status.EDITED),
        ("report.html", "cut", Status.EDITED),
        ("report.html", "remove", Status.MISSING),
        ("README.md", "cut", Status.EDITED),
        ("README.md", "remove", Status.MISSING),
        ("dvc.lock", "cut", Status.DAMAGED),
    ],
)
def test_what_is_not_as_it_was_committed_is_named(repository, place, harm, status):
    path = repository.root / place
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    verdict = check(repository.root)
    found = {finding.place: finding.status for finding in bad(verdict)}
    assert found[place.replace("seed0.npz", "seed0.json")] is status  # predictions count with their result
    assert not verdict.good


def test_a_number_or_a_drawing_that_was_edited_in_the_report_is_found(repository):
    path = repository.root / "report.html"
    whole = path.read_text()
    score = f"<td>{read_result(repository.path('nxm')).metric.value:.1f}</td>"
    for before, after in ((score, "<td>99.9</td>"), ("<!--drawn-->", "<!--drawn--><!-- -->")):
        assert before in whole
        path.write_text(whole.replace(before, after, 1))
        assert {finding.place: finding.status for finding in bad(check(repository.root))} == {
            "report.html": Status.EDITED
        }


@pytest.mark.situation(
    "verify --evidence", "predictions, draws or constants that were exchanged, and dvc.lock with them", "refused"
)
def test_what_agrees_with_the_lock_and_not_with_the_predictions_is_named(repository):
    path = predictions_path(repository.path("nxm"))
    shutil.copy(predictions_path(repository.path("asp")), path)
    draws = bootstrap_path(repository.root, "stsb")
    stored = read_predictions(draws)
    write_predictions(draws, stored | {"dense": stored["dense"] + np.float32(0.01)})
    write_floor(floor_path(repository.root, "stsb"), {"stsb": 3.0})
    repository.lock()
    found = {finding.place: finding for finding in bad(check(repository.root))}
    assert set(found) >= {NXM, "results/bootstrap/stsb.npz", "results/bootstrap/stsb.json"}
    assert "of the predictions" in found[NXM].words
    assert "dense by 0.0100 points" in found["results/bootstrap/stsb.npz"].words
    assert "nxm by" in found["results/bootstrap/stsb.npz"].words
    assert "the best constant answer scores" in found["results/bootstrap/stsb.json"].words


@pytest.mark.situation(
    "verify --evidence",
    "a result of another study, training, of other values, or of other code than is here",
    "refused",
)
def test_results_of_another_origin_are_named(repository):
    repository.edit("dense", study="glue")
    shutil.copy(repository.path("asp", 1), repository.path("asp", 0))
    values = json.loads(repository.path("nxm").read_text())["hyperparameters"]
    repository.edit("nxm", hyperparameters=values | {"epochs": 3})
    repository.lock()
    found = {finding.place: finding.status for finding in bad(check(repository.root))}
    assert found["results/stsb/dense/seed0.json"] is Status.FOREIGN
    assert found["results/stsb/asp/seed0.json"] is Status.FOREIGN
    assert found[NXM] is Status.VALUES


@pytest.mark.parametrize("code", [OWN, SHARED])
def test_results_of_other_code_are_named(repository, code):
    write_text(repository.root / code, "trains = False\n")
    found = bad(check(repository.root))
    assert {finding.status for finding in found} == {Status.CODE}
    assert len(found) == 6
    assert code in found[0].words


def test_a_page_that_asks_for_what_was_not_measured_is_named(repository):
    (repository.root / "docs/README.md.j2").write_text('{{ score("gmp_plus") }}\n')
    found = {finding.place: finding for finding in bad(check(repository.root))}
    assert found["README.md"].status is Status.DAMAGED
    assert "no run of gmp_plus" in found["README.md"].words


def test_the_exit_status_is_the_verdict(repository, monkeypatch):
    monkeypatch.chdir(repository.root)
    assert CliRunner().invoke(app, ["verify", "--evidence", "embedded"]).exit_code == 0
    (repository.root / "README.md").write_text("NxM is 20 points above ASP.\n")
    done = CliRunner().invoke(app, ["verify", "--evidence"])
    assert done.exit_code == 1
    assert "README.md" in done.stdout
    assert json.loads((repository.root / FILES["evidence"]).read_text())["good"] is False
