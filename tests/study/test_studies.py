"""A study states what differs from the root's params.yaml; its folder is a DVC project of its own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from nxm import UserError
from nxm.config import read_yaml
from nxm.report.labels import PLUS
from nxm.study.plan import composed, trainings, trials
from nxm.study.settings import load_study, parse_study
from nxm.study.studies import MAIN, merge, studies, study_folder, study_values, write_study
from records import ROOT

STAGES = {
    name: stage.get("do", stage)
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items()
}


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with the embedded study's files and no further study."""
    for path in ("params.yaml", "dvc.yaml", ".dvc/plots/courses.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def add_study(root: Path, name: str, text: str) -> None:
    (root / "studies" / name).mkdir(parents=True)
    (root / "studies" / name / "study.yaml").write_text(text, encoding="utf-8")


def test_merging_goes_into_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [9]}, "d": {"e": 1}}) == {"a": {"b": 1, "c": [9]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_a_study_is_the_roots_with_what_differs(root):
    text = """
seeds: [5]
runs:
  distil_nxm_kd: null
  nxm: {epochs: 7}
  mine: {method: sr_ste, set: "1:4", decay: 2e-4, epochs: 3, learning_rate: 1e-4, batch_size: 16}
variants: {"nxm/x": {values: {rho: 0.5}}}
"""
    add_study(root, "own", text)
    study = write_study(root, "own")
    before = load_study(root / "params.yaml")
    assert (study.study, study.root, study.seeds, study.tasks) == ("own", "../..", [5], before.tasks)
    assert set(study.runs) == set(before.runs) - {"distil_nxm_kd"} | {"mine"}
    assert study.run("nxm", "stsb") == before.run("nxm", "stsb").model_copy(update={"epochs": 7})
    assert study.run("mine", "stsb").decay == 2e-4
    assert study.deployment.models == before.deployment.models  # it measures none of the run that was left out
    assert set(study.variants) == {"nxm/x"}  # the root's own variants and search are not taken over
    assert before.variants


def test_a_run_left_out_is_not_measured_as_deployed_unless_the_study_names_the_models(root):
    add_study(root, "less", "runs: {distil_nxm: null, distil_nxm_kd: null}\n")
    assert write_study(root, "less").deployment.models == ["dense", "asp", "nxm", "distil"]
    add_study(root, "own", "runs: {distil_nxm: null, distil_nxm_kd: null}\ndeployment: {models: [dense, nxm]}\n")
    assert write_study(root, "own").deployment.models == ["dense", "nxm"]


@pytest.mark.parametrize("name", studies(ROOT))
def test_every_study_is_written_as_a_dvc_project(name, root):
    if name != MAIN:
        add_study(root, name, (ROOT / "studies" / name / "study.yaml").read_text(encoding="utf-8"))
    study = write_study(root, name)
    folder = study_folder(root, name)
    assert load_study(folder / "params.yaml") == study
    assert study.study == name
    assert (folder / study.root).resolve() == root.resolve()
    assert read_yaml(folder / "dvc.yaml") == read_yaml(ROOT / "dvc.yaml")
    assert not (folder / "dvc.yaml").is_symlink()  # which DVC does not follow in a revision of git
    if name != MAIN:
        cache = re.search(r"dir = (\S+)", (folder / ".dvc/config").read_text(encoding="utf-8"))[1]
        assert (folder / ".dvc" / cache).resolve() == (root / ".dvc/cache").resolve()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_study(root, name)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before  # nothing changed, nothing written


def test_strings_that_older_parsers_read_as_numbers_are_quoted(root):
    add_study(root, "own", "runs: {nxm: {epochs: 7}}\n")
    write_study(root, "own")
    text = (root / "studies/own/params.yaml").read_text(encoding="utf-8")
    assert 'set: "2:4"' in text
    assert 'set: "50 %"' in text


@pytest.mark.parametrize("name", ["tune", "seeds", "glue", "glue-base", "glue-full", "plus-base", "ablation"])
def test_every_run_searched_has_as_many_trials_and_epochs(name):
    study = parse_study(study_values(ROOT, name), name)
    effort: dict[str, dict[str, tuple[set, set]]] = {}
    for training in trials(study):
        own = effort.setdefault(training.task, {}).setdefault(training.run, (set(), set()))
        own[0].add(training.trial)
        own[1].add(composed(study, training).epochs)
    assert effort
    for runs in effort.values():
        tried = {run: len(names) for run, (names, _) in runs.items()}
        plus = {count for run, count in tried.items() if run in PLUS}
        plain = {count for run, count in tried.items() if run not in PLUS}
        assert len(plus) <= 1  # NxM+ and its rivals with the same extras have as many as each other,
        assert len(plain) <= 1  # the others too,
        assert not plain or max(plus, default=0) <= max(plain)  # and NxM+ never more than they
        rivals = {run: epochs for run, (_, epochs) in runs.items() if run != "dense"}
        assert len({tuple(epochs) for epochs in rivals.values()}) == 1


def test_an_unknown_study_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=rf"no study 'sedes'; known are {MAIN}, .*seeds"):
        study_values(ROOT, "sedes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: {nxm: {roh: 1}}\n", r"mine/study\.yaml: run 'nxm' on stsb: unknown key 'roh'; did you mean 'rho'"),
        ("sead: [1]\n", r"mine/study\.yaml: unknown key 'sead'; did you mean 'seeds'"),
        ("runs: {dense: null}\n", r"mine/study\.yaml: run 'distil': teacher = 'dense' is no other run of the study"),
        ("- 1\n", r"mine/study\.yaml: expected a mapping"),
        ("runs:\n", r"mine/study\.yaml: runs = None: Input should be a valid dictionary"),
        ("study: other\n", r"mine/study\.yaml: study = 'other': in this folder it is 'mine'; leave it out"),
        ("root: /tmp\n", r"mine/study\.yaml: root = '/tmp': in this folder it is '\.\./\.\.'; leave it out"),
    ],
)
def test_a_mistake_in_a_study_is_named_with_its_file(root, text, message):
    add_study(root, "mine", text)
    with pytest.raises(UserError, match=message):
        write_study(root, "mine")
    assert [path.name for path in (root / "studies/mine").iterdir()] == ["study.yaml"]


