"""params.yaml: every key is known, every value in force stands in it, every mistake is named."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

from nxm import DISTILLATION, Admm, AdmmCallback, DistillationTrainer, UserError
from nxm.config import read_yaml
from nxm.distillation.settings import Distillation
from nxm.methods.admm.defaults import BEST
from nxm.methods.importance import make_importance
from nxm.study.settings import Study, load_study, parse_study
from nxm.training.assemble import METHODS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def values() -> dict:
    return read_yaml(ROOT / "params.yaml")


def test_the_committed_params_are_a_study():
    assert load_study(ROOT / "params.yaml").study == "embedded"


def test_no_value_of_a_training_comes_from_a_default(values):
    """dvc.yaml leaves settings.py out of the dependencies because of this."""
    study = parse_study(values, "params.yaml").model_dump(mode="json")
    blocks = {"trainer", "pattern", "targets", "prepare"} | {method.block for method in METHODS.values()}
    for block in sorted(blocks):
        assert values[block] == study[block]


def test_nxm_plus_is_the_best_recipe_as_is_what_the_library_does_by_default(values):
    block = parse_study(values, "params.yaml").nxm_plus["stsb"].model_dump(mode="json")
    assert {key: block[key] for key in BEST} == BEST
    callback, trainer = AdmmCallback(), signature(DistillationTrainer).parameters
    own = callback.settings.model_dump() | {
        "distillation": DISTILLATION.model_dump(),
        "relaxation": callback.relaxation,
    }
    own |= {name: trainer[name].default for name in ("dropout", "noise")}
    assert own == {key: BEST[key] for key in own}
    assert isinstance(callback.importance, type(make_importance(BEST["importance"])))


def test_a_distillation_without_a_teacher_weighs_the_labels_with_1():
    terms = {"logits": 0.0, "hidden": 0.0, "temperature": 2.0}
    assert Distillation(task=1.0, **terms).task == 1.0
    with pytest.raises(ValueError, match=r"there is no teacher, and task = 0\.5 would change nothing"):
        Distillation(task=0.5, **terms)


@pytest.mark.parametrize("terms", [None, {"task": 1.0, "logits": 0.0, "hidden": 0.0, "temperature": 2.0}])
def test_noise_needs_a_teacher_that_answers(values, terms):
    values["asp_plus"]["stsb"] |= {"distillation": terms, "noise": 0.3}
    with pytest.raises(UserError, match=r"noise = 0\.3 needs a teacher to say what the changed sentences are: set 0"):
        parse_study(values, "params.yaml")
    values["asp_plus"]["stsb"] |= {"noise": 0.0}
    parse_study(values, "params.yaml")


def test_a_number_of_examples_for_a_task_that_does_not_run_is_refused(values):
    values["prepare"]["train_examples_by_task"] = {"cola": 100}
    with pytest.raises(UserError, match=r"'prepare\.train_examples_by_task' names cola, which 'tasks' does not"):
        parse_study(values, "params.yaml")


def test_learning_rates_are_numbers(values):
    assert values["dense"]["stsb"]["learning_rate"] == 9e-5


@pytest.mark.parametrize(
    ("place", "key", "hint"),
    [
        ((), "sead", "did you mean 'seeds'"),
        (("trainer",), "warmup_ration", "did you mean 'warmup_ratio'"),
        (("nxm", "stsb"), "rhoo", "did you mean 'rho'"),
        (("distil", "stsb", "distillation"), "temprature", "did you mean 'temperature'"),
        (("pattern",), "xyzzy", "known here: group_size, n_nonzero"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(values, place, key, hint):
    block = values
    for part in place:
        block = block[part]
    block[key] = 1
    with pytest.raises(UserError) as error:
        parse_study(values, "params.yaml")
    assert f"params.yaml: unknown key '{'.'.join((*place, key))}'" in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("nxm", "stsb", "rho"), -1, "nxm.stsb.rho = -1: Input should be greater than 0"),
        (
            ("nxm", "stsb", "recipe"),
            "papper",
            "nxm.stsb.recipe = 'papper': Input should be 'paper', 'gradient' or 'proximal'",
        ),
        (("pattern",), {"n_nonzero": 4, "group_size": 4}, "n_nonzero (4) must be smaller than group_size (4)"),
        (("tasks",), ["stsbb"], "tasks.0 = 'stsbb'"),
        (("tasks",), ["stsb", "rte"], "'dense' has no block for the task(s) rte"),
        (("study",), "My Study", "study = 'My Study'"),
        (("student",), {"source": "teacher", "name": "x"}, "takes no 'name'"),
        (("weights",), {"source": "hub"}, "needs a 'name'"),
        (("weights",), {"source": "teacher"}, "source 'teacher' is for 'student' alone"),
        (("dense", "stsb", "learning_rate"), "fast", "dense.stsb.learning_rate = 'fast'"),
        (("dense", "stsb", "epochs"), 0, "dense.stsb.epochs = 0"),
    ],
)
def test_an_impossible_value_is_named_with_what_would_be_right(values, place, value, message):
    block = values
    for part in place[:-1]:
        block = block[part]
    block[place[-1]] = value
    with pytest.raises(UserError) as error:
        parse_study(values, "params.yaml")
    assert message in str(error.value)


ABLATION = {"longer": {"method": "asp_plus", "values": {"epochs": 20}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plus_methods": []}, "ablation variant 'longer' is of asp_plus, which 'plus_methods' does not name"),
        ({"ablation": {"x": {"method": "asp_plus", "values": {"rho": 1}}}}, "asp_plus has no rho; it has batch"),
        (
            {"ablation": {"x": {"method": "asp_plus", "values": {"epochs": 0}}}},
            "ablation variant 'x': epochs = 0: Input should be greater than 0",
        ),
        (
            {"ablation": {"x": {"method": "asp_plus", "values": {"distillation": {"hidden": 0.0}}}}},
            "ablation variant 'x': 'distillation.task' is missing",
        ),
        (
            {"ablation": {"x": {"method": "asp_plus", "values": {}, "against": "y"}, "z": ABLATION["longer"]}},
            "ablation variant 'x': against = 'y' is no other variant or method; there are asp_plus, z",
        ),
        (
            {"ablation": {"x": {"method": "asp_plus", "values": {}, "tasks": ["rte"]}}},
            "ablation variant 'x': tasks names rte, which 'tasks' does not",
        ),
        (
            {"ablation": {"x": {"method": "asp_plus", "values": {}, "tasks": []}}},
            "ablation.x.tasks: List should have at least 1 item",
        ),
        ({"ablation": {"asp_plus": ABLATION["longer"]}}, "'asp_plus' is named as a method; take another name"),
        ({"ablation": {"lr5": {"method": "asp_plus", "values": {}}}}, "'lr5' is named as a cell of the grid"),
        ({"asp_plus": {}}, "'asp_plus' has no block for the task(s) stsb"),
    ],
)
def test_an_ablation_is_of_methods_that_run_and_of_values_that_they_have(values, change, message):
    values |= {"plus_methods": ["asp_plus"], "ablation": ABLATION}
    parse_study(values, "params.yaml")
    with pytest.raises(UserError) as error:
        parse_study(values | change, "params.yaml")
    assert message in str(error.value)


def test_a_variant_is_compared_with_one_that_runs_on_its_tasks(values):
    values |= {"plus_methods": ["asp_plus"], "tasks": ["stsb", "rte"]}
    for method in ("dense", "asp", "admm_unstructured", "nxm", "distil", "distil_nxm", "asp_plus"):
        values[method] = dict.fromkeys(values["tasks"], values[method]["stsb"])
    rival = {"method": "asp_plus", "values": {"epochs": 20}, "tasks": ["rte"]}
    own = {"method": "asp_plus", "values": {"epochs": 30}, "against": "longer"}
    parse_study(values | {"ablation": {"longer": rival, "x": own | {"tasks": ["rte"]}}}, "params.yaml")
    with pytest.raises(UserError, match="'x' is compared with 'longer', which does not run on stsb"):
        parse_study(values | {"ablation": {"longer": rival, "x": own}}, "params.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plus_methods": []}, "'grid' searches asp_plus, which 'plus_methods' does not name"),
        ({"seeds": []}, "'grid' searches asp_plus, whose cells start from or learn from the dense model"),
    ],
)
def test_a_grid_of_plus_methods_needs_their_blocks_and_a_dense_model(values, change, message):
    grid = {"seeds": [9], "small": {"asp_plus": {"learning_rate": [1e-4]}}, "large": {}}
    cell = {"task": "stsb", "method": "asp_plus", "seed": 9, "cell": "lr0.0001", "values": {}, "dense_seed": 0}
    values |= {"plus_methods": ["asp_plus"], "grid": grid, "plus_cells": {"x": cell}}
    parse_study(values, "params.yaml")
    with pytest.raises(UserError) as error:
        parse_study(values | change, "params.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(("method", "searched"), [("nxm", {"rho": [0.1]}), ("nxm_plus", {"start": ["dense"]})])
def test_a_grid_whose_cells_would_be_named_as_others_is_refused(values, method, searched):
    grid = {"seeds": [9], "small": {method: searched}, "large": {}}
    with pytest.raises(UserError, match=rf"grid\.small\.{method}: {next(iter(searched))} is searched alone"):
        parse_study(values | {"grid": grid}, "params.yaml")


def test_the_penalty_in_the_gradient_has_no_share_to_match():
    with pytest.raises(ValueError, match="recipe 'gradient' has full dual steps"):
        Admm(recipe="gradient", rho=0.1, dual_step="matched")


@pytest.mark.parametrize("change", [{"freeze_at": 0.5}, {"schedule": "cosine"}, {"dual_step": "matched"}])
def test_the_papers_recipe_is_the_papers(values, change):
    paper = {"recipe": "paper", "schedule": "constant", "freeze_at": 1.0, "dual_step": "full"}
    values["nxm"]["stsb"] |= paper
    parse_study(values, "params.yaml")
    values["nxm"]["stsb"] |= change
    with pytest.raises(UserError, match="recipe 'paper' has a constant rho, full dual steps and no frozen phase"):
        parse_study(values, "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"), [("a: [1,", "not a YAML file"), ("- 1\n", "expected a mapping"), ("\xff", "mapping|YAML")]
)
def test_a_file_that_is_no_settings_is_named(content, message, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        load_study(path)
    with pytest.raises(UserError, match="no such file"):
        load_study(tmp_path / "absent.yaml")


def test_settings_cannot_be_changed(values):
    study = parse_study(values, "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        study.seeds = [1]


def test_every_study_key_is_described_by_the_committed_file(values):
    assert set(values) == set(Study.model_fields)


def test_yaml_is_read_as_version_1_2(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 3e-5\nb: on\n")  # PyYAML (1.1) would read a string and a bool
    assert read_yaml(path) == {"a": 3e-5, "b": "on"}
