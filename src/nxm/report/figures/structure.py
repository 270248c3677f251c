"""Structured pruning: the heads and FFN rows that are left by layer, and the share of the cost left by step."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, labels, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

COSTS = {"weights": "weights", "flops": "operations", "latency": "measured time"}


def draw(evidence: Evidence) -> Figure:
    """Return three panels for one task: heads by layer, FFN rows by layer, and the hard count by step."""
    pruned = [run for run in statistics.whole_runs(evidence.results) if run.structure is not None]
    pruned = [run for run in pruned if run.structure is not None and run.structure.pruning is not None]
    task = statistics.own_task(pruned)
    if task is None:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run whose heads and rows were pruned yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    runs = [run for run in pruned if run.task == task]
    looks = {name: labels.look(name) for name in statistics.methods_of(runs)}
    figure, ((heads, rows, course),) = style.canvas(style.TWO_COLUMNS, 3.1, 1, 3)
    first = runs[0].structure
    assert first is not None
    _by_layer(heads, runs, looks, "heads", f"Heads of {first.dense_heads}")
    _by_layer(rows, runs, looks, "rows", f"FFN rows of {first.dense_rows:,}")
    _course(course, runs, looks)
    figure.legend(
        handles=style.handles(looks.values(), line=True),
        loc="outside upper left",
        ncols=3,
        columnspacing=1.2,
        handletextpad=0.4,
    )
    several = len({run.seed for run in runs}) > 1
    style.footnote(
        figure,
        captions.caption(
            evidence,
            f"{'Lines: means over seeds, bands from the lowest to the highest; ' if several else ''}right, dashed: the "
            "budget asked for, of the cost of the start.",
            [task],
        ),
    )
    return figure


def _by_layer(axes: Axes, runs: list[Result], looks: dict[str, labels.Look], what: str, label: str) -> None:
    data = [
        {"series": run.name, "layer": layer, "left": size}
        for run in runs
        if run.structure is not None
        for layer, size in enumerate(getattr(run.structure, what), start=1)
    ]
    style.curves(axes, pd.DataFrame(data), looks, "layer", "left")
    style.integer_ticks(axes, max(row["layer"] for row in data))
    axes.set(title=label.partition(" of ")[0] + " by layer", xlabel="Layer", ylabel=label)
    axes.set_ylim(bottom=0)


def _course(axes: Axes, runs: list[Result], looks: dict[str, labels.Look]) -> None:
    """Draw the hard count as steps for the first seed of each run: those of other seeds change at other steps."""
    for name, look in looks.items():
        run = min((run for run in runs if run.name == name), key=lambda run: run.seed)
        assert run.structure is not None
        pruning = run.structure.pruning
        assert pruning is not None
        last = max(run.epochs[-1].step, max((entry.step for entry in pruning.course), default=0))
        steps = [0, *(entry.step for entry in pruning.course), last]
        shares = [100.0, *(100 * entry.share for entry in pruning.course), 100 * pruning.share]
        axes.plot(steps, shares, drawstyle="steps-post", color=look.color, linestyle=look.dashes)
        axes.axhline(100 * pruning.budget, color=look.color, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.8)
    cost = statistics.listed(dict.fromkeys(COSTS.get(_cost(run), _cost(run)) for run in runs))
    axes.set(title="Course", xlabel="Optimizer steps", ylabel=f"{cost.capitalize()} left (%), seed {_seed(runs)}")
    axes.set_ylim(0, 103)


def _cost(run: Result) -> str:
    assert run.structure is not None
    assert run.structure.pruning is not None
    return run.structure.pruning.cost


def _seed(runs: list[Result]) -> str:
    first = {run.name: min(own.seed for own in runs if own.name == run.name) for run in runs}
    return statistics.listed(sorted(set(first.values())))
