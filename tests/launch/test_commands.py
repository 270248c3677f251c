"""`nxm show` and `nxm plan`, and how every command finds its study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from committed_study import make_repository
from nxm import UserError
from nxm.launch import schedule
from nxm.launch.project import Project
from nxm.report.verdict import FILES
from nxm.study.plan import PLAN, VALUES
from records import ROOT


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository with the committed settings of the embedded study and one that was never run."""
    for path in ("params.yaml", "dvc.yaml", "plan.yaml", "values.json", ".dvc/plots/courses.json", "Makefile"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    (tmp_path / "studies/own").mkdir(parents=True)
    (tmp_path / "studies/own/study.yaml").write_text("seeds: [5]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_entered_in_its_folder(root):
    assert schedule.enter(root, "embedded").study == "embedded"
    assert Path.cwd() == root
    study = schedule.enter(root, "own")
    assert (study.study, Path.cwd()) == ("own", root / "studies/own")


def test_a_new_study_gets_its_plan_so_that_dvc_can_read_it(root):
    schedule.enter(root, "own")
    assert Path(PLAN).exists()
    assert Path(VALUES).exists()
    before = Path(PLAN).stat().st_mtime_ns
    schedule.enter(root, "own")
    assert Path(PLAN).stat().st_mtime_ns == before  # from now on it is the stage `plan` that renews it


@pytest.mark.parametrize("command", [schedule.show, lambda root, name: schedule.plan(root, name, None)])
def test_a_folder_or_name_without_a_study_is_named(root, command):
    with pytest.raises(UserError, match=r"studies/own: no study here .*start in the repository's root"):
        command(root / "studies/own", "embedded")
    with pytest.raises(UserError, match="there is no study 'owm'; known are embedded, own"):
        command(root, "owm")


def test_show_prints_what_is_committed_and_says_that_nothing_was_run(root, capsys):
    (root / "paper_tables").mkdir()
    (root / "paper_tables/table1.md").write_text("| a table |\n")
    (root / "figures").mkdir()
    (root / "figures/figure2.pdf").touch()
    schedule.show(root, "embedded")
    printed = capsys.readouterr().out
    assert "study embedded: committed results; nothing was run (`nxm repro embedded` runs it)" in printed
    assert "| a table |" in printed
    assert "paper_tables/: table1\nfigures/: figure2\n" in printed
    schedule.show(root, "own")
    assert "studies/own/paper_tables/: nothing" in capsys.readouterr().out


def test_plan_says_what_would_run_and_runs_nothing(root, capsys):
    schedule.plan(root, "embedded", 2)
    printed = capsys.readouterr().out
    assert "stages to run: " in printed
    for stage in ("plan", "fetch", "prepare", "baseline", "nxm", "compress", "benchmark", "scores"):
        assert f"1 x {stage}" in printed
    assert "2 x trial" in printed
    assert "no run with these weights has been timed yet" in printed
    assert not (root / "data").exists()


def test_the_embedded_studys_chain_can_be_read_by_name(root):
    project = Project()
    stages = project.stages
    needed = {"fetch", "prepare@stsb", "code", "plan", "baseline@stsb-dense-seed0", "distil@stsb-distil-seed0"}
    student = stages["distil_nxm@stsb-distil_nxm-seed0"]
    assert student.needs <= needed
    assert "distil@stsb-distil-seed0" in student.needs
    assert "baseline@stsb-dense-seed0" in stages["distil@stsb-distil-seed0"].needs
    assert stages["figure@figure1"].is_report
    assert all(stages[name].is_timed for name in stages if name.startswith(("benchmark", "bench", "deployment")))
    project.close()


@pytest.mark.situation("settings", "another name than embedded for the study in the root's params.yaml", "refused")
@pytest.mark.parametrize(("key", "value"), [("study", "mine"), ("root", "/tmp")])
def test_the_roots_study_has_its_name_and_place(root, key, value):
    path = root / "params.yaml"
    text = path.read_text()
    path.write_text(re.sub(rf"^{key}: \S+", f"{key}: {value}", text, flags=re.MULTILINE))
    for name in ("embedded", "own"):
        with pytest.raises(UserError, match=rf"params\.yaml: .*{key} = '{value}'.* here they are 'embedded' and '\.'"):
            schedule.plan(root, name, None)
    assert not (root / "studies/own/params.yaml").exists()


@pytest.mark.situation("commands", "a generated plan that was cut short or has conflict marks", "works")
@pytest.mark.parametrize("name", [PLAN, VALUES])
@pytest.mark.parametrize("text", ["", "{", "<<<<<<< HEAD\n"])
def test_a_damaged_plan_is_made_again(root, name, text):
    path = root / name
    whole = path.read_bytes()
    path.write_text(text)
    schedule.enter(root, "embedded")
    assert path.read_bytes() == whole


@pytest.mark.situation("commands", "a results file that was cut short or has conflict marks", "refused")
@pytest.mark.parametrize("text", ["", '{"study": "embe', "<<<<<<< HEAD\n{}\n"])
def test_a_damaged_results_file_is_an_error_with_the_remedy(root, text, capsys):
    path = root / "results/stsb/nxm/seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError) as error:
        schedule.plan(root, "embedded", None)
    assert str(error.value).startswith(f"{path}: not a JSON file: it was cut short, or has git's conflict marks")
    assert "delete it, and `nxm repro` makes it again" in str(error.value)
    schedule.plan(root, "own", None)  # another study needs it for an estimate alone
    path.unlink()
    schedule.plan(root, "embedded", None)
    assert "stages to run" in capsys.readouterr().out


# --- the verdict at the end of `nxm repro` ---------------------------------------------------------------------------


def test_a_reproduction_ends_with_its_verdict(tmp_path, capsys):
    made = make_repository(tmp_path / "repository")
    made.again("nxm", 0, shift=0.002)
    made.derive()
    schedule.give_verdict(made.root, "embedded")
    printed = capsys.readouterr().out
    assert "within noise" in printed
    assert "verdict: reproduced" in printed
    assert (made.root / FILES["results"]).is_file()


def test_a_reproduction_that_contradicts_the_committed_one_is_an_error(tmp_path):
    made = make_repository(tmp_path / "repository")
    for seed in (0, 1):
        made.again("nxm", seed, shift=4.0)
    made.derive()
    with pytest.raises(UserError, match=r"all stages are done, but verdict: 2 files are not .*: 2 different; "):
        schedule.give_verdict(made.root, "embedded")


def test_an_experiment_with_other_values_is_no_error(tmp_path, capsys):
    made = make_repository(tmp_path / "repository")
    made.again("nxm", 0, shift=4.0)
    (made.root / "src/nxm/training/run.py").write_text("trains = False\n")
    made.derive()
    schedule.give_verdict(made.root, "embedded")
    assert "1 other code" in capsys.readouterr().out


def test_without_git_a_study_ends_without_a_verdict(root, capsys):
    schedule.give_verdict(root, "embedded")
    printed = capsys.readouterr().out
    assert "no verdict: " in printed
    assert "no git repository" in printed