def test_a_mistake_in_params_yaml_is_named_with_it_and_not_with_a_study(root):
    add_study(root, "mine", "seeds: [1]\n")
    path = root / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("    rho: 0.25", "    rhoo: 0.25", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"params\.yaml: run 'admm_unstructured' on stsb: 'rho' is missing; ") as error:
        write_study(root, "mine")
    assert "run 'nxm' on stsb: unknown key 'rhoo'; did you mean 'rho'?" in str(error.value)
    assert "study.yaml" not in str(error.value)


@pytest.mark.parametrize("stage", ["figure", "table", "scores", "report", "compare"])
def test_a_report_declares_all_that_says_which_runs_are_the_studys(stage):
    """The trainings of a study follow from the parameters that the stage declares (results files have the values)."""
    declared = set(STAGES[stage]["params"])
    for name in ("glue", "ablation", "paper"):
        values = study_values(ROOT, name)
        study = parse_study(values, name)
        other = study_values(ROOT, MAIN) | {key: value for key, value in values.items() if key in declared}
        if stage == "compare":  # one task, without the trials of the search
            other |= {"tasks": values["tasks"], "search": {}}
        other["prepare"] = values["prepare"]  # decides nothing: it must fit the tasks and the search
        other["student"] = values["student"]
        same = parse_study(other, name)
        wanted = [training for training in trainings(study) if not (stage == "compare" and training.trial)]
        assert [training.path for training in trainings(same)] == [training.path for training in wanted]
        assert [training.compared for training in trainings(same)] == [training.compared for training in wanted]


def test_every_training_is_launched_by_accelerate_with_hardware_apart():
    commands = {name: stage["cmd"] for name, stage in STAGES.items() if "stages/train.py" in stage["cmd"]}
    assert len(commands) == 9
    for command in commands.values():
        assert command == (
            "accelerate launch --config_file \\${ACCELERATE_CONFIG:-${root}/hardware/auto.yaml} "
            "${root}/stages/train.py ${item.stage}@${key}"
        )


@pytest.mark.situation("commands", "`nxm plan` killed while it writes a study's files", "works")
@pytest.mark.parametrize("files", range(4))
def test_a_kill_in_the_middle_leaves_whole_files(root, files, monkeypatch):
    """Each file is the whole new one or the whole old one; the same command then writes the rest."""
    add_study(root, "own", "seeds: [5]\n")
    write_study(root, "own")
    folder = root / "studies/own"
    paths = ("params.yaml", "dvc.yaml", ".dvc/config", ".dvcignore")
    new = {path: (folder / path).read_text() for path in paths}
    for path in paths:
        (folder / path).write_text("former\n")
    written = []

    def write_and_die(path: Path, target: Path) -> None:
        if len(written) == files:
            raise KeyboardInterrupt
        written.append(target)
        rename(path, target)

    rename = os.replace
    monkeypatch.setattr("nxm.files.os.replace", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        write_study(root, "own")
    monkeypatch.undo()
    texts = {path: (folder / path).read_text() for path in paths}
    assert sorted(texts.values()) == sorted([*[new[path] for path in paths][:files], *["former\n"] * (4 - files)])
    assert not list(folder.rglob("*.partial"))
    write_study(root, "own")
    assert {path: (folder / path).read_text() for path in paths} == new
