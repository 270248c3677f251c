"""The headline: what each method scores, what it keeps of the dense score, and what it kept in the paper."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import Evidence, facts, paper, style


def draw(evidence: Evidence) -> Figure:
    """One panel a task, and one of the geometric mean where there are several: a row a method, a dot a seed, the mean
    large with its interval; the paper's retention on our scale."""
    runs = facts.whole_runs(evidence.results)
    tasks = facts.tasks_of(runs)
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no results yet.")
        return figure
    methods = facts.in_order([*facts.EVERYWHERE, *(run.method for run in runs)], facts.METHODS)
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
            facts.study_phrase(evidence),
            "Large: mean over seeds; small: each seed." if several else "",
            f"Bars: 95 % intervals, bootstrap over dev examples{' and seeds' if several else ''}."
            if evidence.bootstrap
            else "",
            "Right: percent of the dense score kept. Open diamond: the paper's percentage, of our dense score.",
            facts.selection_phrase(evidence),
            facts.collapsed_phrase(runs),
            facts.missing_phrase(evidence, facts.EVERYWHERE),
        ],
    )
    return figure


def _panel(axes: Axes, evidence: Evidence, tasks: list[str], methods: list[str]) -> None:
    runs = [run for run in facts.whole_runs(evidence.results) if run.task in tasks]
    columns = facts.columns_of(runs)
    if len(tasks) == 1:
        metric = runs[0].metric.name
        axes.set(title=facts.TASKS.get(tasks[0], tasks[0]), xlabel=f"{facts.METRICS.get(metric, metric)} × 100")
    else:
        axes.set(title="Geometric mean", xlabel="Score × 100")

    def ours(method: str) -> facts.Score | None:
        if len(tasks) == 1:
            return facts.task_score(runs, method, tasks[0])
        return facts.average_score(runs, method, columns)

    def paper_score(method: str) -> float | None:
        return facts.paper_task_score(method, tasks[0]) if len(tasks) == 1 else paper.average(method, columns)

    dense = ours("dense")
    if dense:
        axes.axvline(dense.mean, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    labelled = False
    for y, method in enumerate(methods):
        score = ours(method)
        look = style.look(method)
        kept = None
        if score:
            bounds = facts.score_interval(evidence, method, tasks)
            if bounds:
                axes.plot(bounds, [y, y], color=look.color, linewidth=1.6, solid_capstyle="butt", zorder=2)
            if len(score.values) > 1:
                axes.plot(
                    score.values,
                    [y] * len(score.values),
                    linestyle="",
                    marker=look.marker,
                    markersize=2.5,
                    color=look.color,
                    alpha=0.6,
                )
            axes.plot(
                [score.mean],
                [y],
                linestyle="",
                marker=look.marker,
                markersize=7,
                color=look.color,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3,
            )
            kept = facts.retention(score.mean, dense.mean if dense else None)
        theirs = facts.retention(paper_score(method), paper_score("dense"))
        if theirs is not None and dense and method != "dense":
            axes.plot(
                [theirs / 100 * dense.mean],
                [y],
                linestyle="",
                marker="D",
                markersize=4.5,
                markerfacecolor="white",
                markeredgecolor=style.INK,
                markeredgewidth=0.9,
                zorder=2,
                label=None if labelled else "paper",
            )
            labelled = True
        text = facts.percent(kept) if score else "no results"
        axes.annotate(
            text,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=style.INK if score else style.GREY,
            annotation_clip=False,
        )
    axes.annotate(
        "kept",
        (1, -0.6),
        xycoords=("axes fraction", "data"),
        xytext=(3, 2),
        textcoords="offset points",
        va="bottom",
        fontsize=8,
        color=style.GREY,
        annotation_clip=False,
    )
    axes.set(yticks=range(len(methods)), yticklabels=[facts.method_label(method) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.6)
    axes.margins(x=0.08)
