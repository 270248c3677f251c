"""A study's folder as a DVC project: what is to run, that it runs, and that DVC agrees."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from nxm import UserError
from nxm.launch import schedule
from nxm.launch.project import Project
from nxm.study.settings import load_study
from records import ROOT

STAGES = """
stages:
  fetch: {cmd: cp params.yaml source, params: [kind], outs: [source]}
  train: {cmd: cp source model, deps: [source, code.py], outs: [model, result.json: {cache: false}]}
  figure: {cmd: cp result.json figure.pdf, deps: [result.json], outs: [figure.pdf: {cache: false}]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A project of three stages, none of them run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    (tmp_path / "dvc.yaml").write_text(STAGES.replace("cp source model", "cp source model && cp code.py result.json"))
    (tmp_path / "params.yaml").write_text("kind: 1\n")
    (tmp_path / "code.py").write_text("one")
    return tmp_path


def pending(**options: bool) -> list[str]:
    project = Project()
    try:
        return project.pending(**options)
    finally:
        project.close()


def run(*names: str) -> None:
    project = Project()
    for name in names:
        assert project.start(name)(None, 1), name
        project.finish(name)
    project.record()
    project.close()


def test_stages_know_what_they_need_read_and_make(folder):
    project = Project()
    assert list(project.stages) == ["fetch", "train", "figure"]
    train = project.stages["train"]
    assert train.needs == {"fetch"}
    assert set(train.deps) == {folder / "source", folder / "code.py"}
    assert set(train.outs) == {folder / "model", folder / "result.json"}
    assert train.recorded == (folder / "result.json",)
    assert [name for name, stage in project.stages.items() if stage.is_report] == ["figure"]
    project.close()


def test_what_was_run_is_recorded_and_dvc_agrees(folder):
    assert pending() == ["fetch", "train", "figure"]
    run("fetch", "train")
    assert pending() == ["figure"]
    run("figure")
    assert pending() == []
    assert (folder / "figure.pdf").read_text() == "one"
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout


def test_a_change_makes_its_own_stages_pending_and_those_that_need_them(folder):
    run("fetch", "train", "figure")
    (folder / "code.py").write_text("two")
    assert pending() == ["train", "figure"]
    (folder / "code.py").write_text("one")
    (folder / "params.yaml").write_text("kind: 2\n")
    assert pending() == ["fetch", "train", "figure"]
    (folder / "params.yaml").write_text("kind: 1\nother: 3\n")
    assert pending() == []
    (folder / "dvc.yaml").write_text(
        (folder / "dvc.yaml").read_text().replace("cp result.json figure", "cp code.py figure")
    )
    assert pending() == ["figure"]


def test_missing_data_and_models_are_made_again_unless_they_may_be_missing(folder):
    run("fetch", "train", "figure")
    for name in ("source", "model"):
        (folder / name).unlink()
    assert pending() == ["fetch", "train", "figure"]
    assert pending(allow_missing=True) == []
    (folder / "figure.pdf").unlink()  # a result, figure or table may not
    assert pending(allow_missing=True) == ["figure"]
    (folder / "code.py").write_text("two")
    project = Project()
    todo = project.pending(allow_missing=True)
    assert todo == ["train", "figure"]
    assert project.with_makers(todo) == {"fetch", "train", "figure"}
    assert project.with_makers(["figure"]) == {"figure"}
    project.close()


def test_a_stage_that_fails_or_makes_nothing_is_not_recorded(folder):
    text = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text.replace("cmd: cp params.yaml source", "cmd: exit 3"))
    project = Project()
    assert not project.start("fetch")(None, 1)
    project.close()
    (folder / "dvc.yaml").write_text(text.replace("cmd: cp params.yaml source", "cmd: exit 0"))
    project = Project()
    assert project.start("fetch")(None, 1)
    with pytest.raises(UserError, match=r"stage fetch: .*source.* does not exist"):
        project.finish("fetch")
    project.record()
    project.close()
    assert pending() == ["fetch", "train", "figure"]


def test_a_stage_whose_input_is_missing_is_named(folder):
    project = Project()
    with pytest.raises(UserError, match=r"stage train: .*source"):
        project.start("train")
    project.close()


def test_a_dvc_yaml_that_cannot_be_read_is_an_error_with_dvcs_message(folder):
    (folder / "dvc.yaml").write_text("stages: {fetch: {outs: [a]}}\n")
    with pytest.raises(UserError, match=r"DVC cannot read the study: .*dvc\.yaml"):
        Project()


