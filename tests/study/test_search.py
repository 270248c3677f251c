"""The grid: every combination once, and the best of it by the score that was asked for."""

from __future__ import annotations

import pytest

from nxm.study import search as selection
from nxm.study.results import Result
from synthetic_study import make_failure, make_result

VALUES = {
    "tasks": ["stsb", "mnli"],
    "asp": {"stsb": {"epochs": 5, "learning_rate": 9e-5, "batch_size": 32}, "mnli": {"epochs": 2}},
    "nxm": {"stsb": {"epochs": 5, "rho": 0.25}, "mnli": {}},
    "seeds": [3, 4],
    "asp_plus": {"stsb": {"epochs": 6, "learning_rate": 1e-4}, "mnli": {"epochs": 1}},
    "ablation": {"longer": {"method": "asp_plus", "values": {"epochs": 9}}},
    "grid": {
        "seeds": [8, 9],
        "small": {"asp": {"learning_rate": [5e-5, 3e-4]}, "nxm": {"learning_rate": [1e-4], "rho": [0.1, 0.2]}},
        "large": {"asp": {"batch_size": [16]}},
    },
}


def done(cell: dict, dev: float, heldout: float) -> Result:
    result = make_result("s", cell["task"], cell["method"], cell["seed"], cell["cell"], score=dev)
    score = result.metric.model_copy(update={"value": heldout})
    return result.model_copy(update={"heldout": score, "hyperparameters": cell["values"]})


@pytest.fixture
def cells() -> dict:
    return selection.expand(VALUES)


def test_a_cell_is_a_combination_with_the_rest_of_its_methods_values(cells):
    assert len(cells) == 2 * (2 + 2 + 1)
    assert cells["stsb-asp-lr5e-05-seed8"] == {
        "task": "stsb",
        "method": "asp",
        "seed": 8,
        "cell": "lr5e-05",
        "values": {"epochs": 5, "learning_rate": 5e-5, "batch_size": 32},
    }
    assert cells["stsb-nxm-lr0_0001-rho0_2-seed9"]["values"] == {"epochs": 5, "rho": 0.2, "learning_rate": 1e-4}
    assert cells["mnli-asp-bs16-seed8"]["values"] == {"epochs": 2, "batch_size": 16}
    assert not any("." in key for key in cells)  # DVC would look for nested keys


def test_a_new_value_adds_cells_and_changes_none(cells):
    more = selection.expand(
        VALUES | {"grid": VALUES["grid"] | {"small": {"asp": {"learning_rate": [5e-5, 3e-4, 1e-4]}}}}
    )
    assert all(more[key] == cell for key, cell in cells.items() if cell["method"] == "asp" and cell["task"] == "stsb")
    assert "stsb-asp-lr0_0001-seed8" in more


def test_the_best_mean_over_seeds_by_the_score_asked_for(cells):
    scores = {"lr5e-05": ((70.0, 60.0), (71.0, 61.0)), "lr0.0003": ((80.0, 50.0), (90.0, 50.0))}
    asp = [cell for cell in cells.values() if (cell["method"], cell["task"]) == ("asp", "stsb")]
    results = [done(cell, *scores[cell["cell"]][cell["seed"] - 8]) for cell in asp]
    by = {by: selection.choose(cells, results, [], by) for by in ("dev", "heldout")}
    assert set(by["dev"]) == {("asp", "stsb")}  # no other method is whole
    assert by["dev"]["asp", "stsb"]["learning_rate"] == 3e-4
    assert by["heldout"]["asp", "stsb"] == {"epochs": 5, "learning_rate": 5e-5, "batch_size": 32}


def test_nothing_is_chosen_before_all_cells_are_done_and_never_one_that_failed(cells):
    asp = [cell for cell in cells.values() if (cell["method"], cell["task"]) == ("asp", "stsb")]
    results = [done(cell, 80.0 if cell["cell"] == "lr0.0003" else 60.0, 0.0) for cell in asp]
    assert selection.choose(cells, results[:-1], [], "dev") == {}
    failed = next(cell for cell in asp if cell["cell"] == "lr0.0003")
    failure = make_failure("s", method="asp", seed=failed["seed"], cell="lr0.0003", hyperparameters=failed["values"])
    rest = [run for run in results if (run.cell, run.seed) != ("lr0.0003", failed["seed"])]
    assert selection.choose(cells, rest, [failure], "dev")["asp", "stsb"]["learning_rate"] == 5e-5


def test_a_run_of_an_earlier_state_of_the_grid_does_not_count(cells):
    asp = [cell for cell in cells.values() if (cell["method"], cell["task"]) == ("asp", "stsb")]
    results = [done(cell, 80.0, 80.0) for cell in asp]
    longer = selection.expand(VALUES | {"asp": {"stsb": VALUES["asp"]["stsb"] | {"epochs": 9}, "mnli": {}}})
    assert ("asp", "stsb") in selection.choose(cells, results, [], "heldout")
    assert selection.choose(longer, results, [], "heldout") == {}


def test_cells_from_the_dense_model_say_which_one():
    values = VALUES | {"grid": {"seeds": [8], "small": {"asp_plus": {"learning_rate": [2e-4]}}}}
    (cell,) = selection.expand(values).values()
    assert cell["dense_seed"] == 3  # the study's first: the search's own seed has no dense model
    assert cell["values"] == {"epochs": 6, "learning_rate": 2e-4}


def test_where_a_run_starts_can_be_searched_too():
    block = {"epochs": 5, "learning_rate": 1e-4, "batch_size": 32, "start": "dense"}
    searched = {"learning_rate": [3e-4], "start": ["dense", "pretrained"]}
    values = VALUES | {
        "asp_plus": {"stsb": block},
        "grid": VALUES["grid"] | {"small": {"asp_plus": searched}, "large": {}},
    }
    found = selection.expand(values | {"tasks": ["stsb"]})
    starts = {cell["cell"]: cell["values"]["start"] for cell in found.values()}
    assert starts == {"lr0.0003-from-dense": "dense", "lr0.0003-from-pretrained": "pretrained"}


def test_variants_are_their_methods_values_with_one_changed_from_the_dense_model_of_their_seed():
    assert selection.expand_ablation(VALUES | {"seeds": [3]}) == {
        "stsb-asp_plus-longer-seed3": {
            "task": "stsb",
            "method": "asp_plus",
            "seed": 3,
            "cell": "longer",
            "values": {"epochs": 9, "learning_rate": 1e-4},
            "dense_seed": 3,
        },
        "mnli-asp_plus-longer-seed3": {
            "task": "mnli",
            "method": "asp_plus",
            "seed": 3,
            "cell": "longer",
            "values": {"epochs": 9},
            "dense_seed": 3,
        },
    }


def test_a_variant_runs_on_the_tasks_that_it_names_alone():
    longer = VALUES["ablation"]["longer"]
    for tasks, cells in ((["mnli"], ["mnli-asp_plus-longer-seed3"]), (None, ["stsb-", "mnli-"])):
        found = selection.expand_ablation(VALUES | {"seeds": [3], "ablation": {"longer": longer | {"tasks": tasks}}})
        assert len(found) == len(cells)
        assert all(name.startswith(start) for name, start in zip(found, cells, strict=True))
