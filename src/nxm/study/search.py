"""The search over hyper-parameters: a grid's cells, and which of them is best.

A cell is one training run with values of its own, seen by DVC as a stage of its own: one that is done is not run again,
and a value added to the grid adds its cells. What is chosen becomes the study's values (`nxm.study.profiles`), in the
open: it
stands in studies/<name>/params.yaml and in Table 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from nxm.data.tasks import get_task
from nxm.study.results import Failure, Result
from nxm.study.settings import PlusMethod

# In the order in which they stand in a cell's name, with what they are called there.
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "rho": "rho", "decay": "decay", "start": "from-"}
PLUS = get_args(PlusMethod)  # start from the dense model, so their cells are stages that wait for it


def expand(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a study's grid, by name: `stsb-nxm-lr0_0003-seed100` -> task, method, seed, cell, values.

    The cells of a method in `PLUS` also say `dense_seed`: all start from the dense model of the study's first seed.

    Args:
        values: a study's settings as plain values; a cell takes what is not searched from its method's block.
    """
    cells = {}
    grid = values["grid"]
    for task in values["tasks"]:
        for method, searched in grid.get(get_task(task).group, {}).items():
            searched = {name: searched[name] for name in _SHORT if searched.get(name)}
            for combination in itertools.product(*searched.values()):
                own = dict(zip(searched, combination, strict=True))
                cell = "-".join(_SHORT[name] + say_value(value).replace("+", "") for name, value in own.items())
                block = dict(values[method].get(task, {})) | own
                for seed in grid.get("seeds", []):
                    dense_seed = next(iter(values["seeds"]), seed) if method in PLUS else None
                    cells |= _cell(task, method, seed, cell, block, dense_seed)
    return cells


def say_value(value: float | str) -> str:
    """A value that was searched: `0.0003`, `dense`."""
    return value if isinstance(value, str) else f"{value:g}"


def expand_ablation(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ablation's runs as cells, by name: `stsb-nxm_plus-no-teacher-seed0` -> the same as `expand` gives.

    Args:
        values: a study's settings as plain values; a variant takes what it does not change from its method's block.
    """
    cells = {}
    for task in values["tasks"]:
        for name, variant in values["ablation"].items():
            if task not in (variant.get("tasks") or values["tasks"]):
                continue
            block = dict(values[variant["method"]][task]) | variant["values"]
            for seed in values["seeds"]:
                cells |= _cell(task, variant["method"], seed, name, block, seed)
    return cells


def _cell(
    task: str, method: str, seed: int, cell: str, block: dict[str, Any], dense_seed: int | None
) -> dict[str, dict[str, Any]]:
    key = f"{task}-{method}-{cell}-seed{seed}".replace(".", "_")  # DVC takes a dot for nesting
    own = {"task": task, "method": method, "seed": seed, "cell": cell, "values": block}
    return {key: own if dense_seed is None else own | {"dense_seed": dense_seed}}


def choose(
    cells: Mapping[str, Mapping[str, Any]], results: Iterable[Result], failures: Iterable[Failure], by: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The best values by (method, task), for those whose cells are all done.

    The best has the highest mean score over the grid's seeds, the first one in the grid's order among equals. A cell
    that failed with any seed is not chosen; where all failed nothing is.

    Args:
        by: "dev" or "heldout": which score counts.
    """
    own = {(cell["task"], cell["method"], cell["cell"], cell["seed"]): cell["values"] for cell in cells.values()}
    scores = {
        _place(run): score.value
        for run in results
        if (score := run.metric if by == "dev" else run.heldout) is not None and _is_of(own, run)
    }
    failed = {_place(run) for run in failures if _is_of(own, run)}
    chosen = {}
    for method, task in dict.fromkeys((cell["method"], cell["task"]) for cell in cells.values()):
        places = [place for place in own if place[:2] == (task, method)]
        if not set(places) <= scores.keys() | failed:
            continue
        means = {}
        for name in dict.fromkeys(place[2] for place in places):
            seeds = [place for place in places if place[2] == name]
            if not failed.intersection(seeds):
                means[name] = sum(scores[place] for place in seeds) / len(seeds)
        if means:
            best = max(means, key=lambda name: means[name])  # the first one among equals
            chosen[method, task] = dict(next(own[place] for place in places if place[2] == best))
    return chosen


def _place(run: Result | Failure) -> tuple[str, str, str | None, int]:
    return run.task, run.method, run.cell, run.seed


def _is_of(cells: Mapping[tuple[str, str, str, int], Mapping[str, Any]], run: Result | Failure) -> bool:
    """Whether a run is one of these cells, with the values that it has now and not with those of an earlier grid."""
    values = cells.get(_place(run))  # type: ignore[arg-type]
    return values is not None and all(run.hyperparameters.get(name) == value for name, value in values.items())
