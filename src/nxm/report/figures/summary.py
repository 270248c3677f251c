"""The headline: what each method scores, what it keeps of the dense score, and what it kept in the paper."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import Evidence, facts, style
from nxm.results import Result

METHODS = [method for method in facts.METHODS if method != "nxm_paper"]  # it lives in the sweep: Figure 3


def draw(evidence: Evidence) -> Figure:
    """One panel a task: a row a method, a dot a seed, the mean large; the paper's retention on our scale."""
    runs = facts.whole_runs(evidence.results)
    tasks = facts.tasks_of(runs)
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no results yet.")
        return figure
    methods = facts.in_order([*METHODS, *(run.method for run in runs)], facts.METHODS)
    methods = [method for method in methods if method != "nxm_paper" or any(run.method == method for run in runs)]
    columns = min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    width = 5.4 if len(tasks) == 1 else style.TWO_COLUMNS
    figure, panels = style.canvas(width, 1.0 + rows * (0.5 + 0.27 * len(methods)), rows, columns, sharey=True)
    for axes, task in zip(panels.flat, tasks, strict=False):
        _panel(axes, [run for run in runs if run.task == task], task, methods)
    for axes in list(panels.flat)[len(tasks) :]:
        axes.set_axis_off()
    style.footnote(
        figure,
        [
            facts.study_phrase(evidence),
            "Large: mean over seeds; small: each seed." if len({run.seed for run in runs}) > 1 else "",
            "Right: percent of the dense score kept. Open diamond: the paper's percentage, of our dense score.",
            facts.SELECTION,
            facts.missing_phrase(evidence, METHODS),
        ],
    )
    return figure


def _panel(axes: Axes, runs: list[Result], task: str, methods: list[str]) -> None:
    metric = runs[0].metric.name
    axes.set(title=facts.TASKS.get(task, task), xlabel=f"{facts.METRICS.get(metric, metric)} × 100")
    dense = facts.task_score(runs, "dense", task)
    if dense:
        axes.axvline(dense.mean, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    labelled = False
    for y, method in enumerate(methods):
        score = facts.task_score(runs, method, task)
        look = style.look(method)
        kept = None
        if score:
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
        theirs = facts.retention(facts.paper_task_score(method, task), facts.paper_task_score("dense", task))
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
