"""Figure 3: the mask's mean similarity over ADMM iterations against the final metric, as rho varies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result, mean_similarity

LABELS = {"nxm": "NxM (decoupled step)", "nxm_paper": "NxM, paper's recipe"}


@dataclass(frozen=True)
class Point:
    """One rho of one method on one task: means over seeds, and the metric's range."""

    method: str
    rho: float
    seeds: tuple[int, ...]
    whole: bool  # the study's NxM run itself, not a cell
    similarity: float
    metric: float
    low: float
    high: float


def draw(evidence: Evidence) -> Figure:
    """One panel a task with several rhos, or, where no task has, each with points; each point is named by its rho."""
    points = {task: _points(evidence, task) for task in statistics.tasks_of(evidence.results)}
    points = {task: found for task, found in points.items() if found}
    swept = {task: found for task, found in points.items() if len({point.rho for point in found}) > 1}
    points = swept or points
    if not points:
        figure, ((axes,),) = style.canvas(style.ONE_COLUMN, 2.6)
        style.missing(
            axes, f"Study {evidence.study} has no run of NxM with ADMM iterations yet, and no sweep over rho."
        )
        style.footnote(figure, [statistics.study_phrase(evidence)])
        return figure
    columns = min(len(points), 2)
    rows = math.ceil(len(points) / columns)
    figure, panels = style.canvas(style.TWO_COLUMNS, 3.5 if rows == 1 else 2.9 * rows, rows, columns)
    for axes, (task, found) in zip(panels.flat, points.items(), strict=False):
        _panel(axes, task, found, evidence.results)
    for axes in list(panels.flat)[len(points) :]:
        axes.set_axis_off()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.4)
    style.footnote(figure, [statistics.study_phrase(evidence, list(points)), *_said(points, evidence)])
    figure.draw_without_rendering()  # lays the panels out: where points stand on paper is known from here on
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
    # A point of the sweep, or a trial of a search over rho and more that differs in rho alone from what is in force.
    cells = [
        run
        for run in own
        if run.full_name in evidence.sweep or (run.trial and _searched_rho(own, run) and _but_rho(run) in in_force)
    ]
    seeds = {run.seed for run in cells}  # points on one curve are of the same seeds, where they can be
    whole = statistics.whole_runs(own)
    whole = [run for run in whole if run.seed in seeds] or whole
    groups: dict[tuple[str, float, bool], list[Result]] = {}
    for run in (*cells, *whole):
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
    """Tell whether the search that a trial is of tries several values of rho."""
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
        "paper's best",
        (paper.BEST_SIMILARITY, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        rotation=90,
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
            label="the study's own rho" if whole else None,
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
    """Write each rho beside its point, at the side where it covers least: of points, curves, lines and other names."""
    to_points = 72 / axes.get_figure(root=True).dpi

    def place(point: Point) -> np.ndarray:
        return axes.transData.transform((style.drawable_similarity(point.similarity), point.metric)) * to_points

    bounds = axes.get_window_extent()
    obstacles = []
    for method in LABELS:
        curve = [
            place(point) for point in sorted((p for p in points if p.method == method), key=lambda p: p.similarity)
        ]
        obstacles += curve
        for start, end in pairwise(curve):
            steps = max(int(np.hypot(*(end - start)) // 3), 1)
            obstacles += [start + (end - start) * k / steps for k in range(1, steps)]
    for line in axes.get_lines():
        if len(line.get_xdata()) == 2 and line.get_transform() != axes.transData:  # references span the whole axes
            (x0, y0), (x1, y1) = line.get_transform().transform(line.get_xydata()) * to_points
            obstacles += [np.array((x0 + (x1 - x0) * k / 100, y0 + (y1 - y0) * k / 100)) for k in range(101)]
    places = [place(point) for point in points]
    taken: list[tuple[float, float, float, float]] = []
    for point in dict.fromkeys(points):
        if any(p.whole and (p.method, p.rho) == (point.method, point.rho) for p in points) and not point.whole:
            continue  # the study's own rho, met again as a cell of the sweep: one name is enough
        text = statistics.plain(point.rho)
        width, height, gap = 5.2 * len(text) + 1, 9.0, 5.5
        x, y = place(point)
        best = None
        for dx, dy in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            cx, cy = x + dx * (gap + width / 2) * (0.8 if dy else 1), y + dy * (gap + height / 2) * (0.8 if dx else 1)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            cost = sum(box[0] < ox < box[2] and box[1] < oy < box[3] for ox, oy in obstacles)
            cost += sum(50 for b in taken if box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3])
            outside = box[0] < bounds.x0 * to_points or box[2] > bounds.x1 * to_points + 15
            own = np.hypot(cx - x, cy - y)
            cost += sum(40 for o in places if np.hypot(cx - o[0], cy - o[1]) < 1.2 * own and (o[0], o[1]) != (x, y))
            cost += 50 * (outside or box[1] < bounds.y0 * to_points or box[3] > bounds.y1 * to_points)
            if best is None or cost < best[0]:
                best = (cost, cx - x, cy - y, box)
        taken.append(best[3])
        axes.annotate(
            text,
            (style.drawable_similarity(point.similarity), point.metric),
            xytext=best[1:3],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=labels.look(point.method).color,
        )


def _said(points: dict[str, list[Point]], evidence: Evidence) -> list[str]:
    found = [point for task in points.values() for point in task]
    seeds = {seed for point in found for seed in point.seeds}
    fewer = seeds < {run.seed for run in statistics.whole_runs(evidence.results)}
    lacking = [label for method, label in LABELS.items() if not any(p.method == method and not p.whole for p in found)]
    return [
        "Similarity: from one ADMM iteration to the next. Numbers at the points: rho (for the decoupled step the pull "
        "toward Z − U over one ADMM iteration, for the paper's recipe the weight of the penalty).",
        f"Points and lines are of {'seeds' if len(seeds) > 1 else 'seed'} {statistics.listed(sorted(seeds))} alone."
        if fewer
        else "",
        f"No sweep over rho in this study for: {'; '.join(lacking)}." if lacking else "",
        f"The paper finds its best score near {100 * paper.BEST_SIMILARITY:.0f} % (CoLA, QNLI, BERT-base).",
    ]
