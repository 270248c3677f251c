"""The search: every combination once, and the best of it by the score that was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from nxm.config import read_yaml
from nxm.study.plan import Training, composed, trainings, trials
from nxm.study.results import Result
from nxm.study.search import choose
from nxm.study.settings import Study, parse_study
from records import ROOT, failure, record

COMMON = {"epochs": 5, "learning_rate": 9e-5, "batch_size": 32}
ADMM = {"method": "admm", "set": "2:4", "recipe": "proximal", "rho": 0.25}
TAUGHT = {"start": "dense", "teacher": "dense", "distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0}}
TAUGHT["distillation"]["temperature"] = 2.0
RUNS = {
    "dense": COMMON,
    "asp": COMMON | {"method": "one_shot", "set": "2:4", "by_task": {"mnli": {"epochs": 2}}},
    "nxm": COMMON | ADMM,
    "asp_plus": COMMON | TAUGHT | {"method": "one_shot", "set": "2:4", "epochs": 6},
}
SEARCH = {
    "by": "heldout",
    "seeds": [8, 9],
    "runs": {
        "asp": {"values": {"learning_rate": [5e-5, 3e-4]}, "large": {"batch_size": [16]}},
        "nxm": {"values": {"learning_rate": [1e-4], "rho": [0.1, 0.2]}},
    },
}


def make(**changes: Any) -> Study:
    """Return a study of two tasks, of which MNLI is a large one."""
    values = read_yaml(ROOT / "params.yaml") | {"tasks": ["stsb", "mnli"], "seeds": [3, 4], "runs": RUNS}
    values["deployment"]["devices"] = []  # it would name runs that are not here
    values |= {"variants": {}, "search": SEARCH, "benchmark": values["benchmark"] | {"seeds": []}}
    return parse_study(values | changes, "params.yaml")


def search_of(**runs: Any) -> dict[str, Any]:
    return SEARCH | {"runs": runs}


def done(study: Study, training: Training, dev: float, heldout: float) -> Result:
    held = {"name": "spearman", "value": heldout}
    values = composed(study, training).model_dump(mode="json")
    return record(training, score=dev, heldout=held, hyperparameters=values, admm=None)


def asp_trials(study: Study) -> list[Training]:
    return [training for training in trials(study) if (training.task, training.run) == ("stsb", "asp")]


def test_a_trial_is_a_combination_with_the_rest_of_its_runs_values():
    study = make()
    found = {training.key: training for training in trials(study)}
    assert len(found) == 2 * (2 + 2 + 1 + 2)  # seeds; on MNLI ASP tries another list, NxM the same
    asp = composed(study, found["stsb-asp-lr5e-05-seed8"])
    assert (asp.epochs, asp.learning_rate, asp.batch_size) == (5, 5e-5, 32)
    nxm = composed(study, found["stsb-nxm-lr0_0001-rho0_2-seed9"])
    assert (nxm.epochs, nxm.learning_rate, nxm.rho) == (5, 1e-4, 0.2)
    large = composed(study, found["mnli-asp-bs16-seed8"])
    assert (large.epochs, large.learning_rate, large.batch_size) == (2, 9e-5, 16)
    assert not any("." in key for key in found)  # DVC would look for nested keys
    assert found["stsb-nxm-lr0_0001-rho0_2-seed9"].path == "search/stsb/nxm/lr0.0001-rho0.2/seed9"


def test_a_new_value_adds_trials_and_changes_none():
    before = set(asp_trials(make()))
    more = make(search=search_of(asp={"values": {"learning_rate": [5e-5, 3e-4, 1e-4]}}))
    added = set(asp_trials(more)) - before
    assert before < set(asp_trials(more))
    assert {training.key for training in added} == {"stsb-asp-lr0_0001-seed8", "stsb-asp-lr0_0001-seed9"}


@pytest.mark.parametrize(("by", "trial", "rate"), [("dev", "lr0.0003", 3e-4), ("heldout", "lr5e-05", 5e-5)])
def test_the_best_mean_over_seeds_by_the_score_asked_for(by, trial, rate):
    study = make()
    scores = {"lr5e-05": ((70.0, 60.0), (71.0, 61.0)), "lr0.0003": ((80.0, 50.0), (90.0, 50.0))}
    results = [done(study, training, *scores[training.trial][training.seed - 8]) for training in asp_trials(study)]
    best = choose(study, "stsb", "asp", results, [], by)
    assert (best.trial, dict(best.values)) == (trial, {"learning_rate": rate})
    assert choose(study, "stsb", "nxm", results, [], by) is None  # no other run is whole
    assert choose(study, "mnli", "asp", results, [], by) is None


def test_the_first_in_the_searchs_order_wins_among_equals():
    study = make()
    results = [done(study, training, 70.0, 70.0) for training in asp_trials(study)]
    assert choose(study, "stsb", "asp", results[::-1], [], "dev").trial == "lr5e-05"


def test_nothing_is_chosen_before_all_trials_are_done_and_never_one_that_failed():
    study = make()
    planned = asp_trials(study)
    results = [done(study, training, 80.0 if training.trial == "lr0.0003" else 60.0, 0.0) for training in planned]
    assert choose(study, "stsb", "asp", results[:-1], [], "dev") is None
    assert choose(study, "stsb", "asp", results, [], "dev").trial == "lr0.0003"
    lost = next(training for training in planned if training.trial == "lr0.0003")  # with one of its two seeds
    failed = failure(lost, hyperparameters=composed(study, lost).model_dump(mode="json"))
    rest = [result for result in results if (result.trial, result.seed) != ("lr0.0003", lost.seed)]
    assert choose(study, "stsb", "asp", rest, [failed], "dev").trial == "lr5e-05"
    every = [
        failure(training, hyperparameters=composed(study, training).model_dump(mode="json")) for training in planned
    ]
    assert choose(study, "stsb", "asp", [], every, "dev") is None


def test_a_trial_with_former_values_of_the_run_does_not_count():
    study = make()
    results = [done(study, training, 80.0, 80.0) for training in asp_trials(study)]
    longer = make(runs=RUNS | {"asp": RUNS["asp"] | {"epochs": 9}})
    assert choose(study, "stsb", "asp", results, [], "heldout") is not None
    assert choose(longer, "stsb", "asp", results, [], "heldout") is None


def test_a_run_of_the_same_values_is_no_trial():
    study = make()
    whole = [Training("stsb", "asp", seed) for seed in (8, 9)]
    results = [done(study, training, 99.0, 99.0) for training in whole]
    results += [done(study, training, 70.0, 70.0) for training in asp_trials(study)]
    assert choose(study, "stsb", "asp", results, [], "dev").trial == "lr5e-05"


def test_a_trial_starts_from_a_model_of_the_studys_first_seed():
    study = make(search=search_of(asp_plus={"values": {"learning_rate": [2e-4]}}))
    assert study.start_seed(8) == 3  # the search's own seed has no dense model
    assert study.start_seed(4) == 4
    assert make(seeds=[], runs={"dense": COMMON}, search={}).start_seed(8) == 8


def test_the_start_of_a_run_can_be_searched_too():
    searched = {"values": {"start": ["dense", "pretrained"], "learning_rate": [3e-4]}}
    study = make(search=search_of(asp_plus=searched), tasks=["stsb"])
    starts = {training.trial: composed(study, training).start for training in trials(study)}
    assert starts == {"lr0.0003-from-dense": "dense", "lr0.0003-from-pretrained": "pretrained"}


def test_the_chosen_values_enter_the_run_and_its_variants_before_their_own_changes():
    variants = {"asp/long": {"values": {"epochs": 9}}, "asp/slow": {"values": {"learning_rate": 1e-6}}}
    study = make(variants=variants)
    chosen = {"learning_rate": 3e-4}
    found = {training.name: training for training in trainings(study) if training.task == "stsb" and not training.trial}
    values = {name: composed(study, training, chosen) for name, training in found.items() if training.chosen}
    assert set(values) == {"asp", "nxm", "asp/long", "asp/slow"}
    assert (values["asp"].epochs, values["asp"].learning_rate) == (5, 3e-4)
    assert (values["asp/long"].epochs, values["asp/long"].learning_rate) == (9, 3e-4)
    assert values["asp/slow"].learning_rate == 1e-6


def test_a_search_that_chooses_nothing_leaves_the_runs_own_values():
    study = make(search=SEARCH | {"by": None})
    assert not any(training.chosen for training in trainings(study))
    assert len(list(trials(study))) == 14
