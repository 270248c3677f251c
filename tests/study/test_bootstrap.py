"""The paired bootstrap: intervals that cover, the same draws for every method, clear ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from nxm import UserError
from nxm.data.tasks import get_task
from nxm.study.bootstrap import constant_scores, interval, resampled_scores

RTE, STSB, MNLI = get_task("rte"), get_task("stsb"), get_task("mnli")


def classes(correct: np.ndarray) -> np.ndarray:
    """Logits of a two-class model that is right where `correct` says, on labels of zero."""
    return np.stack([correct, ~correct], axis=1).astype(np.float32)


@pytest.fixture
def correct() -> np.ndarray:
    return np.random.default_rng(1).random(277) < 0.7


def test_the_interval_of_an_accuracy_is_scipys(correct):
    labels = {"validation": np.zeros(277, int)}
    draws = resampled_scores(RTE, labels, {"nxm": {0: {"validation": classes(correct)}}}, draws=4000)["nxm"][:, 0]
    reference = bootstrap((100.0 * correct,), np.mean, n_resamples=4000, method="percentile", random_state=0)
    assert interval(draws) == pytest.approx(tuple(reference.confidence_interval), abs=0.6)
    deviation = 100 * np.sqrt(correct.mean() * (1 - correct.mean()) / 277)
    low, high = interval(draws)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * deviation, rel=0.1)


def test_methods_that_agree_differ_by_nothing_in_any_draw(correct):
    predictions = {name: {seed: {"validation": classes(correct)} for seed in (0, 1)} for name in ("nxm", "asp")}
    scores = resampled_scores(RTE, {"validation": np.zeros(277, int)}, predictions, draws=50)
    assert np.array_equal(scores["nxm"], scores["asp"])
    assert np.ptp(scores["nxm"]) > 0


def test_pairing_makes_the_interval_of_a_difference_narrow(correct):
    better = correct.copy()
    better[np.flatnonzero(~correct)[:10]] = True
    predictions = {"nxm": {0: {"validation": classes(better)}}, "asp": {0: {"validation": classes(correct)}}}
    scores = resampled_scores(RTE, {"validation": np.zeros(277, int)}, predictions, draws=500)
    low, high = interval(scores["nxm"] - scores["asp"])
    assert low > 0
    assert high - low < 0.6 * (interval(scores["asp"])[1] - interval(scores["asp"])[0])


def test_seeds_that_differ_widen_the_interval():
    labels = {"validation": np.linspace(0, 5, 400)}
    random = np.random.default_rng(2)

    def scored(noise: float) -> dict:
        return {"validation": (labels["validation"] + random.normal(0, noise, 400)).astype(np.float32)[:, None]}

    alike = {"nxm": {seed: scored(1.0) for seed in range(3)}}
    unlike = {"nxm": {0: scored(0.2), 1: scored(1.0), 2: scored(3.0)}}
    widths = [
        np.ptp(interval(resampled_scores(STSB, labels, runs, draws=300)["nxm"][:, 0])) for runs in (alike, unlike)
    ]
    assert widths[1] > 3 * widths[0]


def test_mnli_has_a_column_for_each_of_its_two_splits():
    labels = {"validation_matched": np.zeros(60, int), "validation_mismatched": np.zeros(40, int)}
    right = np.tile([1.0, 0.0, 0.0], (60, 1)).astype(np.float32)
    wrong = np.tile([0.0, 1.0, 0.0], (40, 1)).astype(np.float32)
    predictions = {"nxm": {0: {"validation_matched": right, "validation_mismatched": wrong}}}
    assert resampled_scores(MNLI, labels, predictions, draws=5)["nxm"].tolist() == [[100.0, 0.0]] * 5


def test_no_predictions_give_no_scores():
    assert resampled_scores(RTE, {"validation": np.zeros(3, int)}, {}) == {}


def test_predictions_of_another_dev_set_are_refused(correct):
    labels = {"validation": np.zeros(200, int)}
    with pytest.raises(UserError, match=r"nxm on rte, seed 0: predictions for .*277.* rows.*200"):
        resampled_scores(RTE, labels, {"nxm": {0: {"validation": classes(correct)}}})


def test_a_method_that_lacks_a_seed_is_left_out(correct):
    both = {seed: {"validation": classes(correct)} for seed in (0, 1)}
    labels = {"validation": np.zeros(277, int)}
    assert set(resampled_scores(RTE, labels, {"nxm": both, "asp": both, "distil": {0: both[0]}}, draws=3)) == {
        "nxm",
        "asp",
    }


def test_tasks_are_drawn_apart():
    labels = {"validation": np.zeros(277, int)}
    right = {"nxm": {0: {"validation": classes(np.arange(277) < 200)}}}
    rte, qnli = (resampled_scores(get_task(name), labels, right, draws=20)["nxm"][:, 0] for name in ("rte", "qnli"))
    assert not np.array_equal(rte, qnli)


@pytest.mark.parametrize("name", ["mrpc", "rte", "cola", "mnli"])
def test_the_best_constant_answer_is_scikit_learns(name):
    task = get_task(name)
    random = np.random.default_rng(0)
    shares = [0.25, 0.75] if task.num_labels == 2 else [0.5, 0.3, 0.2]
    labels = {split: random.choice(task.num_labels, 200, p=shares) for split in task.evaluation}
    metric = {"f1": f1_score, "accuracy": accuracy_score, "matthews": matthews_corrcoef}[task.metric]
    inputs = np.zeros((200, 1))
    by_class = [
        {
            split: 100 * metric(y, DummyClassifier(strategy="constant", constant=c).fit(inputs, y).predict(inputs))
            for split, y in labels.items()
        }
        for c in range(task.num_labels)
    ]
    assert constant_scores(task, labels) == pytest.approx(max(by_class, key=lambda scores: sum(scores.values())))


def test_a_constant_score_correlates_with_nothing():
    assert constant_scores(STSB, {"validation": np.linspace(0, 5, 50)}) == {"validation": 0.0}