@pytest.mark.situation("commands", "a downloaded archive, which is no git repository", "works")
def test_a_folder_that_is_no_git_repository_runs(folder):
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    run("fetch", "train", "figure")
    assert pending() == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", marks=pytest.mark.situation("commands", "an empty or cut dvc.lock", "refused")),
        "schema: '2.0'\nstages:\n  fetch:\n",
        "schema: '2.0'\nstages:\n  fetch:\n    cm",
        "schema: [",
    ],
)
def test_a_damaged_dvc_lock_is_an_error_with_the_remedy(folder, text):
    run("fetch")
    path = folder / "dvc.lock"
    whole = path.read_text()
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Project()
    assert f"{path} is damaged, perhaps by an interruption: `git checkout {path}` brings back the" in str(error.value)
    path.write_text(whole)
    assert pending() == ["train", "figure"]
    path.unlink()
    assert pending() == ["fetch", "train", "figure"]


@pytest.mark.situation("commands", "git's conflict marks in dvc.lock", "refused")
def test_a_conflict_in_dvc_lock_is_an_error_that_says_so(folder):
    (folder / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '2.0'\n>>>>>>> other\n")
    with pytest.raises(
        UserError, match="has git's conflict marks: take the entries of both sides, and remove the marks"
    ):
        Project()


# --- nxm repro -------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(folder, monkeypatch) -> Path:
    """The same as a study that `nxm repro` runs."""
    settings = load_study(ROOT / "params.yaml")
    monkeypatch.setattr(schedule, "enter", lambda root, name: settings)
    monkeypatch.setattr(schedule.signal, "signal", lambda number, handler: None)
    return folder


def test_a_study_runs_to_its_end_and_then_has_nothing_to_do(study, capfd):
    schedule.repro(study, "embedded", 2)
    assert (study / "figure.pdf").read_text() == "one"
    assert "3 stages to run: 1 x fetch, 1 x train, 1 x figure" in capfd.readouterr().out
    schedule.repro(study, "embedded", 2)
    assert "nothing to do, everything is up to date" in capfd.readouterr().out
    schedule.plan(study, "embedded", None)
    assert "nothing to do" in capfd.readouterr().out


def test_a_failure_is_named_and_what_is_done_is_safe(study):
    path = study / "dvc.yaml"
    text = path.read_text()
    path.write_text(text.replace("&& cp code.py result.json", "&& exit 3"))
    with pytest.raises(UserError, match=r"a stage failed .*: figure, train\. What is done is safe"):
        schedule.repro(study, "embedded", 1)
    path.write_text(text)
    assert pending() == ["train", "figure"]


def test_what_plan_adds_to_the_stages_runs_in_the_same_command(study):
    """The stage `plan` writes the list of trainings; the rest follows from it."""
    text = "vars: [plan.yaml]\n" + (study / "dvc.yaml").read_text()
    outs = "[plan.yaml: {cache: false, persist: true}]"
    text += f"  plan: {{cmd: cp wanted.yaml plan.yaml, deps: [wanted.yaml], outs: {outs}}}\n"
    text += "  asp: {foreach: '${train}', do: {cmd: 'echo ${item} > ${item}.json', outs: ['${item}.json']}}\n"
    (study / "dvc.yaml").write_text(text)
    (study / "plan.yaml").write_text("train: [a]\n")
    (study / "wanted.yaml").write_text("train: [a, b]\n")
    schedule.repro(study, "embedded", 1)
    assert pending() == []
    assert {path.name for path in study.glob("?.json")} == {"a.json", "b.json"}


@pytest.mark.situation("commands", "`nxm plan` while `nxm repro` runs", "works")
def test_a_second_run_disturbs_no_first_and_its_plan_can_be_seen(study, capfd):
    path = study / "dvc.yaml"
    slow = "cmd: touch begun && sleep 3 && cp params.yaml source"
    path.write_text(path.read_text().replace("cmd: cp params.yaml source", slow))
    failed: list[BaseException] = []

    def first() -> None:
        try:
            schedule.repro(study, "embedded", 1)
        except BaseException as error:
            failed.append(error)

    running = threading.Thread(target=first)
    running.start()
    while not (study / "begun").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match=rf"study embedded: process {os.getpid()} on .* runs it already"):
        schedule.repro(study, "embedded", 1)
    capfd.readouterr()
    schedule.plan(study, "embedded", 1)
    printed = capfd.readouterr().out
    assert f"process {os.getpid()} on " in printed
    assert "3 stages to run" in printed
    running.join()
    assert not failed
    assert pending() == []


@pytest.mark.situation("commands", "`nxm repro` while a DVC command runs in the same study", "refused")
def test_a_dvc_command_at_work_is_told_before_a_stage_starts(study):
    with Repo().lock, pytest.raises(UserError, match="a DVC command is at work here; wait for its end"):
        schedule.repro(study, "embedded", 1)
    assert not (study / "source").exists()
    schedule.repro(study, "embedded", 1)
