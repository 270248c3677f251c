"""Profiles state differences; each study's generated folder is what they make of params.yaml."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from nxm import UserError
from nxm.config import read_yaml
from nxm.launch.estimate import (
    JOBS,
    PLAN,
    STARTED,
    estimate_seconds,
    say_duration,
    say_progress,
    stage_units,
    timed_runs,
)
from nxm.launch.schedule import Stage, read_stages, that_need, waiting_stages
from nxm.methods.admm.defaults import BEST
from nxm.study.profiles import MAIN, merge, planned_training, profiles, study_values, write_study
from nxm.study.results import read_study, result_path, write_result
from nxm.study.search import PLUS, expand, expand_ablation
from nxm.study.settings import load_study, parse_study
from nxm.training.assemble import METHODS, get_method
from synthetic_study import make_result

ROOT = Path(__file__).parent.parent
STAGES = {
    name: stage.get("do", stage)
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}


def test_merging_goes_into_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [9]}, "d": {"e": 1}}) == {"a": {"b": 1, "c": [9]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_the_best_recipe_stands_in_full_where_a_profile_names_it(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "profiles").mkdir()
    text = """
nxm_plus:
  cola: {epochs: 3, learning_rate: 1e-4, batch_size: 16, recipe: best, rho: 0.5}
  stsb: {epochs: 3, recipe: best}
