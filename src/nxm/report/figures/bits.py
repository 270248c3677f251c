"""Scores by bits a weight: left, recipes at several widths of integers; right, all recipes at the runs' own width."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nxm.report import captions, labels, published, statistics, storage, style
from nxm.report.evidence import Evidence

_LOWEST = 0.85  # of the dense score: what is worse is written at the edge, so that the rest has room


@dataclass(frozen=True)
class Point:
    """A run or variant with integers on one task, or over several: means over seeds."""

    name: str
    width: int | None  # bits of a code; None: a set for each matrix
    bits: float  # of a weight
    pattern: str
    score: float
    low: float | None
    high: float | None

    @property
    def run(self) -> str:
        return self.name.partition("/")[0]


def draw(evidence: Evidence) -> Figure:
    """Return both panels for one task, or for the geometric mean of several."""
    tasks = statistics.tasks_of(run for run in statistics.whole_runs(evidence.results) if storage.integer_bits(run))
    points = _points(evidence, tasks) if tasks else []
    whole = [point for point in points if "/" not in point.name and point.width is not None]
    if not whole:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run with integers yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    widths = [point.width for point in whole if point.width is not None]
    width = max(set(widths), key=widths.count)
    at_width = sorted((point for point in points if point.width == width), key=lambda point: -point.score)
    figure, axes = style.mosaic(
        style.TWO_COLUMNS, max(3.6, 1.5 + 0.3 * len(at_width)), [["widths", "recipes"]], width_ratios=[1.15, 1]
    )
    _widths(axes["widths"], evidence, points, tasks)
    _recipes(axes["recipes"], evidence, at_width, tasks, width)
    over = f"Geometric mean over {statistics.listed(statistics.TASKS.get(task, task) for task in tasks)}. "
    style.footnote(
        figure,
        captions.caption(
            evidence,
            (over if len(tasks) > 1 else "")
            + "Bits with positions and scales; zeros count as weights. Bars: 95 % intervals by paired bootstrap; "
            "right, open: a variant. Diamonds: NxMiFormer's shares of dense (not measured here).",
            tasks,
        ),
    )
    return figure


def _points(evidence: Evidence, tasks: list[str]) -> list[Point]:
    own = [run for run in evidence.results if run.trial is None and run.task in tasks]
    own = [run for run in own if storage.integer_bits(run) or run.allocation is not None]
    found = []
    named = sorted({run.full_name for run in own}, reverse=True)
    # a variant that is its run, compared once more with another rival, has its run's label
    for name in {labels.run_label(name): name for name in named}.values():
        runs = statistics.runs_of(own, name)
        score = statistics.method_score(own, name, tasks)
        bits, width = storage.bits_per_weight(storage.largest_of(runs)), storage.integer_bits(runs[0])
        if score is None or bits is None:
            continue
        low, high = statistics.score_interval(evidence, name, tasks) or (None, None)
        found.append(Point(name, width, bits, runs[0].sparsity.pattern or "", score.mean, low, high))
    return found


def _widths(axes: Axes, evidence: Evidence, points: list[Point], tasks: list[str]) -> None:
    """Draw a curve for each run that has variants with other widths and the same zeros, or other budgets."""
    curves: dict[str, list[Point]] = {}
    for point in points:
        own = next((each for each in points if each.name == point.run), point)
        # a variant with the run's own width differs in something else
        mixed = point.width is None and own.width is None
        if point is own or mixed or (point.width != own.width and _zeros(point) == _zeros(own)):
            curves.setdefault(point.run, []).append(point)
    curves = {run: sorted(curve, key=lambda point: point.bits) for run, curve in curves.items()}
    curves = {run: curve for run, curve in curves.items() if len(curve) > 1 or curve[0].width is None}
    names = statistics.in_order(curves, labels.RUNS)
    runs = [run for run in evidence.results if run.task in tasks]
    dense = statistics.method_score(runs, "dense", tasks)
    lowest = _LOWEST * dense.mean if dense is not None else 0.0
    for k, run in enumerate(names):
        look, curve = labels.look(run), curves[run]
        aside = 1.018 ** (k - (len(names) - 1) / 2)  # so that the intervals of equal bits do not cover each other
        x = np.array([point.bits for point in curve]) * aside
        axes.plot(x, [point.score for point in curve], **look.line())
        for place, point in zip(x, curve, strict=True):
            if point.score < lowest:
                _name_what_is_below(axes, place, point, lowest, look.color)
        barred = [(own, point) for own, point in zip(x, curve, strict=True) if point.low is not None]
        axes.vlines(
            [own for own, _ in barred],
            [point.low for _, point in barred],
            [point.high for _, point in barred],
            color=look.color,
            linewidth=1.2,
        )
    if any(point.score < lowest for curve in curves.values() for point in curve):
        axes.set_ylim(bottom=lowest)
    if dense is not None:
        style.reference(axes, dense.mean, f"dense\n{dense.mean:.1f}")
        axes.plot(
            [bits for bits, _ in published.BITS],
            [share / 100 * dense.mean for _, share in published.BITS],
            linestyle="",
            marker="D",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=style.INK,
            markeredgewidth=0.9,
            zorder=2.5,
        )
    drawn = [point for curve in curves.values() for point in curve]
    even = [point for point in drawn if point.width is not None] or drawn  # the others may lie close to these
    ticks = sorted({round(point.bits, 2) for point in even})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    metric = statistics.METRICS.get(runs[0].metric.name, runs[0].metric.name) if len(tasks) == 1 else "Geometric mean"
    axes.set(title="Fewer bits", xlabel="Bits a weight (logarithmic)", ylabel=f"{metric} × 100")
    entries: list[Line2D] = style.handles([labels.look(run) for run in names], line=True)
    axes.legend(handles=entries, loc="lower right")


def _name_what_is_below(axes: Axes, x: float, point: Point, lowest: float, color: str) -> None:
    """Write a score that lies below the panel at its edge, with an arrow."""
    axes.annotate(
        f"{point.score:.0f} ↓",
        (x, lowest),
        xytext=(3, 4),
        textcoords="offset points",
        fontsize=8,
        color=color,
        annotation_clip=False,
    )


def _zeros(point: Point) -> str:
    """Return the pattern of a point's zeros, such as 2:4; an empty text without one."""
    return point.pattern.partition("int")[0].strip()


