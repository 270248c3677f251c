"""The plan of a study: what is committed is what params.yaml makes, and the results committed belong to it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from nxm import UserError
from nxm.config import read_yaml
from nxm.methods import METHODS
from nxm.study.plan import (
    PLAN,
    STAGES,
    VALUES,
    Training,
    chosen_path,
    composed,
    model_path,
    start_path,
    trainings,
    write_plan,
)
from nxm.study.results import place_of, read_chosen, read_failures, read_study
from nxm.study.search import choose
from nxm.study.settings import Study, load_study, parse_study, say_value
from nxm.study.studies import MAIN, studies, study_folder, write_study
from records import ROOT

ALL = studies(ROOT)
STAGES_OF_DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
TRAINED = re.compile(r"models/(?P<task>\w+)/(?P<run>\w+)/seed(?P<seed>\d+)")


@pytest.fixture
def values() -> dict:
    return read_yaml(ROOT / "params.yaml")


def study_of(name: str) -> Study:
    return load_study(study_folder(ROOT, name) / "params.yaml")


def planned(name: str) -> dict[str, dict[str, Any]]:
    return read_yaml(study_folder(ROOT, name) / PLAN)["train"]


def made(study: Study, folder: Path) -> tuple[dict, dict]:
    """Return what `write_plan` writes: plan.yaml's entries by stage and key, and values.json."""
    write_plan(study, folder)
    return read_yaml(folder / PLAN)["train"], json.loads((folder / VALUES).read_text(encoding="utf-8"))


# --- what is committed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_committed_plan_is_what_params_yaml_makes(name, tmp_path):
    page = study_folder(ROOT, name) / "findings.md.j2"
    if page.is_file():
        (tmp_path / page.name).write_bytes(page.read_bytes())
    write_plan(study_of(name), tmp_path)
    for file in (PLAN, VALUES):
        assert (tmp_path / file).read_bytes() == (study_folder(ROOT, name) / file).read_bytes()