distil_nxm_plus: {cola: {epochs: 3, learning_rate: 1e-4, batch_size: 16, recipe: best}}
"""
    (tmp_path / "profiles/own.yaml").write_text(text, encoding="utf-8")
    values = study_values(tmp_path, "own")
    training = {"epochs": 3, "learning_rate": 1e-4, "batch_size": 16}
    assert values["nxm_plus"]["cola"] == BEST | training | {"rho": 0.5}  # what is stated stays
    assert values["nxm_plus"]["stsb"] == BEST | training | {"learning_rate": 3e-4, "batch_size": 32}
    without_start = {key: value for key, value in BEST.items() if key != "start"}  # a student's is the distilled one
    assert values["distil_nxm_plus"]["cola"] == without_start | training


@pytest.mark.parametrize("name", profiles(ROOT))
def test_every_profile_makes_a_study(name, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    folder = write_study(tmp_path, name)
    study = load_study(folder / "params.yaml")
    assert study.study == name
    assert (folder / study.root).resolve() == tmp_path.resolve()
    assert (tmp_path / study.params).resolve() == (folder / "params.yaml").resolve()
    assert read_yaml(folder / "dvc.yaml") == read_yaml(ROOT / "dvc.yaml")
    assert not (folder / "dvc.yaml").is_symlink()  # which DVC does not follow in a revision of git
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert write_study(tmp_path, name) == folder
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before  # nothing changed, nothing written


@pytest.mark.parametrize("folder", sorted((ROOT / "studies").glob("*/")), ids=lambda folder: folder.name)
def test_committed_studies_belong_to_the_committed_profiles(folder):
    assert read_yaml(folder / "params.yaml") == study_values(ROOT, folder.name)
    assert read_yaml(folder / "dvc.yaml") == read_yaml(ROOT / "dvc.yaml")


@pytest.mark.parametrize("name", ["tune", "seeds", "glue", "glue-base", "glue-full", "plus-base", "ablation"])
def test_every_method_searched_has_as_many_cells_and_epochs(name):
    study = parse_study(study_values(ROOT, name), name)
    effort: dict[str, dict[str, set]] = {}
    for cell in study.searched_cells.values():
        own = effort.setdefault(cell.task, {}).setdefault(cell.method, (set(), set()))
        own[0].add(cell.cell)
        own[1].add(cell.values["epochs"])
    assert effort
    for methods in effort.values():
        plus, plain = ({len(cells) for m, (cells, _) in methods.items() if (m in PLUS) == own} for own in (True, False))
        assert len(plus) <= 1  # NxM+ and its rivals with the same extras have as many as each other,
        assert len(plain) <= 1  # the others too,
        assert not plain or max(plus, default=0) <= max(plain)  # and NxM+ never more than they
        rivals = {method: epochs for method, (_, epochs) in methods.items() if method != "dense"}
        assert len({tuple(epochs) for epochs in rivals.values()}) == 1


def test_an_unknown_study_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=rf"no study 'sedes'; known are {MAIN}, .*seeds"):
        study_values(ROOT, "sedes")


def test_a_profile_with_an_unknown_key_is_refused_by_name(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text("nxm: {stsb: {roh: 1}}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key 'nxm\.stsb\.roh'; did you mean 'rho'"):
        write_study(tmp_path, "mine")


def test_every_dependency_on_a_source_file_exists():
    for name, stage in STAGES.items():
        for path in stage["deps"]:
            if path.startswith(("src/", "stages/")) and "${" not in path:
                assert (ROOT / path).is_file(), f"{name}: {path}"


@pytest.mark.parametrize("report", ["figure", "table", "scores"])
def test_a_report_declares_all_that_says_which_runs_are_the_studys(report):
    """`grid` and `ablation` for the cells made of them, which would fill dvc.lock (results files have the values)."""
    declared = {key for block in STAGES[report]["params"] for key in block["${params}"]}
    for name in ("glue", "ablation"):
        values = study_values(ROOT, name)
        study = parse_study(values, name)
        other = {key: value for key, value in values.items() if key in declared}
        for method in METHODS.values():  # what the others say of a training does not name its runs
            other[method.block] = {task: {} for task in values["tasks"]}
        cells = (expand(other) | expand_ablation(other)).values()
        made = [(cell["task"], cell["method"], cell["cell"], cell["seed"]) for cell in cells]
        stated = (study.cells | study.plus_cells).values()
        assert sorted(made) == sorted((cell.task, cell.method, cell.cell, cell.seed) for cell in stated)


@pytest.mark.parametrize(("target", "study"), [("dvc.yaml", MAIN), ("studies/tune/dvc.yaml", "tune")])
def test_a_studys_stages_are_its_own_though_all_share_one_dvc_yaml(target, study, monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = read_stages(Path(target))
    assert "fetch" in stages
    for stage in stages.values():
        assert all(study in path.parts for path in stage.outs)
        assert stage.needs <= stages.keys()
    assert any(name.startswith("grid@") for name in stages) == (study == "tune")


def test_every_training_is_launched_by_accelerate_with_hardware_apart():
    trainings = {
        name: stage["cmd"] for name, stage in STAGES.items() if re.search(r"stages/(train|grid)\.py", stage["cmd"])
    }
    assert len(trainings) == 12
    for command in trainings.values():
        assert command.startswith("accelerate launch --config_file \\${ACCELERATE_CONFIG:-hardware/auto.yaml}")
    methods = {
        re.search(r"--method (\S+)", command)[1]
        for name, command in trainings.items()
        if "--cell ${key}" not in command
    }
    assert all(method in METHODS or "${" in method for method in methods)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'nxn' is unknown; known are dense, asp"):
        get_method("nxn")


def test_estimates_follow_epochs_and_jobs_and_need_a_timed_run():
    study = load_study(ROOT / "params.yaml")
    assert estimate_seconds(study, ["figure@figure1", "table@table1"], [], 1) == 0.0
    assert estimate_seconds(study, ["asp@stsb-0"], [], 1) is None
    timed = read_study(ROOT / "results", MAIN)
    one, two = (estimate_seconds(study, ["asp@stsb-0", "nxm@stsb-0"], timed, jobs) for jobs in (1, 2))
    assert one == pytest.approx(2 * two)
    assert one == pytest.approx(2 * estimate_seconds(study, ["asp@stsb-0"], timed, 1))
    assert say_duration(95) == "95 s"
    assert say_duration(600) == "10 min"
    assert say_duration(9000) == "2.5 h"


def test_a_task_goes_by_the_speed_of_its_own_runs_or_else_of_all():
    study = parse_study(study_values(ROOT, "glue"), "glue")
    slow, fast = (
        make_result("glue", task=task).model_copy(update={"wall_seconds": seconds})
        for task, seconds in (("rte", 300.0), ("cola", 100.0))
    )
    stages = [f"asp@{task}-0" for task in ("rte", "cola", "mrpc")]
    rte, cola, mrpc = (estimate_seconds(study, [stage], [slow, fast], 1) for stage in stages)
    assert rte == pytest.approx(estimate_seconds(study, [stages[0]], [slow], 1))
    assert cola == pytest.approx(estimate_seconds(study, [stages[1]], [fast], 1))
    assert mrpc < estimate_seconds(study, [stages[2]], [slow], 1)
    assert mrpc > estimate_seconds(study, [stages[2]], [fast], 1)
    assert estimate_seconds(study, stages, [slow, fast], 1) == pytest.approx(rte + cola + mrpc)


def test_a_task_with_more_examples_than_others_takes_longer():
    study = parse_study(study_values(ROOT, "glue"), "glue")
    assert study.prepare.train_examples_by_task == {"cola": None}
    capped = study.prepare.model_copy(update={"train_examples_by_task": {}})
    other = study.model_copy(update={"prepare": capped})
    cola, mrpc = "asp@cola-0", "asp@mrpc-0"
    assert stage_units(study, cola) > 2 * stage_units(other, cola)
    assert stage_units(study, mrpc) == stage_units(other, mrpc)


def test_a_study_without_runs_is_judged_by_others_of_the_same_weights(tmp_path):
    study = parse_study(study_values(ROOT, "glue"), "glue")
    assert timed_runs(tmp_path, study) == []
    results = [make_result("embedded", seed=seed) for seed in (1, 2)]
    other = results[1].provenance.model_copy(update={"weights": "bert-base-uncased (hub)"})
    for result in (results[0], results[1].model_copy(update={"provenance": other})):
        write_result(result_path(tmp_path, result.study, result.task, result.method, result.seed), result)
    assert timed_runs(tmp_path, study) == results[:1]
    own = make_result("glue")
    write_result(result_path(tmp_path, "glue", own.task, own.method, own.seed), own)
    assert timed_runs(tmp_path, study) == [own]


def test_progress_counts_what_this_launch_has_done(monkeypatch, tmp_path):
    study = load_study(ROOT / "params.yaml")
    results = [result for result in read_study(ROOT / "results", MAIN) if result.method in ("dense", "asp")]
    monkeypatch.chdir(tmp_path)
    assert say_progress(study, results) is None  # outside a launch
    trainings = ["baseline@stsb-0", "asp@stsb-0", "nxm@stsb-0", "distil_nxm@stsb-0-distil_nxm_kd"]
    monkeypatch.setenv(PLAN, "\n".join(["prepare@stsb", *trainings, "benchmark"]))
    monkeypatch.setenv(STARTED, str(time.time() - 100))
    monkeypatch.setenv(JOBS, "2")
    monkeypatch.setenv("DVC_STAGE", "nxm@stsb-0")
    first = say_progress(study, results)
    assert first.startswith("training 1 of 4: nxm@stsb-0; about ")
    for result in results:
        write_result(result_path("", result.study, result.task, result.method, result.seed), result)
    third = say_progress(study, results)
    assert third.startswith("training 3 of 4: nxm@stsb-0; about ")
    assert third.split("about ")[1] != first.split("about ")[1]


def ablation():
    return parse_study(study_values(ROOT, "ablation"), "ablation")


def test_what_a_search_decides_waits_for_it_and_so_does_what_needs_that(tmp_path):
    def after(*needs: str) -> Stage:
        return Stage(frozenset(needs), (), (), ())

    own, variant = "plus_cell@stsb-nxm_plus-lr0_0002-from-dense-seed100", "plus_cell@stsb-nxm_plus-no-teacher-seed0"
    stages = {
        "baseline@stsb-0": after(),  # not searched in this study
        own: after("baseline@stsb-0"),
        "plus@stsb-0-nxm_plus": after("baseline@stsb-0"),
        variant: after("baseline@stsb-0"),
        "nxm@stsb-0": after(),
        "distil_plus@stsb-0-distil_nxm_plus": after("baseline@stsb-0"),
        "table@table1": after("plus@stsb-0-nxm_plus", "nxm@stsb-0"),
    }
    needing = {"plus@stsb-0-nxm_plus", variant, "table@table1"}
    assert waiting_stages(ablation(), stages, stages, tmp_path) == needing
    assert waiting_stages(load_study(ROOT / "params.yaml"), {"nxm@stsb-0": after()}, (), tmp_path) == set()

    study = ablation()
    for cell in study.searched_cells.values():
        result = make_result(study.study, cell.task, cell.method, cell.seed, cell.cell)
        result = result.model_copy(update={"hyperparameters": cell.values})
        write_result(result_path(tmp_path, study.study, cell.task, cell.method, cell.seed, cell.cell), result)
    assert waiting_stages(study, stages, {"plus@stsb-0-nxm_plus"}, tmp_path) == set()
    assert waiting_stages(study, stages, {own, "plus@stsb-0-nxm_plus"}, tmp_path) == needing  # chosen, but of old cells


def test_what_needs_a_stage_is_found_through_others():
    needs = {"a": (), "b": ("a",), "c": ("b",), "d": (), "e": ("d", "c")}
    stages = {name: Stage(frozenset(own), (), (), ()) for name, own in needs.items()}
    assert that_need(stages, {"b"}) == {"b", "c", "e"}
    assert that_need(stages, set()) == set()


def test_variants_in_the_main_params_are_refused(tmp_path):
    values = read_yaml(ROOT / "params.yaml") | {"ablation": {"x": {"method": "nxm_plus", "values": {}}}}
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    with pytest.raises(UserError, match="'ablation' is for a profile"):
        study_values(tmp_path, MAIN)


@pytest.mark.parametrize(
    ("stage", "method", "epochs"),
    [
        ("baseline@stsb-0", "dense", 4),
        ("nxm_rho@stsb-0-1.0", "nxm", 5),
        ("nxm_paper@stsb-0-0.006", "nxm_paper", 5),
        ("distil_nxm@stsb-2-distil_nxm_kd", "distil_nxm_kd", 4),
        ("plus@stsb-1-gmp_plus", "gmp_plus", 5),
        ("distil_plus@stsb-1-distil_nxm_plus", "distil_nxm_plus", 10),
        ("plus_cell@stsb-gmp_plus-gmp-weighed-seed2", "gmp_plus", 5),
    ],
)
def test_what_a_stage_trains_is_known_from_its_name(stage, method, epochs):
    planned = planned_training(ablation(), stage)
    assert (planned.task, planned.method, planned.epochs) == ("stsb", method, epochs)
    assert not planned.searched
    assert planned_training(ablation(), "figure@summary") is None
    assert planned_training(ablation(), "plus_cell@stsb-nxm_plus-lr0_0002-from-dense-seed100").searched
