"""The headline: the share of the dense score that each run retains, with its interval, compared with the paper's."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, labels, statistics, style
from nxm.report.evidence import Evidence


def draw(evidence: Evidence) -> Figure:
    """Return one panel per task, and one of the geometric mean where there are several; a row per run."""
    runs = statistics.whole_runs(evidence.results)
    tasks = statistics.tasks_of(runs)
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no results yet.")
        return figure
    names = statistics.in_order([*labels.EVERYWHERE, *(run.name for run in runs)], labels.RUNS)
    groups = statistics.task_groups(tasks)
    columns = min(len(groups), 3)
    rows = math.ceil(len(groups) / columns)
    width = 5.4 if len(groups) == 1 else style.TWO_COLUMNS
    figure, panels = style.canvas(width, 1.0 + rows * (0.5 + 0.25 * len(names)), rows, columns, sharey=True)
    for axes, group in zip(panels.flat, groups, strict=False):
        _panel(axes, evidence, group, names)
    for axes in list(panels.flat)[len(groups) :]:
        axes.set_axis_off()
    several = len({run.seed for run in runs}) > 1
    floor = any(evidence.floors.get(task, 0.0) > 0 for task in tasks)
    style.footnote(
        figure,
        captions.caption(
            evidence,
            f"Share of the dense score{', 95 % intervals by paired bootstrap' if evidence.bootstrap else ''}"
            f"{'; ticks: seeds' if several else ''}; open: the paper{'; dotted: a constant answer' if floor else ''}.",
            more=[
                captions.optimism(evidence),
                statistics.collapsed_phrase(runs),
                statistics.missing_phrase(evidence, labels.EVERYWHERE),
            ],
        ),
    )
    return figure


def _panel(axes: Axes, evidence: Evidence, tasks: list[str], names: list[str]) -> None:
    runs = [run for run in statistics.whole_runs(evidence.results) if run.task in tasks]
    scores = {name: statistics.method_score(runs, name, tasks) for name in names}
    dense = scores.get("dense")
    looks = {name: labels.look(name) for name in names}
    rows, by_seed = [], []
    for name, score in scores.items():
        share = statistics.retention_interval(evidence, name, "dense", tasks)
        if score is None or share is None or dense is None:
            continue
        low, high = (share.low, share.high) if name != "dense" else (None, None)
        rows.append({"category": name, "series": name, "value": share.value, "low": low, "high": high})
        by_seed += [{"category": name, "value": 100 * value / dense.mean} for value in score.values]
    axes.axvline(100, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    if rows:
        if len(by_seed) > len(rows):
            style.seeds(axes, pd.DataFrame(by_seed), names)
        style.points(axes, pd.DataFrame(rows).astype({"low": float, "high": float}), looks, names)
    if dense and len(tasks) == 1 and (floor := evidence.floors.get(tasks[0])):
        axes.axvline(100 * floor / dense.mean, color=style.GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    whole = statistics.paper_score("dense", tasks)
    theirs = {
        name: statistics.retention(statistics.paper_score(name, tasks), whole) for name in names if name != "dense"
    }
    axes.plot(
        [share for share in theirs.values() if share is not None],
        [names.index(name) for name, share in theirs.items() if share is not None],
        linestyle="",
        marker="D",
        markersize=4.5,
        markerfacecolor="white",
        markeredgecolor=style.INK,
        markeredgewidth=0.9,
        zorder=2.5,
    )
    for y, score in enumerate(scores.values()):
        _right_of(axes, y, f"{score.mean:.1f}" if score else "no results", style.INK if score else style.GREY)
    _right_of(axes, -0.85, "score", style.GREY)
    axes.set_title(statistics.TASKS.get(tasks[0], tasks[0]) if len(tasks) == 1 else "Geometric mean")
    axes.set_xlabel("% of dense")
    axes.set_yticks(range(len(names)), [look.label for look in looks.values()])
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.margins(x=0.08)


def _right_of(axes: Axes, y: float, text: str, color: str) -> None:
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
