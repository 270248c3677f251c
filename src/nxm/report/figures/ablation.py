"""The ablation: left, what one changed ingredient does to NxM+; right, NxM+ and its rivals, at 2:4 beside the dense
model and at other patterns."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nxm.report import labels, statistics, style
from nxm.report.evidence import Evidence

_LINEAR = 3  # points, within which differences are drawn to scale
_TICKS = (-30, -10, -3, -1, 0, 1, 3, 10, 30)


def draw(evidence: Evidence) -> Figure:
    """Over one task, or the geometric mean of several: points with 95 % intervals, a small dot a seed."""
    tasks = statistics.tasks_of(run for run in statistics.whole_runs(evidence.results) if run.name == "nxm_plus")
    if not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run of NxM+ yet.")
        style.footnote(figure, [statistics.study_phrase(evidence)])
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
    figure, axes = style.mosaic(style.TWO_COLUMNS, 1.5 + 0.28 * rows, mosaic, height_ratios=heights)
    if changes:
        _differences(axes["changes"], evidence, changes, tasks)
    _scores(axes["others"], evidence, {name: labels.run_label(name) for name in others}, tasks, "Beside its rivals")
    if patterns:
        names = {name: _label_of_pattern(evidence, name) for name in patterns}
        shared = [task for task in tasks if all(task in evidence.variant_tasks.get(name, tasks) for name in patterns)]
        own = shared or tasks
        where = "" if own == tasks else f", {statistics.listed(statistics.TASKS.get(task, task) for task in own)}"
        _scores(axes["patterns"], evidence, names, own, f"Other patterns{where}")
    several = len({run.seed for run in statistics.whole_runs(evidence.results)}) > 1
    style.footnote(
        figure,
        [
            statistics.study_phrase(evidence),
            f"Geometric mean over {statistics.listed(statistics.TASKS.get(task, task) for task in tasks)}."
            if len(tasks) > 1
            else "",
            f"Bars: 95 % intervals, paired bootstrap over dev examples{' and seeds' if several else ''}.",
            "Small: each seed." if several else "",
            "Left, filled: the interval excludes zero." if changes else "",
            "Right, open: a variant; dashed: dense." if changes else "Open: a variant; dashed: dense.",
            statistics.selection_phrase(evidence),
        ],
    )
    return figure


def _pattern(evidence: Evidence, name: str) -> str:
    """Return the constraint set of a variant that has another than its run, and so another problem; else nothing."""
    run = name.partition("/")[0]
    sets = [{own.sparsity.pattern for own in statistics.runs_of(evidence.results, which)} for which in (name, run)]
    other = sets[0] - sets[1] if sets[1] else set()
    return next(iter(sorted(map(str, other))), "")


def _label_of_pattern(evidence: Evidence, name: str) -> str:
    """`1:4, GMP+`; with what weights are chosen by, where that is not the method's own."""
    method = name.partition("/")[0]
    return ", ".join([_pattern(evidence, name), labels.run_label(method), *_other_importance(evidence, name)])


def _other_importance(evidence: Evidence, name: str) -> list[str]:
    """What a variant chooses weights by, where its method chooses them by something else."""
    ours, base = (
        {run.hyperparameters.get("importance") for run in statistics.runs_of(evidence.results, which)}
        for which in (name, name.partition("/")[0])
    )
    return sorted(ours - base)


def _differences(axes: Axes, evidence: Evidence, names: list[str], tasks: list[str]) -> None:
    axes.set(
        title="NxM+, one ingredient changed",
        xlabel=f"points against NxM+, or what is named\n(logarithmic beyond {_LINEAR})",
    )
    axes.axvline(0, color=style.INK, linewidth=1.0)
    look = labels.look("nxm_plus")
    differences = {name: statistics.difference(evidence, name, evidence.variants[name], tasks) for name in names}
    sizes = {name: points.value for name, points in differences.items() if points}
    names = sorted(sizes, key=lambda name: sizes[name])  # what costs most stands above
    for y, name in enumerate(names):
        points = differences[name]
        if points.low is not None and points.high is not None:
            axes.plot([points.low, points.high], [y, y], color=look.color, linewidth=1.6, solid_capstyle="butt")
        _mark(axes, look, points.value, y, filled=bool(points.certain))
        by_seed = _by_seed(evidence, name, tasks)
        axes.plot(by_seed, [y] * len(by_seed), **_DOTS)
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1.2)  # one that fails must not hide what the others differ by
    axes.set_xticks([tick for tick in _TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(yticks=range(len(names)), yticklabels=[_label(evidence, name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _label(evidence: Evidence, name: str) -> str:
    ours, rival = (which.partition("/")[2].replace("-", " ") for which in (name, evidence.variants[name]))
    return f"{ours}\n(against {rival})" if rival else ours


def _mark(axes: Axes, look: labels.Look, x: float, y: float, filled: bool) -> None:
    face = look.color if filled else "white"
    axes.plot([x], [y], color=look.color, marker=look.marker, markersize=6.5, markerfacecolor=face, zorder=3)


_DOTS = {"linestyle": "", "marker": "|", "markersize": 6, "color": style.GREY, "alpha": 0.8, "zorder": 2}


def _by_seed(evidence: Evidence, name: str, tasks: list[str]) -> list[float]:
    """The difference of each seed that both have, on one task; of several nothing is shown by seed."""
    if len(tasks) > 1:
        return []
    ours, base = (
        {run.seed: run.metric.value for run in statistics.runs_of(evidence.results, method) if run.task == tasks[0]}
        for method in (name, evidence.variants[name])
    )
    return [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]


def _scores(axes: Axes, evidence: Evidence, names: dict[str, str], tasks: list[str], title: str) -> None:
    runs = [run for run in evidence.results if run.task in tasks]
    columns = statistics.columns_of(statistics.whole_runs(runs))
    metric = statistics.METRICS.get(runs[0].metric.name, runs[0].metric.name) if len(tasks) == 1 else "Geometric mean"
    axes.set(title=title, xlabel=f"{metric} × 100")
    dense = statistics.average_score(runs, "dense", columns)
    if dense is not None:
        axes.axvline(dense.mean, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    for y, name in enumerate(names):
        score = statistics.average_score(runs, name, columns)
        if score is None:
            continue
        look = labels.look(name.partition("/")[0])
        bounds = statistics.score_interval(evidence, name, tasks)
        if bounds:
            axes.plot(bounds, [y, y], color=look.color, linewidth=1.6, solid_capstyle="butt", zorder=2)
        axes.plot(score.values, [y] * len(score.values), **_DOTS)
        own = "/" not in name or (_pattern(evidence, name) and not _other_importance(evidence, name))
        _mark(axes, look, score.mean, y, filled=bool(own))
    axes.set(yticks=range(len(names)), yticklabels=list(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
