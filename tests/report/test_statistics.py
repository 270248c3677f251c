"""Statistics: scores over seeds and tasks, retention, intervals, and the sentences made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest

from nxm.report import paper, scores, statistics
from nxm.report.evidence import Evidence
from nxm.study.results import Result
from synthetic_study import EMPTY, make_draws, make_result

# --- the paper's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "mean"),
    [
        ("dense", 81.78),
        ("admm_unstructured", 81.28),
        ("asp", 78.84),
        ("nxm", 80.49),
        ("distil", 78.55),
        ("distil_nxm", 76.63),
    ],
)
def test_the_geometric_mean_of_eight_columns_is_the_papers_average(run: str, mean: float) -> None:
    assert round(paper.average(run, paper.COLUMNS), 2) == mean
    assert paper.average(run, paper.COLUMNS) == pytest.approx(paper.PRINTED_AVERAGE[run], abs=0.06)


def test_the_papers_retention_is_what_its_text_states() -> None:
    means = {run: paper.average(run, paper.COLUMNS) for run in paper.SCORES}
    assert round(statistics.retention(means["nxm"], means["dense"]), 1) == 98.4
    assert round(statistics.retention(means["distil_nxm"], means["distil"]), 1) == 97.6


def test_the_papers_grid_is_by_size_of_task() -> None:
    assert paper.grid("nxm", "qnli").rho == (4e-4, 1e-3, 3e-3)
    assert paper.grid("nxm", "stsb").learning_rate == (5e-5, 7e-5, 9e-5, 1e-4)
    assert paper.grid("dense", "mnli").learning_rate == (1e-5, 3e-5, 5e-5)
    assert paper.grid("distil", "stsb") is None


@pytest.mark.parametrize("values", [[0.0, 50.0], [-3.0, 50.0]])
def test_a_score_that_is_not_positive_makes_a_geometric_mean_0(values: list[float]) -> None:
    assert paper.geometric_mean(values) == 0.0


def test_the_papers_score_is_of_one_task_or_the_geometric_mean_over_the_columns_of_several() -> None:
    assert statistics.paper_score("nxm", ["stsb"]) == 89.3
    assert statistics.paper_score("nxm", ["mnli"]) == (82.3 + 83.4) / 2
    columns = ["mnli_m", "mnli_mm", "cola", "stsb"]
    assert statistics.paper_score("nxm", ["stsb", "cola", "mnli"]) == paper.average("nxm", columns)
    assert statistics.paper_score("nxm_plus", ["stsb"]) is statistics.paper_score("nxm_plus", ["stsb", "cola"]) is None


# --- scores --------------------------------------------------------------------------------------------------------


def test_mnli_counts_as_two_columns(many: Evidence) -> None:
    columns = statistics.columns_of(many.results)
    assert columns == ["mnli_m", "mnli_mm", "cola", "stsb"]
    result = make_result("several", "mnli", "dense", 1)
    assert statistics.column_values(result)["mnli_m"] != statistics.column_values(result)["mnli_mm"]


def test_an_average_needs_every_task() -> None:
    results = [make_result(task="stsb"), make_result(task="cola")]
    assert statistics.average_score(results, "nxm", ["cola", "stsb"]) is not None
    assert statistics.average_score(results, "nxm", ["cola", "stsb", "rte"]) is None


def test_a_runs_score_is_that_of_one_task_or_the_geometric_mean_over_the_columns_of_several(many: Evidence) -> None:
    columns = ["mnli_m", "mnli_mm", "stsb"]
    without_cola = [result for result in many.results if result.task != "cola"]
    for tasks, expected, by_seed in (
        (
            ["mnli"],
            statistics.task_score(many.results, "nxm", "mnli"),
            {r.seed: r.metric.value for r in statistics.runs_of(many.results, "nxm") if r.task == "mnli"},
        ),
        (
            ["stsb", "mnli"],
            statistics.average_score(without_cola, "nxm", columns),
            statistics.seed_averages(without_cola, "nxm", columns),
        ),
    ):
        assert statistics.method_score(many.results, "nxm", tasks) == expected
        assert statistics.seed_scores(many.results, "nxm", tasks) == by_seed
    assert statistics.method_score(many.results, "nxm", ["stsb", "rte"]) is None


def test_several_tasks_are_followed_by_all_of_them_together() -> None:
    assert statistics.task_groups(["cola", "stsb"]) == [["cola"], ["stsb"], ["cola", "stsb"]]
    assert statistics.task_groups(["stsb"]) == [["stsb"]]
    assert statistics.task_groups([]) == []


def test_trials_and_variants_do_not_count_as_runs(one: Evidence) -> None:
    own = make_result(run="nxm").metric.value
    assert statistics.task_score(one.results, "nxm", "stsb").values == (own,)
    assert statistics.task_score(one.results, "nxm_paper", "stsb") is None


def test_a_variant_is_no_whole_run_and_no_trial_of_a_search(ablation: Evidence) -> None:
    whole, permuted = (
        statistics.task_score(ablation.results, name, "stsb") for name in ("nxm_plus", "nxm_plus/permuted")
    )
    assert whole.values == tuple(84.0 * 0.99 + seed for seed in (1, 2))
    assert permuted.mean == pytest.approx(84.0 * 0.991 + 1.5)
    assert statistics.trials_of(ablation.results) == []


def test_spread_is_the_sample_deviation_and_one_seed_has_none() -> None:
    assert statistics.score([80.0]).spread is None
    assert statistics.score([80.0, 82.0]).spread == pytest.approx(2**0.5)
    assert str(statistics.score([80.0, 82.0])) == "81.0 ± 1.4"


def test_a_collapsed_seed_is_never_left_out_of_a_mean() -> None:
    results = [
        make_result(task="cola", run="asp", seed=seed, score=score) for seed, score in enumerate((5.0, 0.0, 3.0))
    ]
    assert statistics.average_score(results, "asp", ["cola"]).mean == pytest.approx(8 / 3)
    results += [make_result(task="stsb", run="asp", seed=seed, score=80.0) for seed in range(3)]
    average = statistics.average_score(results, "asp", ["cola", "stsb"])
    assert average.mean == pytest.approx((8 / 3 * 80.0) ** 0.5)
    assert average.values == pytest.approx((400.0**0.5, 0.0, 240.0**0.5))
    assert statistics.collapsed_phrase(results).endswith("for a score of 0 or less: ASP on CoLA, seed 1.")
    assert not statistics.collapsed_phrase(result for result in results if result.task == "cola")


# --- differences and intervals -------------------------------------------------------------------------------------


def test_a_rival_that_collapsed_is_still_compared_with(collapsed: Evidence) -> None:
    """There is a difference and its interval; the retention of nothing is not defined."""
    rival = statistics.task_score(collapsed.results, "asp", "cola").mean
    for tasks, expected in ((["cola"], 9.0 - rival), (["cola", "stsb"], (9.0 * 84.0) ** 0.5)):
        difference = statistics.difference(collapsed, "nxm", "asp", tasks)
        assert difference.value == pytest.approx(expected)
        assert difference.certain
        assert statistics.retention_interval(collapsed, "nxm", "asp", tasks) is None


def test_a_difference_is_of_the_seeds_that_both_have(ablation: Evidence) -> None:
    lacking = ("nxm_plus/no-teacher", 2)
    evidence = replace(ablation, results=[run for run in ablation.results if (run.full_name, run.seed) != lacking])
    points = statistics.difference(evidence, "nxm_plus/no-teacher", "nxm_plus", ["stsb"])
    assert points.value == pytest.approx(84.0 * (0.97 - 0.99))  # with all seeds of NxM+ it would be half a point less
    heldout = statistics.heldout_difference(evidence, "nxm_plus/no-teacher", "nxm_plus", ["stsb"])
    assert heldout == pytest.approx(84.0 * (0.97 - 0.99))


def test_the_interval_of_a_geometric_mean_is_narrower_than_a_tasks(many: Evidence) -> None:
    tasks = ["stsb", "cola"]
    results = [result for result in many.results if result.task in tasks]
    bootstrap = {task: {"nxm": make_draws(5, k), "asp": make_draws(0, k + 9)} for k, task in enumerate(tasks)}
    evidence = Evidence("several", results, None, bootstrap)
    assert statistics.difference(evidence, "nxm", "asp", tasks).value == pytest.approx(
        paper.geometric_mean(statistics.task_score(results, "nxm", task).mean for task in tasks)
        - paper.geometric_mean(statistics.task_score(results, "asp", task).mean for task in tasks)
    )
    single, mean = (statistics.difference(evidence, "nxm", "asp", group) for group in (["stsb"], tasks))
    assert mean.high - mean.low < 0.9 * (single.high - single.low)


def with_heldout(result: Result, value: float) -> Result:
    return result.model_copy(update={"heldout": result.metric.model_copy(update={"value": value})})


def test_held_out_differences_are_of_the_geometric_mean_too() -> None:
    values = {("cola", "nxm"): 20.0, ("stsb", "nxm"): 80.0, ("cola", "asp"): 5.0, ("stsb", "asp"): 45.0}
    results = [with_heldout(make_result(task=task, run=run), value) for (task, run), value in values.items()]
    evidence = Evidence("embedded", results, None)
    assert statistics.heldout_difference(evidence, "nxm", "asp", ["cola", "stsb"]) == pytest.approx(40.0 - 15.0)
    assert statistics.heldout_difference(evidence, "nxm", "asp", ["cola"]) == 15.0
    assert statistics.heldout_difference(evidence, "nxm", "dense", ["cola", "stsb"]) is None


# --- sentences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"), [(9e-5, "9e-5"), (3e-4, "3e-4"), (0.003, "0.003"), (32, "32"), (0.35, "0.35")]
)
def test_hyperparameters_print_as_people_write_them(value: float, text: str) -> None:
    assert statistics.plain(value) == text


def test_a_table_notes_which_values_are_not_the_best_of_the_search(one: Evidence) -> None:
    search = one.settings.search.model_copy(update={"by": "heldout"})
    searched = replace(one, selection="heldout", settings=one.settings.model_copy(update={"search": search}))
    text = statistics.selection_phrase(searched)
    assert text.endswith("Not so ASP on STS-B and NxM on STS-B: their values are not (or not yet) the grid's best.")
    best = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"learning_rate": 0.0003}})
        if run.whole
        else run
        for run in one.results
    ]
    assert "By a grid on training rows held out" in statistics.selection_phrase(replace(searched, results=best))
    assert "Not so" not in statistics.selection_phrase(replace(searched, results=best))
    assert "Not so" not in statistics.selection_phrase(one)  # nothing was searched for


def test_the_precision_of_a_run_is_stated_where_it_was_not_fp32() -> None:
    run = make_result()
    autocast = run.model_copy(update={"provenance": run.provenance.model_copy(update={"precision": "bf16"})})
    plain = statistics.machine_phrase([run])
    assert statistics.machine_phrase([autocast]) == f"{plain[:-1]}, bf16 autocast."
    assert statistics.machine_phrase([run, autocast]).count(";") == 1
    assert "autocast" not in plain


# --- files for `dvc metrics` and `dvc plots` -----------------------------------------------------------------------


def test_scores_and_courses_hold_what_the_results_hold(many: Evidence) -> None:
    found = json.loads(scores.scores(many))
    assert list(found) == ["mnli", "cola", "stsb", "geometric_mean"]
    assert found["stsb"]["nxm"] == round(statistics.task_score(many.results, "nxm", "stsb").mean, 2)
    course = pd.read_csv(StringIO(scores.courses(many)))
    row = course[(course["task"] == "cola") & (course["method"] == "asp") & (course["epoch"] == 10)]
    assert row["score"].item() == pytest.approx(statistics.task_score(many.results, "asp", "cola").mean, abs=0.01)
    assert scores.scores(EMPTY) == "{}\n"
