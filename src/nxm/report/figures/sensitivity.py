"""Sensitivity by matrix with the chosen allocation: the rise of the loss by matrix and set, and the set that it got."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nxm.report import captions, labels, statistics, storage, style
from nxm.report.evidence import Evidence
from nxm.study.results import AllocatedMatrix, AllocationRecord, Result

COLOURS = "cividis_r"  # the same for any colour vision; in grey, darker is more
PER_PANEL = 36  # matrices side by side at print size
MOST_PANELS = 6


def draw(evidence: Evidence) -> Figure:
    """Return a panel per run or variant that chose a set for each matrix, of one task and the first seed.

    Deep models take several panels, each of whole layers.
    """
    found = [run for run in evidence.results if run.allocation is not None and run.trial is None]
    task = statistics.own_task(found)
    if task is None:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run that chose a set for each matrix yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    runs = _first_seeds([run for run in found if run.task == task])
    panels = [(run, part) for run in runs for part in _parts(_allocation(run).matrices)]
    left_out = list(dict.fromkeys(labels.run_label(run.full_name) for run, _ in panels[MOST_PANELS:]))
    panels = panels[:MOST_PANELS]
    heights = [0.24 * len(_allocation(run).choices) + 0.85 for run, _ in panels]
    figure, axes = style.canvas(
        style.TWO_COLUMNS, sum(heights) + 1.0, len(panels), 1, gridspec_kw={"height_ratios": heights}
    )
    norm = _norm([run for run, _ in panels])
    for place, (run, part) in zip(axes[:, 0], panels, strict=True):
        _panel(place, run, part, norm)
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes[:, 0].tolist(), pad=0.01, aspect=30)
    bar.set_label("Rise of the loss")
    bar.outline.set_visible(False)
    measured = {_allocation(run).measured_by for run, _ in panels}
    loss = " or ".join(
        words
        for kind, words in {"teacher": "distance to the teacher's logits", "task": "the task's loss"}.items()
        if kind in measured
    )
    seeds = sorted({run.seed for run, _ in panels})
    figure.legend(handles=[_mark()], loc="outside upper left")
    style.footnote(
        figure,
        captions.caption(
            evidence,
            f"Colour: rise of the loss ({loss}) when one matrix alone is projected, before training.",
            [task],
            more=[f"Left out: {statistics.listed(left_out)}."] if left_out else [],
            seeds=seeds,
        ),
    )
    return figure


def _allocation(run: Result) -> AllocationRecord:
    assert run.allocation is not None
    return run.allocation


def _first_seeds(runs: list[Result]) -> list[Result]:
    """Return the first seed of each run and variant, those with the most bits first."""
    order = statistics.methods_of(runs)
    first = {run.full_name: run for run in sorted(runs, key=lambda run: -run.seed)}
    return sorted(
        first.values(), key=lambda run: (order.index(statistics.shown_as(run)), -_allocation(run).budget, run.full_name)
    )


def _parts(matrices: tuple[AllocatedMatrix, ...]) -> list[list[AllocatedMatrix]]:
    """Split matrices into parts of whole layers that fit side by side, of about equal width."""
    layers = [list(own) for _, own in itertools.groupby(matrices, key=lambda own: labels.matrix_label(own.matrix)[0])]
    n_parts = -(-len(matrices) // PER_PANEL)
    splits = np.array_split(np.arange(len(layers)), min(n_parts, len(layers)))
    return [[own for layer in split for own in layers[layer]] for split in splits]


def _norm(runs: list[Result]) -> SymLogNorm:
    """Return a scale that is linear near zero, where rises are noise and may be negative, and logarithmic above."""
    rises = [rise for run in runs for own in _allocation(run).matrices for rise in own.rises.values()]
    largest = max(map(abs, rises)) or 1.0
    return SymLogNorm(linthresh=largest / 1e3, vmin=min(0.0, *rises), vmax=largest)


def _panel(axes: Axes, run: Result, matrices: list[AllocatedMatrix], norm: SymLogNorm) -> None:
    choices = sorted(
        _allocation(run).choices,
        key=lambda choice: storage.set_bits(None if choice == "dense" else choice, (1024, 1024)) or 0,
    )
    rises = np.array([[own.rises[choice] for own in matrices] for choice in choices])
    axes.imshow(rises, cmap=COLOURS, norm=norm, aspect="auto", interpolation="nearest", origin="lower")
    axes.plot(range(len(matrices)), [choices.index(own.choice) for own in matrices], **_look())
    names = [labels.matrix_label(own.matrix) for own in matrices]
    axes.set_xticks(range(len(matrices)), [kind for _, kind in names], rotation=90, fontsize=8)
    axes.set_yticks(range(len(choices)), choices)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for layer, group in itertools.groupby(range(len(matrices)), key=lambda place: names[place][0]):
        places = list(group)
        if places[0] > 0:
            axes.axvline(places[0] - 0.5, color="white", linewidth=2.0)
        axes.annotate(
            f"Layer {layer}" if layer else "",
            (np.mean(places), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    name, allocation = labels.run_label(run.full_name), _allocation(run)
    axes.set_title(f"{name}: {allocation.bits:.2f} bits a weight, of {allocation.budget:g}", pad=14)


def _look() -> dict[str, object]:
    """Return the mark of a chosen cell: it can be seen on light cells and on dark ones."""
    return {
        "linestyle": "",
        "marker": "o",
        "markersize": 5,
        "markerfacecolor": "white",
        "markeredgecolor": style.INK,
        "markeredgewidth": 1.1,
    }


def _mark() -> Line2D:
    return Line2D([], [], label="set chosen for the matrix", **_look())
