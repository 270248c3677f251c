"""Figure 3: the final metric over the mask's mean similarity between ADMM iterations, as rho varies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from nxm.report import captions, labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result, mean_similarity

LABELS = {"nxm": "NxM (decoupled step)", "nxm_paper": "NxM, paper's recipe"}


@dataclass(frozen=True)
class Point:
    """A value of rho of one recipe on one task: means over seeds, and the metric's range."""

    method: str
    rho: float
    seeds: tuple[int, ...]
    whole: bool  # the study's NxM run itself, not a point of the sweep
    similarity: float
    metric: float
    low: float
    high: float


def draw(evidence: Evidence) -> Figure:
    """Return a panel per task with several values of rho, or, if none has, per task with points."""
    points = {task: _points(evidence, task) for task in statistics.tasks_of(evidence.results)}
    points = {task: found for task, found in points.items() if found}
    swept = {task: found for task, found in points.items() if len({point.rho for point in found}) > 1}
    points = swept or points
    if not points:
        figure, ((axes,),) = style.canvas(style.ONE_COLUMN, 2.6)
        style.missing(
            axes, f"Study {evidence.study} has no run of NxM with ADMM iterations yet, and no sweep over rho."
        )
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    columns = min(len(points), 2)
    rows = math.ceil(len(points) / columns)
    figure, panels = style.canvas(style.TWO_COLUMNS, 3.5 if rows == 1 else 2.9 * rows, rows, columns)
    for axes, (task, found) in zip(panels.flat, points.items(), strict=False):
        _panel(axes, task, found, evidence.results)
    for axes in list(panels.flat)[len(points) :]:
        axes.set_axis_off()
    entries = dict(
        reversed(entry) for axes in panels.flat for entry in zip(*axes.get_legend_handles_labels(), strict=True)
    )
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.4
    )
    drawn = [point for found in points.values() for point in found]
    style.footnote(
        figure,
        captions.caption(
            evidence,
            "Mask similarity from one ADMM iteration to the next; numbers: ρ (recipes do not compare in it).",
            list(points),
            _not_swept(drawn),
            {seed for point in drawn for seed in point.seeds},
        ),
    )
    figure.draw_without_rendering()  # lays out the panels, so that positions on paper are known
    for axes, found in zip(panels.flat, points.values(), strict=False):
        _name_points(axes, found)
    return figure


def _points(evidence: Evidence, task: str) -> list[Point]:
    results = evidence.results
    in_force = {_but_rho(result) for result in statistics.whole_runs(results)}
    own = [
        run
        for run in results
        if run.task == task and statistics.shown_as(run) in LABELS and mean_similarity(run) is not None
    ]
    # A point of the sweep, or a trial of a search over rho and more that differs from the values in force in rho alone.
    swept = [
        run
        for run in own
        if run.full_name in evidence.sweep or (run.trial and _searched_rho(own, run) and _but_rho(run) in in_force)
    ]
    seeds = {run.seed for run in swept}  # all points of a curve are of the same seeds, where possible
    whole = statistics.whole_runs(own)
    whole = [run for run in whole if run.seed in seeds] or whole
    groups: dict[tuple[str, float, bool], list[Result]] = {}
    for run in (*swept, *whole):
        groups.setdefault((statistics.shown_as(run), float(run.hyperparameters["rho"]), run.whole), []).append(run)
    points = []
    for (method, rho, whole), runs in sorted(groups.items()):
        metrics = [run.metric.value for run in runs]
        similarity = sum(mean_similarity(run) for run in runs) / len(runs)
        seeds = tuple(sorted({run.seed for run in runs}))
        mean = sum(metrics) / len(metrics)
        points.append(Point(method, rho, seeds, whole, similarity, mean, min(metrics), max(metrics)))
    return points


def _searched_rho(runs: list[Result], trial: Result) -> bool:
    """Return whether the search of a trial tries several values of rho."""
    same = [run for run in runs if run.trial and run.name == trial.name and run.seed == trial.seed]
    return len({run.hyperparameters["rho"] for run in same}) > 1


