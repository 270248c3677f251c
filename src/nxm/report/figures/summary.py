"""The headline: what each method keeps of the dense score, how sure that is, and what it kept in the paper."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence


def draw(evidence: Evidence) -> Figure:
    """One panel a task, and one of the geometric mean where there are several: a row a method, its retention with the
    paired interval, a small dot a seed, the paper's retention; the score in figures."""
    runs = statistics.whole_runs(evidence.results)
    tasks = statistics.tasks_of(runs)
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no results yet.")
        return figure
    methods = statistics.in_order([*labels.EVERYWHERE, *(run.name for run in runs)], labels.RUNS)
    groups = [[task] for task in tasks] + ([tasks] if len(tasks) > 1 else [])
    columns = min(len(groups), 3)
    rows = math.ceil(len(groups) / columns)
    width = 5.4 if len(groups) == 1 else style.TWO_COLUMNS
    figure, panels = style.canvas(width, 1.0 + rows * (0.5 + 0.27 * len(methods)), rows, columns, sharey=True)
    for axes, group in zip(panels.flat, groups, strict=False):
        _panel(axes, evidence, group, methods)
    for axes in list(panels.flat)[len(groups) :]:
        axes.set_axis_off()
    several = len({run.seed for run in runs}) > 1
    style.footnote(
        figure,
        [
            statistics.study_phrase(evidence),
            "Large: mean over seeds; small: each seed, of the dense mean." if several else "",
            f"Bars: 95 % intervals, paired bootstrap over dev examples{' and seeds' if several else ''}."
            if evidence.bootstrap
            else "",
            "Open diamond: the paper's. Right: our score × 100.",
            "Dotted: always the same answer." if any(evidence.floors.get(task, 0.0) > 0 for task in tasks) else "",
            statistics.selection_phrase(evidence),
            statistics.collapsed_phrase(runs),
            statistics.missing_phrase(evidence, labels.EVERYWHERE),
        ],
    )
    return figure


def _panel(axes: Axes, evidence: Evidence, tasks: list[str], methods: list[str]) -> None:
    runs = [run for run in statistics.whole_runs(evidence.results) if run.task in tasks]
    columns = statistics.columns_of(runs)
    axes.set_title(statistics.TASKS.get(tasks[0], tasks[0]) if len(tasks) == 1 else "Geometric mean")
    axes.set_xlabel("Kept of dense (%)")

    def ours(method: str) -> statistics.Score | None:
        if len(tasks) == 1:
            return statistics.task_score(runs, method, tasks[0])
        return statistics.average_score(runs, method, columns)

    def paper_score(method: str) -> float | None:
        return statistics.paper_task_score(method, tasks[0]) if len(tasks) == 1 else paper.average(method, columns)

    dense = ours("dense")
    axes.axvline(100, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    floor = statistics.retention(
        evidence.floors.get(tasks[0]) if len(tasks) == 1 else None, dense.mean if dense else None
    )
    if floor:
        axes.axvline(floor, color=style.GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    for y, method in enumerate(methods):
        score, look = ours(method), labels.look(method)
        kept = statistics.kept(evidence, method, "dense", tasks)
        if score and kept and dense:
            if kept.low is not None and method != "dense":
                axes.plot(
                    [kept.low, kept.high], [y, y], color=look.color, linewidth=1.6, solid_capstyle="butt", zorder=2
                )
            if len(score.values) > 1:
                seeds = [100 * value / dense.mean for value in score.values]
                small = {"linestyle": "", "marker": look.marker, "markersize": 2.5, "color": look.color, "alpha": 0.6}
                axes.plot(seeds, [y] * len(seeds), **small)
            axes.plot(
                [kept.value],
                [y],
                linestyle="",
                marker=look.marker,
                markersize=7,
                color=look.color,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3,
            )
        theirs = statistics.retention(paper_score(method), paper_score("dense"))
        if theirs is not None and method != "dense":
            axes.plot(
                [theirs],
                [y],
                linestyle="",
                marker="D",
                markersize=4.5,
                markerfacecolor="white",
                markeredgecolor=style.INK,
                markeredgewidth=0.9,
                zorder=2,
            )
        _beside(axes, y, f"{score.mean:.1f}" if score else "no results", style.INK if score else style.GREY)
    _beside(axes, -0.72, "score", style.GREY)
    axes.set(yticks=range(len(methods)), yticklabels=[labels.run_label(method) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.6)
    axes.margins(x=0.08)


def _beside(axes: Axes, y: float, text: str, color: str) -> None:
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
        annotation_clip=False,
    )
