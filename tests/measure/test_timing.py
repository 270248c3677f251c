"""Interleaved timing, with simulated clocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from nxm.measure import timing

CPU = torch.device("cpu")


def returned_timer(call: timing.Call, device: torch.device) -> float:
    """Return the seconds that a call returns."""
    return float(call())


def bar(total: int) -> tqdm:
    return tqdm(total=total, disable=False)


def test_every_round_times_every_call_once_and_nobody_is_always_first() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name) or 1.0) for name in "abc"}
    seconds = timing.time_interleaved(
        calls, warmup=2, repeats=6, budget=1e9, device=CPU, timer=returned_timer, bar=bar(24)
    )
    played = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(played) == 8
    assert all(sorted(each) == list("abc") for each in played)
    assert [each[0] for each in played[2:]] == list("abcabc")
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 6)


def test_warmup_rounds_are_not_counted() -> None:
    durations = iter([100.0, 100.0, 1.0, 2.0, 3.0])
    seconds = timing.time_interleaved(
        {"a": lambda: next(durations)}, warmup=2, repeats=3, budget=1e9, device=CPU, timer=returned_timer, bar=bar(5)
    )
    assert seconds["a"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(0.0, timing.MIN_ROUNDS), (7.5, 8), (1e9, 20)],
    ids=["never below the minimum", "until it is spent", "never above the settings"],
)
def test_the_budget_limits_the_rounds_and_the_progress_bar_knows(budget: float, expected: int) -> None:
    progress = bar(40)
    seconds = timing.time_interleaved(
        {"a": lambda: 0.5, "b": lambda: 0.5},
        warmup=0,
        repeats=20,
        budget=budget,
        device=CPU,
        timer=returned_timer,
        bar=progress,
    )
    assert len(seconds["a"]) == len(seconds["b"]) == expected
    assert progress.n == progress.total == 2 * expected


def test_a_budget_that_is_spent_leaves_one_warmup_round() -> None:
    times: list[float] = []
    timing.time_interleaved(
        {"a": lambda: times.append(1.0) or 1.0},
        warmup=4,
        repeats=20,
        budget=0.5,
        device=CPU,
        timer=returned_timer,
        bar=bar(24),
    )
    assert len(times) == 1 + timing.MIN_ROUNDS


def test_a_machine_that_slows_down_leaves_ratios_alone() -> None:
    drift = np.array([1.0, 1.1, 5.0, 40.0])
    assert timing.paired_ratio(2.0 * drift, drift) == 2.0


def test_summary_is_in_milliseconds() -> None:
    summary = timing.summarise(np.linspace(0.0, 0.1, 11))
    assert summary == {"median_ms": 50.0, "p10_ms": 10.0, "p90_ms": 90.0, "rounds": 11}