def _recipes(axes: Axes, evidence: Evidence, points: list[Point], tasks: list[str], width: int) -> None:
    names = [point.name for point in points]
    rows = [
        {
            "category": point.name,
            "series": point.run,
            "value": point.score,
            "low": point.low,
            "high": point.high,
            "open": "/" in point.name,
        }
        for point in points
    ]
    looks = {run: labels.look(run) for run in dict.fromkeys(point.run for point in points)}
    dense = statistics.method_score([run for run in evidence.results if run.task in tasks], "dense", tasks)
    if dense is not None:
        axes.axvline(dense.mean, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    by_seed = [
        {"category": name, "value": value}
        for name in names
        for value in statistics.seed_scores(evidence.results, name, tasks).values()
    ]
    style.seeds(axes, pd.DataFrame(by_seed), names)
    style.points(axes, pd.DataFrame(rows).astype({"low": float, "high": float}), looks, names)
    zeros = {point.name: _zeros(point) for point in points}
    usual = max(zeros.values(), key=list(zeros.values()).count)
    texts = [
        labels.run_label(name)
        + ("" if zeros[name] == usual or "/" in name else f" ({zeros[name] or f'without {usual}'})")
        for name in names
    ]
    axes.set_yticks(
        range(len(names)), [textwrap.fill(text, 26, break_on_hyphens=False) for text in texts], linespacing=1.0
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(title=f"All recipes, {usual + ' and ' if usual else ''}{width} bits", xlabel="Dev score × 100")
