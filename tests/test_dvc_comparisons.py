"""DVC's own comparisons of a revision of git with the workspace have both sides, where other studies are too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from copied import ROOT, call, copy_repository

SCORES, COURSES = (Path("paper_tables") / name for name in ("scores.json", "courses.csv"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A repository with a commit, and a score of the main study that has changed since."""
    folder = tmp_path_factory.mktemp("compared") / "repository"
    copy_repository(folder)
    for path in (SCORES, COURSES):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ([*git, "add", "-A"], [*git, "commit", "-qm", "before"]):
        subprocess.run(command, cwd=folder, check=True)
    scores = json.loads((folder / SCORES).read_text())
    scores["stsb"]["nxm"] += 1.5
    (folder / SCORES).write_text(json.dumps(scores))
    rows = (folder / COURSES).read_text().splitlines()
    (folder / COURSES).write_text("\n".join([*rows[:-1], rows[-1].rpartition(",")[0] + ",12.34"]) + "\n")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    done = call(folder, sys.executable, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_metrics_diff_has_both_sides(changed):
    found = json.loads(dvc(changed, "metrics", "diff", "HEAD", "--json"))[str(SCORES)]
    old = json.loads((ROOT / SCORES).read_text())["stsb"]["nxm"]
    assert found == {"stsb.nxm": {"old": old, "new": old + 1.5, "diff": pytest.approx(1.5)}}


def test_plots_diff_has_both_sides_by_task_and_run(changed):
    found = json.loads(dvc(changed, "plots", "diff", "HEAD", "--targets", str(COURSES), "--json"))
    rows = [row for plot in found["data"][str(COURSES)] for row in plot["content"]["data"]["values"]]
    assert {row["rev"] for row in rows} == {"HEAD", "workspace"}
    assert {"task", "method", "epoch", "score"} <= rows[0].keys()
    assert [row["score"] for row in rows if row["rev"] == "workspace"][-1] == "12.34"


def test_exp_show_has_the_commits_scores(changed):
    (commit,) = [entry for entry in json.loads(dvc(changed, "exp", "show", "--json")) if entry["rev"] != "workspace"]
    assert commit["error"] is None
    assert commit["data"]["metrics"][str(SCORES)]["data"] == json.loads((ROOT / SCORES).read_text())
