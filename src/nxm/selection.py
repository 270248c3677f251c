"""The search over hyper-parameters: a grid's cells, and which of them is best.

A cell is one training run with values of its own, seen by DVC as a stage of its own: one that is done is not run again,
and a value added to the grid adds its cells. What is chosen becomes the study's values (`nxm.study`), in the open: it
stands in studies/<name>/params.yaml and in Table 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from nxm.glue import get_task
from nxm.results import Failure, Result

# In the order in which they stand in a cell's name, with what they are called there.
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "rho": "rho"}


def expand(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a study's grid, by name: `stsb-nxm-lr0_0003-seed100` -> task, method, seed, cell, values.

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
                cell = "-".join(f"{_SHORT[name]}{value:g}" for name, value in own.items())
                block = dict(values[method].get(task, {})) | own
                for seed in grid.get("seeds", []):
                    key = f"{task}-{method}-{cell}-seed{seed}".replace(".", "_")  # DVC takes a dot for nesting
                    cells[key] = {
                        "task": task,
                        "method": method,
                        "seed": seed,
                        "cell": cell,
                        "values": block,
                    }
    return cells


def choose(
    cells: Mapping[str, Mapping[str, Any]], results: Iterable[Result], failures: Iterable[Failure], by: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The best values by (method, task), for those whose cells are all done.

    The best has the highest mean score over the grid's seeds, the first one in the grid's order among equals. A cell
    that failed with any seed is not chosen; where all failed nothing is.

    Args:
        by: "dev" or "heldout": which score counts.
    """
    scores = {_place(run): run.metric.value if by == "dev" else _heldout(run) for run in results if run.cell}
    failed = {_place(run) for run in failures}
    chosen = {}
    for method, task in dict.fromkeys((cell["method"], cell["task"]) for cell in cells.values()):
        own = [cell for cell in cells.values() if (cell["method"], cell["task"]) == (method, task)]
        places = {(task, method, cell["cell"], cell["seed"]) for cell in own}
        if not places <= scores.keys() | failed:
            continue
        means = {}
        for name in dict.fromkeys(cell["cell"] for cell in own):
            seeds = [place for place in places if place[2] == name]
            if not failed.intersection(seeds):
                means[name] = sum(scores[place] for place in seeds) / len(seeds)
        if means:
            best = max(means, key=lambda name: means[name])  # the first one among equals
            chosen[method, task] = next(dict(cell["values"]) for cell in own if cell["cell"] == best)
    return chosen


def _place(run: Result | Failure) -> tuple[str, str, str | None, int]:
    return run.task, run.method, run.cell, run.seed


def _heldout(run: Result) -> float:
    return run.heldout.value if run.heldout else float("-inf")
