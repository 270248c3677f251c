"""Interleaved timing of several calls.

All timings of a comparison are taken in rounds. Each round times every candidate once, in rotating order, so that a
machine that slows down or is disturbed affects all candidates. Ratios are the median over rounds of the ratio *within*
the round, so that drift cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]
Timer = Callable[[Call, torch.device], float]  # runs the call once and returns seconds
Row = dict[str, Any]

MIN_ROUNDS = 5  # even beyond the budget
NOISY = 0.10  # rows with a larger spread are marked


def time_call(call: Call, device: torch.device) -> float:
    """Run a call once and return seconds, by device events on CUDA and by the clock on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return _time_events(call)
    start_time = time.perf_counter()
    call()
    return time.perf_counter() - start_time


def _time_events(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def time_interleaved(
    calls: Mapping[Key, Call],
    *,
    warmup: int,
    repeats: int,
    budget: float,
    device: torch.device,
    timer: Timer,
    bar: tqdm | None = None,
) -> dict[Key, np.ndarray]:
    """Time every call once per round.

    Args:
        calls: name -> call.
        warmup: the largest number of rounds that are run first and not counted.
        repeats: the largest number of counted rounds.
        budget: seconds, including warm-up, after which no rounds follow beyond one for warm-up and MIN_ROUNDS.
        bar: advances by one per call; its total is reduced by rounds that the budget omits. None: no bar.

    Returns: name -> seconds of each round, shape `(rounds,)`, with the same number of rounds for all calls.
    """
    bar = bar if bar is not None else tqdm(total=0, disable=True)
    names = list(calls)
    seconds: dict[Key, list[float]] = {name: [] for name in names}
    spent = 0.0
    for round_number in range(-warmup, repeats):
        needed = round_number == -warmup or 0 <= round_number < MIN_ROUNDS
        if spent >= budget and not needed:
            bar.total -= len(names)
            bar.refresh()
            continue
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            elapsed = timer(calls[name], device)
            spent += elapsed
            if round_number >= 0:
                seconds[name].append(elapsed)
            bar.update()
    return {name: np.array(values) for name, values in seconds.items()}


def summarise(seconds: np.ndarray) -> Row:
    """Return the median, 10th and 90th percentile in milliseconds and the number of rounds."""
    p10, median, p90 = np.percentile(1e3 * seconds, [10, 50, 90])
    return {
        "median_ms": round(float(median), 4),
        "p10_ms": round(float(p10), 4),
        "p90_ms": round(float(p90), 4),
        "rounds": len(seconds),
    }


def spread(seconds: np.ndarray) -> float:
    """Return the range from the 10th to the 90th percentile, divided by the median."""
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    return round(float((p90 - p10) / median), 4)


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Return the median over rounds of the ratio within the round."""
    return round(float(np.median(numerator / denominator)), 4)


def with_spread(seconds: np.ndarray) -> Row:
    """Return `summarise`, the spread and whether it marks the row as noisy."""
    return summarise(seconds) | {"spread": spread(seconds), "noisy": spread(seconds) > NOISY}
