"""The plan has as many epochs as fit the budget; durations need units."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nxm.compress.encode import encode
from nxm.compress.examples import Columns, Examples
from nxm.compress.model import find_model, load_start, load_tokenizer
from nxm.compress.plan import Plan, Speed, after_dense, make_plan, measure_speed
from nxm.compress.settings import parse_duration
from nxm.compress.train import Course
from nxm.errors import UserError
from user_data import reviews, save_tiny

SPEED = Speed(step=1.0, forward=0.25, held_out=0.5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h 30m", 5400), ("1h30min", 5400), ("45s", 45), ("1.5 h", 5400)],
)
def test_durations_have_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "2 hours", "-1h", "1e3s", "", "0s", "2d"])
def test_durations_without_units_are_refused(text):
    with pytest.raises(UserError, match="budget = "):
        parse_duration(text)


@given(st.integers(0, 6), st.integers(1, 6), st.floats(100, 10_000))
def test_a_plan_is_within_its_budget_and_uses_it(dense_epochs, epochs, budget):
    wanted = make_plan(SPEED, 50, dense_epochs, epochs, True, None)
    try:
        plan = make_plan(SPEED, 50, dense_epochs, epochs, True, budget)
    except UserError as error:
        assert "one epoch of each training" in str(error)  # noqa: PT017
        return
    assert plan.seconds <= budget
    assert 1 <= plan.epochs <= epochs
    assert (plan.dense_epochs > 0) == (dense_epochs > 0)
    if plan != wanted:  # nothing more fits
        assert wanted.seconds > budget


def test_without_a_budget_the_plan_is_the_wish_and_a_teacher_costs_a_forward_pass():
    plan, alone = (make_plan(SPEED, 50, 3, 5, teacher, None) for teacher in (True, False))
    assert (plan.dense_epochs, plan.epochs) == (3, 5)
    assert plan.epoch_seconds == pytest.approx(1.25 * alone.epoch_seconds)


@pytest.mark.situation("nxm compress", "a budget in which not one epoch fits", "refused")
def test_a_budget_that_is_too_small_names_one_that_is_not():
    with pytest.raises(UserError, match=r"budget: 60 s are not enough: .* take about 3 min here"):
        make_plan(SPEED, 50, 3, 5, True, 60.0)


def test_a_slow_fine_tuning_leaves_fewer_epochs_and_a_fast_one_no_more():
    plan = Plan(2, 5, 100.0, 100.0, 50.0)
    assert after_dense(plan, 200.0, 750.0) == plan
    assert after_dense(plan, 150.0, 2000.0) == plan
    assert after_dense(plan, 300.0, 750.0).epochs == 2  # 400 s are left, at 150 s an epoch
    assert after_dense(plan, 900.0, 750.0).epochs == 1
    assert after_dense(plan, 900.0, None) == plan


def test_speed_is_the_median_step_without_the_first_and_leaves_the_model_alone(tmp_path):
    frame = reviews(24)
    examples = Examples(
        "classification",
        Columns(("text",), ("label",)),
        [(t,) for t in frame.text],
        list(frame.label),
        ("bad", "good"),
        "",
    )
    origin = find_model(str(save_tiny(tmp_path / "model")))
    tokenizer, model = load_tokenizer(origin, "classification"), load_start(origin, examples, True, 0)
    before = {name: W.clone() for name, W in model.state_dict().items()}
    seconds = itertools.chain([100.0, 2.0, 3.0, 4.0], [50.0, 1.0, 1.0, 2.0])

    def timer(call, device):
        call()
        return next(seconds)

    data = encode(examples, tokenizer, model, 32)
    speed = measure_speed(model, data, 16, Course("", 1, 1e-3, 0.1, 8, 0), timer)
    assert speed == Speed(step=3.0, forward=1.0, held_out=2.0)
    assert all(W.equal(before[name]) for name, W in model.state_dict().items())
