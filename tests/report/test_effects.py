"""Effect sizes, adjusted p-values and visible differences, against SciPy, simulation and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nxm.data.tasks import compute_metrics, get_task
from nxm.report import statistics
from nxm.report.effects import (
    EXPLAINED,
    FIELDS,
    better_with_a_new_seed,
    effect_size,
    largest_statistic,
    measured,
    p_value,
    smallest_visible,
    texts,
)
from nxm.report.verdict.rescored import rescored_draws
from nxm.study.bootstrap import interval

SEEDS = st.lists(st.floats(-50, 50), min_size=3, max_size=8)


def test_the_effect_size_is_the_true_one_in_the_mean():
    """Hedges' factor takes out the bias, which for four seeds is 38 %."""
    samples = np.random.default_rng(0).normal(0.7, 1.0, size=(20_000, 4))
    assert np.mean([effect_size(sample) for sample in samples]) == pytest.approx(0.7, abs=0.02)
    assert np.mean(samples.mean(axis=1) / samples.std(axis=1, ddof=1)) > 0.9


@given(SEEDS, st.floats(0.01, 100))
def test_effect_size_and_probability_depend_on_no_unit_and_turn_round_with_the_sign(values, unit):
    turned = [-unit * value for value in values]
    if effect_size(values) is None:
        assert np.ptp(values) < 1e-150  # the square of less is 0 in floating point
    elif np.std(values) > 1e-6:
        assert effect_size(turned) == pytest.approx(-effect_size(values), abs=1e-9)
        assert better_with_a_new_seed(turned) == pytest.approx(1 - better_with_a_new_seed(values), abs=1e-9)


def test_the_probability_for_a_new_seed_is_that_of_the_posterior_predictive_distribution():
    """Draws of the variance, then the mean, then a new difference, from a normal model with a flat prior."""
    values, random = np.array([1.2, -0.3, 2.0]), np.random.default_rng(0)
    n, size = len(values), 400_000
    variance = values.var(ddof=1) * (n - 1) / random.chisquare(n - 1, size)
    new = random.normal(random.normal(values.mean(), np.sqrt(variance / n)), np.sqrt(variance))
    assert better_with_a_new_seed(values) == pytest.approx((new > 0).mean(), abs=0.003)


@pytest.mark.parametrize(
    ("values", "probability"), [([1.0], None), ([2.0, 2.0], 1.0), ([0.0] * 3, 0.5), ([-1.0] * 2, 0.0)]
)
def test_without_spread_or_with_one_seed_there_is_no_distribution(values, probability):
    assert better_with_a_new_seed(values) == probability
    assert effect_size(values) is None


@given(st.floats(-4, 4))
def test_p_is_below_a_twentieth_where_the_interval_excludes_zero(shift):
    draws = np.random.default_rng(0).normal(size=1000) + shift
    low, high = interval(draws)
    if p_value(draws) < 0.045:
        assert low > 0 or high < 0
    if p_value(draws) > 0.055:
        assert low <= 0 <= high
    assert p_value(draws) == p_value(-draws)
    assert 0 < p_value(draws) <= 1


def test_one_comparison_needs_no_correction_and_its_copies_need_none():
    draws = np.random.default_rng(0).normal(2.0, 1.0, size=20_000)
    alone = largest_statistic({"a": draws})["a"]
    assert alone == pytest.approx(2 * stats.norm.sf(2.0), abs=0.01)
    assert largest_statistic({"a": draws, "copy": draws, "turned": -draws}) == dict.fromkeys(
        ("a", "copy", "turned"), alone
    )


def test_independent_comparisons_are_corrected_as_by_sidak():
    draws = np.random.default_rng(0).normal(size=(10, 20_000))
    draws = (draws - draws.mean(axis=1, keepdims=True)) / draws.std(axis=1, ddof=1, keepdims=True) + 2.5
    found = largest_statistic({str(i): own for i, own in enumerate(draws)})
    assert found["0"] == pytest.approx(1 - (1 - 2 * stats.norm.sf(2.5)) ** 10, abs=0.01)


def test_comparisons_without_spread_are_certain_or_nothing():
    draws = {"none": np.zeros(1000), "sure": np.ones(1000), "noisy": np.random.default_rng(0).normal(size=1000)}
    found = largest_statistic(draws)
    assert found["none"] == 1.0
    assert found["sure"] < 0.002
    assert largest_statistic({}) == {}


def test_a_difference_as_large_as_is_visible_is_shown_four_times_of_five():
    random, error = np.random.default_rng(0), 0.7
    visible = smallest_visible(random.normal(0, error, size=50_000))
    estimates = random.normal(visible, error, size=50_000)
    assert (np.abs(estimates) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_with_one_seed_the_interval_of_a_difference_is_close_to_scipys_bca(name):
    """The bias-corrected and accelerated interval of the paired bootstrap over dev examples."""
    task, random, rows = get_task(name), np.random.default_rng(0), 400
    if task.regression:
        labels = random.uniform(0, 5, rows)
        logits = [(labels + scale * random.normal(size=rows))[:, None].astype(np.float32) for scale in (1.0, 1.6)]
    else:
        labels = random.integers(0, 2, rows)
        logits = [(np.eye(2)[labels] + s * random.normal(size=(rows, 2))).astype(np.float32) for s in (0.6, 1.0)]
    predictions = {method: {0: {"validation": own}} for method, own in zip("ab", logits, strict=True)}
    draws = rescored_draws(task, {"validation": labels}, predictions)
    ours = interval((draws["a"] - draws["b"])[:, 0])

    def difference(chosen: np.ndarray) -> float:
        scores = [compute_metrics(task, own[chosen], labels[chosen])[task.metric] for own in logits]
        return scores[0] - scores[1]

    found = stats.bootstrap(
        (np.arange(rows),), difference, vectorized=False, n_resamples=1000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = found.high - found.low
    assert ours == pytest.approx((found.low, found.high), abs=width / 8)


def test_differences_shown_together_are_measured_as_each_alone_but_for_the_adjusted_p(ablation):
    asked = [
        ("nxm_plus", rival, tasks) for rival in ("gmp_plus", "asp_plus") for tasks in (("stsb",), ("stsb", "cola"))
    ]
    together = measured(ablation, [*asked, asked[0]])
    assert list(together) == asked  # each once
    for key in asked:
        (alone,) = measured(ablation, [key]).values()
        own = together[key]
        assert own.interval == statistics.difference(ablation, key[0], key[1], list(key[2]))
        for name in FIELDS:
            if name != "p_adjusted":
                assert own.values[name] == alone.values[name]
        assert own.adjusted >= alone.adjusted
    drawn = [ablation.bootstrap["stsb"][name][:, 0].astype(float) for name in ("nxm_plus", "gmp_plus")]
    own = together["nxm_plus", "gmp_plus", ("stsb",)]
    assert own.p == p_value(drawn[0] - drawn[1])
    assert own.visible == pytest.approx(smallest_visible(drawn[0] - drawn[1]), rel=1e-5)


def test_a_difference_without_draws_is_left_out_and_its_cells_are_empty(one):
    assert measured(one, [("nxm", "asp", ("stsb",)), ("nxm", "nothing", ("stsb",))]) == {}
    assert texts(None) == dict.fromkeys(EXPLAINED, statistics.ABSENT)
