"""params.yaml: every key is known, a run is composed of checked values, and every mistake is named."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from nxm import BEST_ADMM, DISTILLATION, Admm, AdmmCallback, DistillationTrainer, UserError
from nxm.config import read_yaml
from nxm.distillation.settings import Distillation
from nxm.methods import METHODS, settings_class
from nxm.methods.importance import make_importance
from nxm.methods.structured.settings import Structured
from nxm.study.settings import Study, load_study, parse_study
from nxm.study.studies import study_values

ROOT = Path(__file__).parents[2]
TAUGHT = {"start": "dense", "teacher": "dense", "distillation": DISTILLATION.model_dump()}
PLUS = TAUGHT | {"method": "one_shot", "set": "2:4", "epochs": 5, "learning_rate": 3e-4, "batch_size": 32}


@pytest.fixture
def values() -> dict:
    return read_yaml(ROOT / "params.yaml")


def put(values: dict, place: tuple[str, ...], value: Any) -> None:
    for part in place[:-1]:
        values = values[part]
    values[place[-1]] = value


def refused(values: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_study(values, "params.yaml")
    return str(error.value)


def test_the_committed_params_are_a_study():
    assert load_study(ROOT / "params.yaml").study == "embedded"


def test_a_run_has_the_values_of_its_method_and_no_others(values):
    study = parse_study(values, "params.yaml")
    assert study.run("dense", "stsb").method_settings is None
    nxm = study.run("nxm", "stsb")
    assert isinstance(nxm.method_settings, Admm)
    assert (nxm.set, nxm.start, nxm.teacher, nxm.rho, nxm.importance) == ("2:4", "pretrained", None, 0.25, "none")
    assert nxm.method_settings.model_dump().items() <= nxm.model_dump().items()
    assert not hasattr(study.run("asp", "stsb"), "rho")


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_values_are_not_those_of_a_run(method):
    """They stand side by side in a run."""
    assert not set(settings_class(method).model_fields) & set(
        load_study(ROOT / "params.yaml").run("dense", "stsb").model_dump()
    )


CUT = {"method": "structured", "recipe": "learned", "budget": 0.5, "start": "dense", "learning_rate": 3e-4}


def test_structured_pruning_takes_no_set(values):
    values["runs"]["cut"] = cut = CUT | {"epochs": 4, "batch_size": 32}
    run = parse_study(values, "params.yaml").run("cut", "stsb")
    assert isinstance(run.method_settings, Structured)
    assert (run.set, run.recipe, run.multiple) == (None, "learned", 1)
    cut["set"] = "2:4"
    message = "run 'cut' on stsb: set = '2:4': method 'structured' takes no set, since it removes whole units: leave"
    assert message in refused(values)


def test_structured_pruning_takes_no_single_matrices_but_for_blocks(values):
    values["runs"] = {"dense": values["runs"]["dense"], "cut": CUT | {"epochs": 4, "batch_size": 32}}
    values |= {"variants": {}, "targets": {"include": ["query"], "exclude": []}}
    values["deployment"]["models"] = ["dense", "cut"]
    assert "run 'cut' on stsb: include ['query'] and exclude []: heads and rows reach over several" in refused(values)
    values["runs"]["cut"]["units"] = "blocks"
    assert parse_study(values, "params.yaml").run("cut", "stsb").units == "blocks"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permute": True}, "permute = true prepares for a set, and this run has none"),
        ({"budgett": 0.5}, "unknown key 'budgett'; did you mean 'budget'"),
        ({"budget": 1.5}, "budget = 1.5: Input should be less than 1"),
        ({"rho": 0.1}, "unknown key 'rho'"),
        ({"recipe": "paper", "threshold_rate": 0.3}, "recipe 'paper' has its own values: leave threshold_rate out"),
        ({"cost": "latency"}, "cost = 'latency' needs `latency`, the path of a measured table"),
        ({"epochs": 1, "measure_steps": 30}, "recipe 'learned' needs 32 optimizer steps before the structure is fixed"),
        ({"recipe": "gradual", "epochs": 1, "interval": 30}, "needs 70 optimizer steps"),
    ],
)
@pytest.mark.situation("settings", "a structured run that is too short or has values of another method", "refused")
def test_an_impossible_structured_run_is_refused_before_any_training(values, change, message):
    values["runs"]["cut"] = CUT | {"epochs": 4, "batch_size": 32} | change
    assert message in refused(values)


def test_a_runs_values_on_one_task_replace_its_own(values):
    values["tasks"] = ["stsb", "cola"]
    values["runs"]["nxm"] |= {"by_task": {"cola": {"interval": 80, "learning_rate": 1e-4}}}
    study = parse_study(values, "params.yaml")
    on = {task: study.run("nxm", task) for task in study.tasks}
    assert {task: (run.interval, run.learning_rate) for task, run in on.items()} == {
        "stsb": (25, 3e-4),
        "cola": (80, 1e-4),
    }
    assert study.run("nxm", "cola", {"interval": 7}).interval == 7  # a variant's value goes before both


def test_nxm_plus_is_the_best_recipe_as_is_what_the_library_does_by_default():
    study = parse_study(study_values(ROOT, "ablation"), "ablation")
    run = study.run("nxm_plus", "stsb")
    assert run.method_settings == BEST_ADMM
    assert run.distillation == DISTILLATION
    trainer = signature(DistillationTrainer).parameters
    assert (run.dropout, run.noise) == (trainer["dropout"].default, trainer["noise"].default)
    assert study.run("distil_nxm_plus", "stsb").method_settings == BEST_ADMM
    callback = AdmmCallback()
    assert callback.settings == BEST_ADMM
    assert isinstance(callback.importance, type(make_importance(BEST_ADMM.importance)))


def test_a_distillation_without_a_teacher_weighs_the_labels_with_1():
    terms = {"logits": 0.0, "hidden": 0.0, "temperature": 2.0}
    assert Distillation(task=1.0, **terms).task == 1.0
    with pytest.raises(ValueError, match=r"there is no teacher, and task = 0\.5 would change nothing"):
        Distillation(task=0.5, **terms)


def test_noise_needs_a_teacher_that_answers(values):
    values["runs"]["asp"] |= {"noise": 0.3}
    assert "run 'asp' on stsb: noise = 0.3 needs a teacher to answer for the changed sentences: set 0" in refused(
        values
    )
    values["runs"]["asp"] |= TAUGHT
    parse_study(values, "params.yaml")
    values["runs"]["asp"] |= {"noise": 0.0, "teacher": None, "distillation": None}
    parse_study(values, "params.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "teacher None, distillation given"),
        ({"distillation": None}, "teacher dense, distillation null"),
    ],
)
def test_a_teacher_and_the_losss_terms_belong_together(values, change, message):
    values["runs"]["distil"] |= change
    need = "a teacher needs 'distillation' (the weights of the loss's terms) and 'distillation' needs a teacher: "
    assert need + message in refused(values)


@pytest.mark.parametrize(
    ("run", "change", "message"),
    [
        ("nxm", {"set": None}, "a method needs a set and a set needs a method: method admm, set None"),
        ("dense", {"set": "2:4"}, "a method needs a set and a set needs a method: method None, set 2:4"),
        ("dense", {"permute": True}, "permute = true prepares for a set, and this run has none: set false"),
        ("distil", {"teacher": None, "distillation": None}, "the student is made of its teacher's layers"),
    ],
)
def test_a_method_a_set_and_a_permutation_belong_together(values, run, change, message):
    values["runs"][run] |= change
    assert f"run '{run}'" in refused(values)
    assert message in refused(values)


def test_a_student_of_its_own_weights_needs_no_teacher(values):
    values["student"] = {"source": "hub", "name": "distilbert/distilbert-base-uncased"}
    values["runs"]["distil"] |= {"teacher": None, "distillation": None}
    parse_study(values, "params.yaml")


def test_a_number_of_examples_for_a_task_that_does_not_run_is_refused(values):
    values["prepare"]["train_examples_by_task"] = {"cola": 100}
    assert "'prepare.train_examples_by_task' names cola; known here are stsb" in refused(values)


def test_learning_rates_are_numbers(values):
    assert values["runs"]["dense"]["learning_rate"] == 9e-5


@pytest.mark.parametrize(
    ("place", "key", "hint"),
    [
        ((), "sead", "params.yaml: unknown key 'sead'; did you mean 'seeds'"),
        (("trainer",), "warmup_ration", "unknown key 'trainer.warmup_ration'; did you mean 'warmup_ratio'"),
        (("runs", "nxm"), "rhoo", "run 'nxm' on stsb: unknown key 'rhoo'; did you mean 'rho'"),
        (("runs", "dense"), "rho", "run 'dense' on stsb: unknown key 'rho'; known here: activations, batch_size"),
        (
            ("runs", "distil", "distillation"),
            "temprature",
            "run 'distil' on stsb: unknown key 'distillation.temprature'; did you mean 'temperature'",
        ),
        (("targets",), "xyzzy", "unknown key 'targets.xyzzy'; known here: exclude, include"),
        (("variants", "nxm/rho1.0"), "againts", "unknown key 'variants.nxm/rho1.0.againts'; did you mean 'against'"),
        (("search",), "seed", "unknown key 'search.seed'; did you mean 'seeds'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(values, place, key, hint):
    put(values, (*place, key), 1)
    assert "params.yaml: " in refused(values)
    assert hint in refused(values)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("runs", "nxm", "rho"), -1, "run 'nxm' on stsb: rho = -1: Input should be greater than 0"),
        (
            ("runs", "nxm", "recipe"),
            "papper",
            "run 'nxm' on stsb: recipe = 'papper': Input should be 'paper', 'gradient' or 'proximal'",
        ),
        (("tasks",), ["stsbb"], "'tasks' names stsbb; known here are mnli"),
        (("study",), "My Study", "study = 'My Study'"),
        (("student",), {"source": "teacher", "name": "x"}, "takes no 'name'"),
        (("weights",), {"source": "hub"}, "needs a 'name'"),
        (("weights",), {"source": "teacher"}, "source 'teacher' is for 'student' alone"),
        (("runs", "dense", "learning_rate"), "fast", "run 'dense' on stsb: learning_rate = 'fast'"),
        (("runs", "dense", "epochs"), -1, "run 'dense' on stsb: epochs = -1"),
        (("runs", "Dense"), {}, "runs.Dense"),
        (("bench", "budget"), 0.0, "bench.budget"),
    ],
)
def test_an_impossible_value_is_named_with_what_would_be_right(values, place, value, message):
    put(values, place, value)
    assert message in refused(values)


@pytest.mark.parametrize("value", [-1, 2**32, 99999999999, 1.5, 0.0, True, "1", None])
@pytest.mark.parametrize(
    ("place", "key"),
    [
        (("seeds",), "seeds.0"),
        (("search", "seeds"), "search.seeds.0"),
        (("benchmark", "seeds"), "benchmark.seeds.0"),
        (("deployment", "seeds"), "deployment.seeds.0"),
        (("variants", "nxm/rho1.0", "seeds"), "variants.nxm/rho1.0.seeds.0"),
    ],
)
@pytest.mark.situation("settings", "a seed that is negative, too large or no integer", "refused")
def test_a_seed_that_no_generator_takes_is_refused(values, place, key, value):
    put(values, place, [value])
    assert f"params.yaml: {key} = {value!r}: Input should be " in refused(values)


@pytest.mark.situation("settings", "models to measure that no run makes, or without the dense one", "refused")
def test_models_are_measured_of_runs_and_compared_with_dense(values):
    values["deployment"]["models"] = ["dense", "nmx"]
    assert "deployment.models names nmx, which 'runs' does not name" in refused(values)
    values["deployment"]["models"] = ["nxm"]
    assert "deployment.models needs 'dense'" in refused(values)
    values["deployment"]["devices"] = []  # nothing is measured
    parse_study(values, "params.yaml")


def test_the_seed_of_the_sample_is_one_too(values):
    for value in (-1, True, 0.5):
        values["prepare"]["sample_seed"] = value
        assert f"prepare.sample_seed = {value!r}: Input should be " in refused(values)


@pytest.mark.parametrize(
    ("place", "value", "twice"),
    [
        (("seeds",), [1, 0, 1], "1"),
        (("tasks",), ["stsb", "stsb"], "'stsb'"),
        (("figures",), ["figure1", "figure1"], "'figure1'"),
        (("tables",), ["table1", "table1"], "'table1'"),
        (("targets", "exclude"), ["a", "a"], "'a'"),
        (("deployment", "forms"), ["fp32", "fp32"], "'fp32'"),
        (("deployment", "models"), ["dense", "dense"], "'dense'"),
        (("bench", "parts"), ["products", "products"], "'products'"),
        (("variants", "nxm/rho1.0", "seeds"), [3, 3], "3"),
        (
            ("search",),
            {"seeds": [9], "runs": {"nxm": {"values": {"rho": [0.1, 0.10]}}}},
            "0.1",
        ),
    ],
)
@pytest.mark.situation("settings", "an entry twice in a list, such as a seed", "refused")
def test_an_entry_that_is_twice_in_a_list_is_refused(values, place, value, twice):
    put(values, place, value)
    assert f"{twice} is listed twice; list each once" in refused(values)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        pytest.param(
            ("targets", "include"),
            ["("],
            "targets.include.0 = '(': not a regular expression: missing ), unterminated subpattern at position 0",
            marks=pytest.mark.situation("settings", "a bad regular expression in include or exclude", "refused"),
        ),
        (("targets", "exclude"), ["a", "*"], "targets.exclude.1 = '*': not a regular expression: nothing to repeat"),
        (("runs", "dense", "learning_rate"), float("inf"), "learning_rate = inf: Input should be a finite number"),
        (("runs", "dense", "learning_rate"), "3e-4", "learning_rate = '3e-4': Input should be a valid number"),
        (("runs", "dense", "epochs"), 5.0, "epochs = 5.0: Input should be a valid integer"),
        (("runs", "dense", "epochs"), True, "epochs = True: Input should be a valid integer"),
        (("trainer", "max_grad_norm"), float("nan"), "trainer.max_grad_norm = nan: Input should be a finite number"),
        (("trainer", "weight_decay"), -0.1, "trainer.weight_decay = -0.1: Input should be greater than or equal to 0"),
        (("figures",), ["figure1", "figure99"], "'figures' names figure99; known are ablation, "),
        (("tables",), ["table99"], "'tables' names table99; known are table1, "),
        (("runs", "dense", "by_task"), 3, "'runs.dense.by_task' must be mappings of values by task, not 3"),
        (("runs", "dense", "by_task"), {"stsb": None}, "'runs.dense.by_task' must be mappings of values by task"),
        pytest.param(
            ("runs", "asp", "batch_size"),
            1281,
            "run 'asp' on stsb: batch_size = 1281 is more than the 1280 training examples: set it lower",
            marks=pytest.mark.situation("settings", "a batch larger than the data", "refused"),
        ),
        pytest.param(
            ("runs", "nxm", "interval"),
            101,
            "run 'nxm' on stsb: interval = 101 is 101 optimizer steps, and the ADMM phase has 100 (freeze_at = 0.5 of "
            "200): set a smaller interval, freeze later or train longer",
            marks=pytest.mark.situation("settings", "an interval longer than the phase before the freeze", "refused"),
        ),
        (("runs", "nxm", "freeze_at"), 0.0, "interval = 25 is 25 optimizer steps, and the ADMM phase has 0"),
        pytest.param(
            ("prepare", "heldout_examples"),
            5749,
            "prepare.heldout_examples = 5749, but stsb has 5749 training rows: hold out fewer",
            marks=pytest.mark.situation("settings", "more rows held out than there are", "refused"),
        ),
        (
            ("search",),
            {"seeds": [9], "runs": {"nxm": {"values": {"rho": [0.1, -1]}}}},
            "'search' for 'nxm': run 'nxm' on stsb: rho = -1: Input should be greater than 0",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_runs(values, place, value, message):
    put(values, place, value)
    assert message in refused(values)


def test_the_longest_interval_and_the_largest_batch_that_can_be_are_taken(values):
    values["runs"]["nxm"]["interval"] = 100
    values["runs"]["asp"]["batch_size"] = 1280
    parse_study(values, "params.yaml")


def test_gradual_pruning_prunes_twice_at_least(values):
    gradual = {"method": "gradual", "set": "2:4", "epochs": 1, "learning_rate": 3e-4, "batch_size": 128}
    values["runs"]["gmp"] = gradual | {"interval": 5, "prune_until": 1.0}
    parse_study(values, "params.yaml")
    values["runs"]["gmp"]["interval"] = 6
    assert (
        "run 'gmp' on stsb: interval = 6 is 6 optimizer steps, and pruning has 10 (prune_until = 1 of 10)"
        in refused(values)
    )
    values["runs"]["gmp"]["interval"] = "epoch"
    assert "interval = epoch is 10 optimizer steps" in refused(values)


def test_a_folders_own_data_may_have_any_number_of_rows(values):
    values["data"] = {"source": "local", "name": "my"}
    values["prepare"] |= {"train_examples": None, "heldout_examples": 9999}
    values["runs"]["asp"]["batch_size"] = 9999
    study = parse_study(values, "params.yaml")
    assert study.train_rows("stsb") is None


def test_all_mistakes_in_runs_are_named_at_once(values):
    values["runs"]["nxm"]["rho"] = -1
    values["runs"]["asp"]["epoch"] = 3
    assert "run 'nxm' on stsb: rho = -1" in refused(values)
    assert "run 'asp' on stsb: unknown key 'epoch'; did you mean 'epochs'" in refused(values)


LONGER = {"asp_plus/longer": {"values": {"epochs": 20}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asp_pluss/x": {"values": {}}}, "variant 'asp_pluss/x' is of 'asp_pluss', which 'runs' does not name"),
        (
            {"asp_plus/x": {"values": {"rho": 1}}},
            "variant 'asp_plus/x': run 'asp_plus' on stsb: unknown key 'rho'; known here: activations, batch_size",
        ),
        ({"asp_plus/x": {"values": {"epochs": -1}}}, "variant 'asp_plus/x': run 'asp_plus' on stsb: epochs = -1"),
        (
            {"asp_plus/x": {"values": {"distillation": {"hidden": 0.0}}}},
            "variant 'asp_plus/x': run 'asp_plus' on stsb: 'distillation.task' is missing",
        ),
        (
            {"asp_plus/x": {"values": {}, "against": "y"}, "asp_plus/z": LONGER["asp_plus/longer"]},
            "variant 'asp_plus/x': against = 'y' is no other variant or run; there are admm_unstructured, asp,",
        ),
        (
            {"asp_plus/x": {"values": {}, "tasks": ["rte"]}},
            "'variants.asp_plus/x.tasks' names rte; known here are stsb",
        ),
        (
            {"asp_plus/x": {"values": {}, "tasks": []}},
            "variants.asp_plus/x.tasks: List should have at least 1 item",
        ),
        ({"asp_plus": LONGER["asp_plus/longer"]}, "variants.asp_plus.[key] = 'asp_plus': String should match pattern"),
    ],
)
def test_a_variant_is_of_a_run_and_of_values_that_it_has(values, change, message):
    values["runs"]["asp_plus"] = dict(PLUS)
    parse_study(values | {"variants": LONGER}, "params.yaml")
    assert message in refused(values | {"variants": change})


def test_a_variant_is_compared_with_its_own_run_unless_it_says_otherwise(values):
    values["runs"]["asp_plus"] = dict(PLUS)
    own = {"asp_plus/x": {"values": {}}, "asp_plus/y": {"values": {}, "against": "nxm"}}
    study = parse_study(values | {"variants": own | {"asp_plus/z": {"values": {}, "against": None}}}, "params.yaml")
    assert [study.against(name) for name in study.variants] == ["asp_plus", "nxm", None]


def test_a_variant_is_compared_with_one_that_runs_on_its_tasks(values):
    values |= {"tasks": ["stsb", "rte"]}
    values["runs"]["asp_plus"] = dict(PLUS)
    rival = {"values": {"epochs": 20}, "tasks": ["rte"]}
    own = {"values": {"epochs": 30}, "against": "asp_plus/longer"}
    both = {"asp_plus/longer": rival, "asp_plus/x": own | {"tasks": ["rte"]}}
    parse_study(values | {"variants": both}, "params.yaml")
    message = "'asp_plus/x' is compared with 'asp_plus/longer', which does not run on stsb"
    assert message in refused(values | {"variants": both | {"asp_plus/x": own}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"runs": {"asp_pluss": {"values": {"epochs": [1]}}}},
            "tries values for asp_pluss, which 'runs' does not name",
        ),
        (
            {"runs": {"asp_plus": {"values": {"rho": [1]}}}},
            "'search' tries rho for 'asp_plus', which has activations, batch_size",
        ),
        ({"seeds": []}, "'search' needs both 'seeds' and 'runs', or neither"),
        ({"runs": {"asp_plus": {"values": {"epochs": []}}}}, "List should have at least 1 item"),
        ({"by": "luck"}, "search.by = 'luck': Input should be 'dev' or 'heldout'"),
        ({"seeds": [], "runs": {}}, "search.by 'heldout' chooses among trials, and 'search.runs' names none"),
    ],
)
def test_a_search_tries_values_that_its_runs_have(values, change, message):
    values["runs"]["asp_plus"] = dict(PLUS)
    search = {"by": "heldout", "seeds": [9], "runs": {"asp_plus": {"values": {"learning_rate": [1e-4]}}}}
    parse_study(values | {"search": search}, "params.yaml")
    assert message in refused(values | {"search": search | change})


def test_trials_from_the_dense_model_need_a_seed_that_makes_one(values):
    values["runs"]["asp_plus"] = dict(PLUS)
    values["search"] = {"by": "heldout", "seeds": [9], "runs": {"asp_plus": {"values": {"learning_rate": [1e-4]}}}}
    values["seeds"] = []
    assert "'search' tries 'asp_plus', which needs the model of dense, and 'seeds' is empty" in refused(values)


def test_a_choice_on_rows_held_out_needs_some(values):
    values["search"] = {"by": "heldout", "seeds": [9], "runs": {"asp": {"values": {"learning_rate": [1e-4]}}}}
    values["prepare"]["heldout_examples"] = 0
    assert "search.by 'heldout' needs prepare.heldout_examples above 0" in refused(values)


def test_the_penalty_in_the_gradient_has_no_share_to_match():
    with pytest.raises(ValueError, match="recipe 'gradient' has full dual steps"):
        Admm(recipe="gradient", rho=0.1, dual_step="matched")


@pytest.mark.parametrize("change", [{"freeze_at": 0.5}, {"schedule": "cosine"}, {"dual_step": "matched"}])
def test_the_papers_recipe_is_the_papers(values, change):
    paper = {"recipe": "paper", "schedule": "constant", "freeze_at": 1.0, "dual_step": "full"}
    values["runs"]["nxm"] |= paper
    parse_study(values, "params.yaml")
    values["runs"]["nxm"] |= change
    message = "run 'nxm' on stsb: recipe 'paper' has a constant rho, full dual steps and no frozen phase"
    assert message in refused(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1,", "not a YAML file"), ("- 1\n", "expected a mapping"), ("\xff", "line 1: the byte 0xff is not UTF-8")],
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
    with pytest.raises(Exception, match="frozen"):
        study.run("nxm", "stsb").rho = 1.0


def test_every_study_key_is_described_by_the_committed_file(values):
    assert set(values) == set(Study.model_fields)


def test_yaml_is_read_as_version_1_2(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 3e-5\nb: on\n")  # PyYAML (1.1) would read a string and a bool
    assert read_yaml(path) == {"a": 3e-5, "b": "on"}
