"""Units of work of a bench and the rows that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nxm.measure.kernels import Launched, launched, sparse_launches
from nxm.measure.timing import Row, paired_ratio, time_interleaved, with_spread
from nxm.replay import Replay

SHOWN_KERNELS = 8  # of an encoder's: the longest


# dtype -> index in `nxm.export.cusparselt.SEARCHES`; 0, the whole search, where it is not named
Care = Mapping[str, int]
NO_CARE: Care = {}


@dataclass(frozen=True)
class Unit:
    """A measurement that is done or left out as a whole.

    Attributes:
        part: one of `nxm.measure.bench.run.PARTS`.
        name: unique; rows name their unit by it.
        worth: units of more worth run first, so that what a budget cuts is worth least.
        seconds: about how long it takes, until units of its part have been timed.
        dtypes: those of its products, whose algorithms are searched.
        measure: returns its rows, given for each type how careful the search for algorithms is to be.
    """

    part: str
    name: str
    worth: float
    seconds: float
    dtypes: tuple[str, ...]
    measure: Callable[[Care], list[Row]]


def time_replays(replays: Mapping[str, Replay], repeats: int, budget: float) -> dict[str, np.ndarray]:
    """Time replays in rounds and return the seconds of a call by name, `(rounds,)`."""
    device = next(iter(replays.values())).device
    timer = _seconds
    return time_interleaved(
        {name: replay.seconds for name, replay in replays.items()},
        warmup=1,
        repeats=repeats,
        budget=budget,
        device=device,
        timer=timer,
    )


def _seconds(call: Callable[[], object], _: torch.device) -> float:
    return float(call())  # type: ignore[arg-type]  # a replay times itself


def timed_row(own: np.ndarray, reference: np.ndarray, operations: float) -> Row:
    """Return times, the speed-up over the reference in the same rounds, and the rate.

    Args:
        operations: of the dense product, which a 2:4 product is counted as.
    """
    return with_spread(own) | {
        "speedup": paired_ratio(reference, own),
        "tflops": float(f"{operations / float(np.median(own)) / 1e12:.4g}"),
    }


def kernel_row(kernels: list[Launched]) -> Row:
    """Return the kernels that ran, the launches of sparse ones, and the microseconds of all together."""
    return {
        "sparse_launches": sparse_launches(kernels),
        "launches": sum(each.launches for each in kernels),
        "kernels_us": round(sum(each.microseconds for each in kernels), 2),
        "kernels": [
            {"name": each.name, "launches": each.launches, "us": round(each.microseconds, 2)}
            for each in kernels[:SHOWN_KERNELS]
        ],
    }


def capture_row(replay: Replay) -> Row:
    """Return a mark that says if a GPU's calls were captured, and else the reason; nothing for a CPU."""
    if replay.device.type != "cuda":
        return {}
    return {"captured": replay.captured} | ({"refused": replay.refused} if replay.refused is not None else {})


def kernels_in(replay: Replay) -> list[Launched]:
    """Return the kernels of one of a replay's calls."""
    return launched(replay.calls[0], replay.device)


def difference(found: Tensor, exact: Tensor) -> float:
    """Return the relative error of a tensor, in the Euclidean norm."""
    error = (found.double() - exact.double()).norm() / exact.double().norm()
    return float(f"{float(error):.3g}")