@pytest.mark.parametrize("name", [name for name in ALL if name != MAIN])
def test_the_committed_folder_is_what_study_yaml_makes(name, tmp_path):
    for path in ("params.yaml", "dvc.yaml", ".dvc/plots/courses.json", f"studies/{name}/study.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    write_study(tmp_path, name)
    written = [path for path in (tmp_path / "studies" / name).rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert path.read_bytes() == (ROOT / path.relative_to(tmp_path)).read_bytes(), path


@pytest.mark.parametrize("name", ALL)
def test_each_training_has_a_key_and_a_place_of_its_own(name):
    study = study_of(name)
    found = trainings(study)
    assert len({training.dvc_name for training in found}) == len(found)
    assert len({training.path for training in found}) == len(found)
    assert not any("." in training.key for training in found)  # DVC takes a dot for nesting
    plan = planned(name)
    assert {training.dvc_name for training in found} == {
        f"{stage}@{key}" for stage, entries in plan.items() if stage != "select" for key in entries
    }


@pytest.mark.parametrize("name", ALL)
def test_a_training_starts_from_fetched_weights_or_another_trainings_model(name):
    study, plan = study_of(name), planned(name)
    models = {f"models/{training.path}" for training in trainings(study) if training.whole}
    chosen = {f"results/chosen/{entry['task']}/{entry['run']}.json" for entry in plan["select"].values()}
    for training in trainings(study):
        run, entry = composed(study, training), plan[training.stage][training.key]
        assert entry["start"] == start_path(study, training, run).as_posix()
        for path in (entry["start"], entry["teacher"]):
            assert path in models or path in ("data/source/weights", "data/source/student")
            if other := TRAINED.fullmatch(path):
                assert other["task"] == training.task
                assert (other["run"], int(other["seed"])) != (training.run, training.seed) or not training.whole
        if run.teacher:
            assert entry["teacher"] == model_path(study, training, run.teacher).as_posix()
        if training.chosen:
            assert entry["chosen"] in chosen


@pytest.mark.parametrize("name", ALL)
def test_every_value_of_a_training_is_in_values_json(name):
    """So that a change of any, also of a default in the code, makes it stale."""
    study = study_of(name)
    values = json.loads((study_folder(ROOT, name) / VALUES).read_text(encoding="utf-8"))
    assert values.keys() == {"common"} | {f"{training.stage}-{training.key}" for training in trainings(study)}
    for training in trainings(study):
        run = composed(study, training)
        for key, value in run.model_dump(mode="json").items():
            assert f"{key} {json.dumps(value)}" in values[f"{training.stage}-{training.key}"]
    for key in type(study.trainer).model_fields:
        assert f"{key} " in values["common"]


def test_the_report_depends_on_the_studys_page_or_where_it_has_none_on_readme(tmp_path):
    """DVC refuses a dependency that is not there; every report reads README's template anyway."""
    write_plan(study_of("tune"), tmp_path)
    assert read_yaml(tmp_path / PLAN)["page"] == "../../docs/README.md.j2"
    (tmp_path / "findings.md.j2").write_text("# tune\n")
    write_plan(study_of("tune"), tmp_path)
    assert read_yaml(tmp_path / PLAN)["page"] == "findings.md.j2"


def test_plan_yaml_and_params_yaml_share_no_key(values):
    """DVC merges both, to fill in dvc.yaml."""
    assert not values.keys() & read_yaml(ROOT / PLAN).keys()


@pytest.mark.parametrize("name", ALL)
def test_tasks_without_trainings_are_neither_prepared_nor_compared(name):
    """A study that measures speed alone has none."""
    tasks = read_yaml(study_folder(ROOT, name) / PLAN)["trained"]
    assert set(tasks) == {training.task for training in trainings(study_of(name))}
    for stage in ("prepare", "compare"):
        assert STAGES_OF_DVC[stage]["matrix"] == {"task": "${trained}"}


def test_every_stage_of_the_plan_is_one_of_dvc_yaml():
    assert set(planned(MAIN)) <= STAGES_OF_DVC.keys()
    for stage in planned(MAIN):
        assert STAGES_OF_DVC[stage]["foreach"] == f"${{train.{stage}}}"
    assert set(STAGES.values()) <= set(planned(MAIN))


@pytest.mark.parametrize("name", ALL)
def test_committed_results_are_in_the_plan_and_have_its_values(name):
    """The values that a result was made with, apart from values added since and the notation of a set."""
    folder = study_folder(ROOT, name)
    study = study_of(name)
    known = {training: training for training in trainings(study)}
    for result in (*read_study(folder), *read_failures(folder)):
        training = known[place_of(result)]
        chosen = read_chosen(folder / chosen_path(training), training) if training.chosen else None
        now = composed(study, training, chosen).model_dump(mode="json")
        for key, value in result.hyperparameters.items():
            without_teacher = key == "distillation" and value is None
            assert now[key] == value or without_teacher, f"{training.path}: {key}"
        if hasattr(result, "sparsity"):
            pattern = result.sparsity.pattern
            assert pattern == now["set"] or pattern == f"unstructured {now['set']}" or now["set"] is None is pattern


@pytest.mark.parametrize("name", [name for name in ALL if (study_folder(ROOT, name) / "results/chosen").exists()])
def test_committed_choices_are_what_the_search_chooses(name):
    folder, study = study_folder(ROOT, name), study_of(name)
    results, failures = read_study(folder), read_failures(folder)
    found = 0
    for path in (folder / "results/chosen").glob("*/*.json"):
        task, run = path.parent.name, path.stem
        best = choose(study, task, run, results, failures, str(study.search.by))
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content == {"task": task, "run": run, "by": study.search.by, "trial": best.trial, "values": best.values}
        found += 1
    assert found


# --- what a plan is made of ------------------------------------------------------------------------------------------


def test_measurements_depend_on_the_models_that_they_measure(values, tmp_path):
    values["deployment"] |= {"models": ["dense", "asp"], "devices": ["cpu"]}
    made(parse_study(values, "params.yaml"), tmp_path)
    places = read_yaml(tmp_path / PLAN)["deployed"]["cpu"]
    folders = list(dict.fromkeys(places.values()))
    assert folders == ["models/stsb/dense/seed0", "models/stsb/asp/seed0", "data/prepared/stsb"]
    needed = read_yaml(ROOT / "dvc.yaml")["stages"]["deployment"]["do"]["deps"]
    assert [place for place in needed if "item" in place] == [f"${{item.{place}}}" for place in places]


def test_an_entry_names_the_files_that_its_training_reads(values, tmp_path):
    values["runs"]["nxm_plus"] = values["runs"]["distil_nxm_kd"] | {"start": "dense", "permute": True}
    values["search"] = {"by": "heldout", "seeds": [9], "runs": {"nxm_plus": {"values": {"rho": [0.1, 0.2]}}}}
    values["variants"] = {"nxm_plus/no-teacher": {"values": {"teacher": None, "distillation": None}}}
    plan, _ = made(parse_study(values, "params.yaml"), tmp_path)
    dense, admm = "models/stsb/dense/seed0", "./src/nxm/methods/admm"
    whole = {
        "stage": "compress",
        "task": "stsb",
        "path": "stsb/nxm_plus/seed0",
        "start": dense,
        "teacher": dense,
        "chosen": "results/chosen/stsb/nxm_plus.json",
        "set": "./src/nxm/sets/nm.py",
        "algorithm": f"{admm}/algorithm.py",
        "callback": f"{admm}/callback.py",
        "teaching": "code/teaching.json",
        "permutation": "./src/nxm/models/permute.py",
        "activations": "code/training.json",
        "structure": "code/training.json",
        "latency": "code/training.json",
    }
    assert plan["compress"]["stsb-nxm_plus-seed0"] == whole
    assert plan["select"] == {"stsb-nxm_plus": {"task": "stsb", "run": "nxm_plus"}}
    variant = whole | {"stage": "variant", "path": "stsb/nxm_plus/no-teacher/seed0", "teaching": "code/training.json"}
    assert plan["variant"] == {"stsb-nxm_plus-no-teacher-seed0": variant}
    trial = whole | {"stage": "trial", "path": "search/stsb/nxm_plus/rho0.1/seed9", "chosen": dense}
    assert plan["trial"]["stsb-nxm_plus-rho0_1-seed9"] == trial
    unstructured = plan["admm_unstructured"]["stsb-admm_unstructured-seed0"]
    assert unstructured["set"] == "./src/nxm/sets/unstructured.py"
    baseline = plan["baseline"]["stsb-dense-seed0"]
    assert {baseline[name] for name in ("set", "algorithm", "callback", "teaching", "permutation")} == {
        "code/training.json"
    }


def test_integer_activations_depend_on_their_code(values, tmp_path):
    values["runs"]["nxm"] |= {"activations": {"bits": 8}}
    plan, spelled = made(parse_study(values, "params.yaml"), tmp_path)
    assert plan["nxm"]["stsb-nxm-seed0"]["activations"] == "code/activations.json"
    assert plan["asp"]["stsb-asp-seed0"]["activations"] == "code/training.json"
    assert '"bits": 8' in spelled["nxm-stsb-nxm-seed0"]
    assert "activations" not in spelled["asp-stsb-asp-seed0"]


def test_what_meets_a_shrunk_model_depends_on_the_code_for_it_and_nothing_else_does(values, tmp_path):
    short = {"epochs": 4, "learning_rate": 3e-4, "batch_size": 32}
    teaching = {"distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0, "temperature": 2.0}}
    values["runs"] |= {
        "cut": {"start": "dense", "method": "structured", "recipe": "one_shot", "budget": 0.5} | short,
        "timed": {"method": "structured", "recipe": "one_shot", "budget": 0.5, "cost": "latency", "latency": "ms.json"}
        | short,
        "cut_nxm": {"start": "cut", "method": "one_shot", "set": "2:4"} | short,
        "cut_nxm_qat": {"start": "cut_nxm", "method": "straight_through", "set": "2:4 int8"} | short,
        "taught": {"start": "dense", "teacher": "cut_nxm"} | teaching | short,
        "of_taught": {"start": "taught"} | short,
    }
    plan, _ = made(parse_study(values, "params.yaml"), tmp_path)
    entries = {key.split("-")[1]: entry for stage in plan.values() for key, entry in stage.items() if "path" in entry}
    shrunk = {name for name, entry in entries.items() if entry["structure"] == "code/structure.json"}
    assert shrunk == {"cut", "timed", "cut_nxm", "cut_nxm_qat", "taught"}
    cut = entries["cut"]
    assert cut["set"] == "code/training.json"
    assert cut["algorithm"] == "./src/nxm/methods/structured/algorithm.py"
    assert cut["callback"] == "./src/nxm/methods/structured/callback.py"
    assert {name: entry["latency"] for name, entry in entries.items() if entry["latency"] != "code/training.json"} == {
        "timed": "ms.json"
    }


def test_the_papers_runs_have_stages_of_their_own_and_all_others_share_one():
    stages = {run: Training("stsb", run, 0).stage for run in ("dense", "asp", "nxm", "distil", "nxm_plus", "mine")}
    assert stages == {
        "dense": "baseline",
        "asp": "asp",
        "nxm": "nxm",
        "distil": "distil",
        "nxm_plus": "compress",
        "mine": "compress",
    }
    assert Training("stsb", "nxm", 0, variant="x").stage == "variant"
    assert Training("stsb", "nxm", 0, variant="rho1.0", compared=False).stage == "trial"  # leaves no predictions
    assert Training("stsb", "nxm", 0, trial="lr0.1").stage == "trial"


def test_a_variant_runs_on_its_tasks_and_seeds_alone(values):
    values |= {"tasks": ["stsb", "rte"], "seeds": [3, 4]}
    own = {"values": {"epochs": 9}}
    values["variants"] = {"asp/a": own, "asp/b": own | {"tasks": ["rte"]}, "asp/c": own | {"seeds": [4]}}
    found = [training for training in trainings(parse_study(values, "params.yaml")) if training.variant]
    assert {(training.variant, training.task, training.seed) for training in found} == {
        *(("a", task, seed) for task in ("stsb", "rte") for seed in (3, 4)),
        *(("b", "rte", seed) for seed in (3, 4)),
        *(("c", task, 4) for task in ("stsb", "rte")),
    }


def test_a_students_start_is_its_teacher_or_its_own_weights(values):
    study = parse_study(values, "params.yaml")
    training = Training("stsb", "distil", 0)
    assert start_path(study, training, composed(study, training)) == Path("models/stsb/dense/seed0")
    values["student"] = {"source": "hub", "name": "distilbert/distilbert-base-uncased"}
    study = parse_study(values, "params.yaml")
    assert start_path(study, training, composed(study, training)) == Path("data/source/student")


def test_a_changed_value_changes_what_its_own_trainings_depend_on(values, tmp_path):
    _, before = made(parse_study(values, "params.yaml"), tmp_path)
    values["runs"]["asp"]["epochs"] = 9
    _, after = made(parse_study(values, "params.yaml"), tmp_path)
    assert {key for key in before if before[key] != after[key]} == {"asp-stsb-asp-seed0"}
    values["trainer"]["weight_decay"] = 0.1
    _, last = made(parse_study(values, "params.yaml"), tmp_path)
    assert {key for key in after if after[key] != last[key]} == {"common"}


def test_a_plan_that_has_not_changed_is_left_alone(values, tmp_path):
    study = parse_study(values, "params.yaml")
    write_plan(study, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_plan(study, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# --- mistakes --------------------------------------------------------------------------------------------------------

TAUGHT = {"distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0, "temperature": 2.0}}


@pytest.mark.parametrize(
    ("run", "change", "messages"),
    [
        (
            "nxm",
            {"method": "amdm"},
            [f"run 'nxm' on stsb: method 'amdm' is unknown; known are {', '.join(METHODS)}, or null"],
        ),
        (
            "nxm",
            {"set": "2:x"},
            ["nxm on stsb: set = '2:x'", "not a constraint set; known notations: ", '"2:4"', '"50 %"'],
        ),
        ("nxm", {"set": "4:4"}, ["nxm on stsb: set = '4:4'", "4"]),
        (
            "nxm",
            {"start": "dens"},
            [
                "run 'nxm': start = 'dens' is no other run of the study (admm_unstructured, asp, dense,",
                "or pretrained or student",
            ],
        ),
        ("nxm", {"start": "nxm"}, ["run 'nxm': start = 'nxm' is no other run of the study"]),
        (
            "distil",
            {"teacher": "dens"},
            ["run 'distil': teacher = 'dens' is no other run of the study (admm_unstructured,"],
        ),
        ("nxm", {"intervall": 3}, ["run 'nxm' on stsb: unknown key 'intervall'; did you mean 'interval'?"]),
        (
            "nxm",
            {"by_task": {"stsb": {"intervall": 3}}},
            ["run 'nxm' on stsb: unknown key 'intervall'; did you mean 'interval'?"],
        ),
        ("nxm", {"by_task": {"stsbb": {"interval": 3}}}, ["'runs.nxm.by_task' names stsbb; known are mnli, "]),
        ("nxm", {"by_tasks": {}}, ["run 'nxm' on stsb: unknown key 'by_tasks'"]),
        ("nxm", {"activations": {"bits": 9}}, ["run 'nxm' on stsb: activations.bits = 9"]),
        ("nxm", {"activations": {}, "epochs": 0}, ["activations need training, which tracks their ranges"]),
    ],
)
def test_a_mistake_in_a_run_is_named_with_what_would_be_right(values, tmp_path, run, change, messages):
    values["runs"][run] |= change
    with pytest.raises(UserError) as error:
        write_plan(parse_study(values, "params.yaml"), tmp_path)
    for message in messages:
        assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": {"start": "distil_nxm"}}, "run 'dense' needs its own model, through its start or its teacher"),
        ({"dense": {"teacher": "nxm"} | TAUGHT, "nxm": {"start": "dense"}}, "run 'dense' needs its own model"),
        ({"asp": {"start": "nxm"}, "nxm": {"start": "asp"}}, "run 'asp' needs its own model"),
    ],
)
def test_runs_that_need_each_other_are_refused(values, changes, message):
    for run, change in changes.items():
        values["runs"][run] |= change
    with pytest.raises(UserError, match=message):
        parse_study(values, "params.yaml")


def test_an_unknown_task_is_named_with_the_known_ones(values):
    with pytest.raises(UserError, match=r"'tasks' names stsbb; known here are mnli, .*rte"):
        parse_study(values | {"tasks": ["stsb", "stsbb"]}, "params.yaml")


def test_a_variant_of_an_unknown_run_is_named(values):
    with pytest.raises(UserError, match="variant 'nmx/rho1' is of 'nmx', which 'runs' does not name"):
        parse_study(values | {"variants": {"nmx/rho1": {"values": {"rho": 1.0}}}}, "params.yaml")


@pytest.mark.situation("settings", "a pattern whose groups do not fit the weights' width", "refused")
@pytest.mark.parametrize(
    ("targets", "fits"),
    [
        ({}, {"1:4": True, "1:6": False, "1:5": False}),
        ({"exclude": ["output"]}, {"1:4": True, "1:6": True, "1:5": False}),
    ],
)
def test_a_set_is_compared_with_the_weights_that_are_here(values, tmp_path, targets, fits):
    """Widths 32 and 48: groups of 4 fit both; groups of 6 one, which may be the targets'; groups of 5 neither."""
    values["targets"] |= targets
    weights = tmp_path / "data/source/weights"
    for notation, fit in fits.items():
        values["runs"]["nxm"]["set"] = notation
        study = parse_study(values, "params.yaml")
        write_plan(study, tmp_path)  # nothing is fetched yet
        weights.mkdir(parents=True)
        (weights / "config.json").write_text(json.dumps({"hidden_size": 32, "intermediate_size": 48}))
        if fit:
            write_plan(study, tmp_path)
        else:
            with pytest.raises(UserError, match=rf"nxm on stsb: set = '{notation}': the weights: input width"):
                write_plan(study, tmp_path)
        shutil.rmtree(weights)


MIXED = {"bits": 2.8, "choices": ["2:4 int4", "2:4 int3", "int4", "dense"]}


def test_a_run_with_a_set_for_each_matrix_depends_on_the_code_of_all_sets(values, tmp_path):
    values["runs"]["nxm"] |= {"set": MIXED, "start": "dense"}
    values["variants"] = {"nxm/smaller": {"values": {"set": MIXED | {"bits": 2.6}}}}
    stages, spelled = made(parse_study(values, "params.yaml"), tmp_path)
    assert stages["nxm"]["stsb-nxm-seed0"]["set"] == "code/allocation.json"
    assert stages["asp"]["stsb-asp-seed0"]["set"] == "./src/nxm/sets/nm.py"
    assert '"bits": 2.8' in spelled["nxm-stsb-nxm-seed0"]
    assert '"bits": 2.6' in spelled["variant-stsb-nxm-smaller-seed0"]


@pytest.mark.situation("settings", "an allocation with an unknown choice, a wrong budget or one choice", "refused")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": MIXED | {"choices": ["2:4", "int9"]}}, "nxm on stsb: set.choices = 'int9': integers have 2 to 8 bits"),
        ({"set": MIXED | {"choices": ["2:4", "magic"]}}, "set.choices = 'magic': 'magic' is not a constraint set"),
        ({"set": MIXED | {"choices": ["2:4"]}}, "set.choices: List should have at least 2 items"),
        ({"set": MIXED | {"choices": ["2:4", "2:4"]}}, "set.choices: '2:4' is listed twice"),
        ({"set": MIXED | {"bits": 0.0}}, "set.bits = 0.0: Input should be greater than 0"),
        ({"set": MIXED | {"bits": "2"}}, "set.bits = '2': Input should be a valid number"),
        ({"set": {"bits": 2.0}}, "'set.choices' is missing"),
        ({"set": MIXED | {"exampels": 3}}, "unknown key 'set.exampels'; did you mean 'examples'?"),
        ({"set": MIXED | {"examples": 10**6}}, "set.examples = 1000000 is more than the 1280 training examples"),
        ({"set": MIXED, "start": "pretrained"}, "'pretrained' has no trained head: start from a run, such as dense"),
        ({"set": 24}, "set = 24: Input should be a valid string"),
        ({"set": MIXED | {"choices": ["int4", "int3"]}, "permute": True}, "the choices of set have none"),
        ({"set": MIXED | {"choices": ["1:4", "2:4 int3"]}, "permute": True}, "the choices of set have 1:4, 2:4"),
    ],
)
def test_a_mistake_in_an_allocation_is_named(values, tmp_path, change, message):
    values["runs"]["nxm"] |= {"start": "dense"} | change
    with pytest.raises(UserError) as error:
        write_plan(parse_study(values, "params.yaml"), tmp_path)
    assert message in str(error.value)


def test_a_student_without_a_trained_head_measures_no_sensitivity(values, tmp_path):
    values["student"] = {"source": "local", "name": "student"}
    values["runs"]["nxm"] |= {"start": "student", "set": MIXED}
    with pytest.raises(
        UserError, match=r"run 'nxm': set: sensitivities are measured on .* this student has no trained"
    ):
        write_plan(parse_study(values, "params.yaml"), tmp_path)


def test_structured_pruning_with_integer_activations_is_refused(values, tmp_path):
    plain = {name: values["runs"]["dense"][name] for name in ("epochs", "learning_rate", "batch_size")}
    pruned = {"start": "dense", "method": "structured", "recipe": "learned", "budget": 0.5, "activations": {}}
    values["runs"]["nxm"] = plain | pruned
    with pytest.raises(UserError, match="activations with method 'structured': it ends with another, smaller model"):
        write_plan(parse_study(values, "params.yaml"), tmp_path)


@pytest.mark.parametrize(("value", "said"), [(None, "null"), (True, "true"), (3e-4, "0.0003"), ("dense", "dense")])
def test_a_value_that_is_tried_can_name_a_trial(value, said):
    assert say_value(value) == said
