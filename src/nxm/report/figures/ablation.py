"""The ablation: left, the effect of changing one ingredient of NxM+; right, NxM+ and its rivals."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nxm.report import captions, labels, statistics, style
from nxm.report.evidence import Evidence

_LINEAR = 3  # points, within which differences are drawn to scale
_TICKS = (-30, -10, -3, -1, 0, 1, 3, 10, 30)


def draw(evidence: Evidence) -> Figure:
    """Return the figure for one task, or for the geometric mean of several."""
    tasks = statistics.tasks_of(run for run in statistics.whole_runs(evidence.results) if run.name == "nxm_plus")
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run of NxM+ yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    measured = [name for name in evidence.variants if statistics.runs_of(evidence.results, name)]
    patterns = sorted(
        (name for name in measured if _pattern(evidence, name)), key=lambda name: _pattern(evidence, name)
    )
    measured = [name for name in measured if name not in patterns]
    changes = [name for name in measured if name.startswith("nxm_plus/")]
    others = [
        *statistics.in_order(["dense", *labels.PLUS], labels.RUNS),
        *(name for name in measured if name not in changes),
    ]
    others = [name for name in others if statistics.runs_of(evidence.results, name)]
    rows = max(len(changes), len(others) + (len(patterns) + 3 if patterns else 0))
    mosaic = [[*(["changes"] if changes else []), panel] for panel in ["others", *(["patterns"] if patterns else [])]]
    heights = [len(others), len(patterns) + 0.5] if patterns else [1]
    figure, axes = style.mosaic(style.TWO_COLUMNS, 1.6 + 0.27 * rows, mosaic, height_ratios=heights)
    if changes:
        _differences(axes["changes"], evidence, changes, tasks)
    _scores(axes["others"], evidence, others, tasks, "NxM+ and its rivals")
    if patterns:
        shared = [task for task in tasks if all(task in evidence.variant_tasks.get(name, tasks) for name in patterns)]
        own = shared or tasks
        where = "" if own == tasks else f", {statistics.listed(statistics.TASKS.get(task, task) for task in own)}"
        _scores(axes["patterns"], evidence, patterns, own, f"Other patterns{where}")
    several = len({run.seed for run in statistics.whole_runs(evidence.results)}) > 1
    shows = [f"95 % intervals by paired bootstrap{'; ticks: seeds' if several else ''}."]
    if len(tasks) > 1:
        shows.insert(0, f"Geometric mean over {statistics.listed(statistics.TASKS.get(task, task) for task in tasks)}.")
    if changes:
        shows.append("Left, filled: the interval excludes 0.")
    if any("/" in name for name in (*others, *patterns)):
        shows.append(f"{'Right, open' if changes else 'Open'}: a variant.")
    shows.append("Dashed: dense.")
    style.footnote(figure, captions.caption(evidence, " ".join(shows), tasks))
    return figure


def _pattern(evidence: Evidence, name: str) -> str:
    """Return the pattern of a variant if it is another than its run's, so another problem; else an empty text."""
    run = name.partition("/")[0]
    sets = [{own.sparsity.pattern for own in statistics.runs_of(evidence.results, which)} for which in (name, run)]
    other = sets[0] - sets[1] if sets[1] else set()
    return next(iter(sorted(map(str, other))), "")


def _other_importance(evidence: Evidence, name: str) -> bool:
    """Return whether a variant selects weights by another measure than its run."""
    ours, base = (
        {statistics.value_of(run, "importance") for run in statistics.runs_of(evidence.results, which)}
        for which in (name, name.partition("/")[0])
    )
    return bool(ours - base)


def _differences(axes: Axes, evidence: Evidence, names: list[str], tasks: list[str]) -> None:
    differences = {name: statistics.difference(evidence, name, evidence.variants[name], tasks) for name in names}
    found = {name: points for name, points in differences.items() if points is not None}
    names = sorted(found, key=lambda name: found[name].value)  # the costliest change at the top
    rows = [_row(name, "nxm_plus", own.value, own.low, own.high, not own.certain) for name, own in found.items()]
    by_seed = [{"category": name, "value": value} for name in names for value in _by_seed(evidence, name, tasks)]
    axes.axvline(0, color=style.INK, linewidth=1.0)
    if rows:
        if by_seed:
            style.seeds(axes, pd.DataFrame(by_seed), names)
        style.points(axes, _frame(rows), {"nxm_plus": labels.look("nxm_plus")}, names)
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1.2)  # one large loss must not squeeze all the others
    axes.margins(x=0.06)
    axes.set_xticks([tick for tick in _TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), [_label(evidence, name) for name in names], linespacing=1.0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(
        title="NxM+ with one change",
        xlabel=f"Points compared with NxM+, or as named\n(logarithmic beyond {_LINEAR})",
    )


def _label(evidence: Evidence, name: str) -> str:
    ours, rival = (which.partition("/")[2] for which in (name, evidence.variants[name]))
    return labels.variant_label(ours) + (f"\nvs. {labels.variant_label(rival)}" if rival else "")


def _by_seed(evidence: Evidence, name: str, tasks: list[str]) -> list[float]:
    """Return the difference of each seed that both runs have on one task; nothing for several tasks."""
    if len(tasks) > 1:
        return []
    ours, base = (
        {run.seed: run.metric.value for run in statistics.runs_of(evidence.results, which) if run.task == tasks[0]}
        for which in (name, evidence.variants[name])
    )
    return [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]


def _scores(axes: Axes, evidence: Evidence, names: list[str], tasks: list[str], title: str) -> None:
    runs = [run for run in evidence.results if run.task in tasks]
    metric = statistics.METRICS.get(runs[0].metric.name, runs[0].metric.name) if len(tasks) == 1 else "Geometric mean"
    dense = statistics.method_score(runs, "dense", tasks)
    if dense is not None:
        axes.axvline(dense.mean, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    rows, by_seed = [], []
    for name in names:
        score = statistics.method_score(runs, name, tasks)
        if score is None:
            continue
        low, high = statistics.score_interval(evidence, name, tasks) or (None, None)
        variant = "/" in name and not (_pattern(evidence, name) and not _other_importance(evidence, name))
        rows.append(_row(name, name.partition("/")[0], score.mean, low, high, variant))
        by_seed += [{"category": name, "value": value} for value in score.values]
    if rows:
        style.seeds(axes, pd.DataFrame(by_seed), names)
        looks = {run: labels.look(run) for run in dict.fromkeys(name.partition("/")[0] for name in names)}
        style.points(axes, _frame(rows), looks, names)
    axes.set(title=title, xlabel=f"{metric} × 100")
    axes.set_yticks(
        range(len(names)),
        [textwrap.fill(labels.run_label(name), 22, break_on_hyphens=False) for name in names],
        linespacing=1.0,
    )
    axes.set_ylim(len(names) - 0.5, -0.5)


def _row(name: str, series: str, value: float, low: float | None, high: float | None, is_open: bool) -> dict[str, Any]:
    return {"category": name, "series": series, "value": value, "low": low, "high": high, "open": is_open}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"low": float, "high": float})