def _but_rho(result: Result) -> tuple[object, ...]:
    values = result.hyperparameters
    return result.task, statistics.shown_as(result), values["learning_rate"], values["batch_size"], values["epochs"]


def _panel(axes: Axes, task: str, points: list[Point], results: list[Result]) -> None:
    metric = next(result.metric.name for result in results if result.task == task)
    axes.set(
        title=statistics.TASKS.get(task, task),
        xlabel="Mean mask similarity (%)",
        ylabel=f"Final {statistics.METRICS.get(metric, metric)} × 100",
    )
    style.similarity_scale(axes, "x", [point.similarity for point in points] + [paper.BEST_SIMILARITY])
    axes.axvline(paper.BEST_SIMILARITY, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"paper's best: ≈ {100 * paper.BEST_SIMILARITY:.0f} %",
        (paper.BEST_SIMILARITY, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=style.GREY,
    )
    for method, label in LABELS.items():
        own = sorted((p for p in points if p.method == method), key=lambda p: p.similarity)
        if not own:
            continue
        look = labels.look(method)
        x = [style.drawable_similarity(p.similarity) for p in own]
        y = [p.metric for p in own]
        axes.plot(x, y, label=label, **(look.line() | {"linewidth": 1.0, "alpha": 0.9}))
        axes.vlines(x, [p.low for p in own], [p.high for p in own], color=look.color, linewidth=1.0)
        whole = [p for p in own if p.whole]
        axes.plot(
            [style.drawable_similarity(p.similarity) for p in whole],
            [p.metric for p in whole],
            linestyle="",
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=look.color,
            markeredgewidth=1.2,
            label="the study's own ρ" if whole else None,
        )
    seeds = {seed for point in points for seed in point.seeds}
    lines = {
        method: statistics.task_score([run for run in results if run.seed in seeds], method, task)
        for method in ("dense", "asp")
    }
    top = max((score.mean for score in lines.values() if score), default=0.0)
    for method, score in lines.items():
        if score:
            name = f"{labels.run_label(method)} {score.mean:.1f}"
            style.reference(axes, score.mean, name, labels.look(method).color, above=score.mean == top)
    axes.margins(y=0.16)


def _name_points(axes: Axes, points: list[Point]) -> None:
    """Write each rho next to its point, clear of the other points, curves, lines and labels."""
    own = {(point.method, point.rho) for point in points if point.whole}
    named = [
        point for point in points if point.whole or (point.method, point.rho) not in own
    ]  # the study's own rho once
    texts = [
        axes.text(
            style.drawable_similarity(point.similarity),
            point.metric,
            labels.plain(point.rho),
            fontsize=8,
            color=labels.look(point.method).color,
            ha="center",
            va="center",
        )
        for point in named
    ]
    radius = 5 * axes.get_figure(root=True).dpi / 72  # pixels in 5 points
    places = axes.transData.transform([text.get_position() for text in texts])
    to_data = axes.transData.inverted().transform
    marks = [Bbox([to_data(place - radius), to_data(place + radius)]) for place in places]
    x, y = _along([line for line in axes.get_lines() if len(line.get_xdata()) > 1], axes)
    adjust_text(
        texts,
        x=x,
        y=y,
        objects=marks,
        ax=axes,
        iter_lim=300,  # not a time limit: equal input gives equal bytes
        expand=(1.05, 1.1),
        min_arrow_len=12,
        arrowprops={"arrowstyle": "-", "color": style.GREY, "linewidth": 0.5},
    )


def _along(lines: list[Line2D], axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Return points every few pixels along lines, in data coordinates, for labels to avoid."""
    found = []
    for line in lines:
        corners = line.get_transform().transform(line.get_xydata())
        for start, end in pairwise(corners):
            steps = max(int(np.hypot(*(end - start)) // 8), 1)
            found += [start + (end - start) * k / steps for k in range(steps + 1)]
    return tuple(axes.transData.inverted().transform(found).T)


def _not_swept(points: list[Point]) -> list[str]:
    lacking = [label for name, label in LABELS.items() if not any(p.method == name and not p.whole for p in points)]
    return [f"No sweep over ρ in this study for: {'; '.join(lacking)}."] if lacking else []
