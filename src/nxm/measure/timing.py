"""Timing several calls against each other.

All timings of one comparison are taken in rounds, each round timing every candidate once, in an order that rotates:
a machine that slows down or is disturbed then hits all alike. Ratios are the median over rounds of the ratio *within*
the round, so drift cancels.
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
Timer = Callable[[Call, torch.device], float]  # runs the call once, returns its seconds
Row = dict[str, Any]

MIN_ROUNDS = 5  # however long they take
NOISY = 0.10  # a spread above this marks a row

# Cleared before a kernel is timed: more than a GPU's cache, so often that an H200 is busy for some 0.4 ms.
_FLUSH_BYTES, _FLUSHES = 256 * 2**20, 8


def time_call(call: Call, device: torch.device) -> float:
    """Run once, return seconds: by device events on CUDA, by the clock on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return _time_events(call)
    start_time = time.perf_counter()
    call()
    return time.perf_counter() - start_time


def time_kernel(call: Call, device: torch.device) -> float:
    """As `time_call`, but on CUDA without the time that the host takes to launch the call, and with a cold cache.

    The GPU is first kept busy with clearing memory, as `triton.testing.do_bench` does, for what is meant to be longer
    than a single product takes to launch. (A small product would else be timed as long as its launch, whatever its
    kernel.) For a whole model, whose launches are part of its latency, use `time_call`.
    """
    if device.type == "cuda":
        scratch = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        for _ in range(_FLUSHES):
            scratch.zero_()
        return _time_events(call)
    return time_call(call, device)


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
    """Time every call once in each round.

    Args:
        calls: name -> what to time.
        warmup: rounds that are run and not counted, at most.
        repeats: rounds, at most.
        budget: seconds, warm-up included, after which only one warm-up round and MIN_ROUNDS are still done.
        bar: advances by one each call; its total loses the rounds that the budget saves. None: no bar.

    Returns: name -> seconds of each round, shape `(rounds,)`, the same number of rounds for all.
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
    """Median, 10th and 90th percentile in milliseconds, and how many rounds they are of."""
    p10, median, p90 = np.percentile(1e3 * seconds, [10, 50, 90])
    return {
        "median_ms": round(float(median), 4),
        "p10_ms": round(float(p10), 4),
        "p90_ms": round(float(p90), 4),
        "rounds": len(seconds),
    }


def spread(seconds: np.ndarray) -> float:
    """10th to 90th percentile over the median."""
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    return round(float((p90 - p10) / median), 4)


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Median over rounds of the ratio within the round."""
    return round(float(np.median(numerator / denominator)), 4)


def with_spread(seconds: np.ndarray) -> Row:
    """`summarise`, the spread, and whether it marks the row as noisy."""
    return summarise(seconds) | {"spread": spread(seconds), "noisy": spread(seconds) > NOISY}
