"""Figure 2: NxM (pruned hard at each evaluation) and ASP during training: (a) dev metric, (b) training loss."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Epoch, Result

LABELS = {"asp": "ASP", "nxm": "NxM, pruned"}


def draw(evidence: Evidence) -> Figure:
    """One task: STS-B, the paper's, when the study has it. Lines are means over seeds, bands their range."""
    figure, ((left, right),) = style.canvas(style.TWO_COLUMNS, 3.0, 1, 2)
    runs = statistics.whole_runs(evidence.results)
    task = statistics.own_task(runs)
    runs = [run for run in runs if run.task == task]
    shown = [method for method in ("asp", "nxm") if any(run.name == method for run in runs)]
    left.set(title="(a) Dev set", xlabel="Epoch")
    right.set(title="(b) Training loss", xlabel="Epoch", ylabel="Mean loss of the epoch")
    if not shown:
        for axes in (left, right):
            style.missing(axes, f"Study {evidence.study} has results neither of NxM nor of ASP yet.")
        style.footnote(figure, [statistics.study_phrase(evidence)])
        return figure
    left.set_ylabel(f"{statistics.METRICS.get(runs[0].metric.name, runs[0].metric.name)} × 100")
    for method in shown:
        own = [run for run in runs if run.name == method]
        _curve(left, own, lambda epoch: epoch.metric)
        _curve(right, own, lambda epoch: epoch.train_loss)
    dense = statistics.task_score(runs, "dense", task)
    if dense:
        style.reference(left, dense.mean, f"Dense\n{dense.mean:.1f}", above=False)
        left.margins(y=0.12)
    _mark_freeze((left, right), [run for run in runs if run.name == "nxm"])
    longest = max(epoch.epoch for run in runs if run.name in shown for epoch in run.epochs)
    for axes in (left, right):
        style.integer_ticks(axes, round(longest))
    right.set_ylim(bottom=0)
    if left.get_legend_handles_labels()[0]:
        left.legend(loc="lower right")
    else:
        style.missing(left, "No evaluation on dev was recorded during these runs.")
    style.footnote(figure, [statistics.study_phrase(evidence, [task]), *_said(runs, task), _paper_says(task)])
    return figure


def _curve(axes: Axes, runs: list[Result], value: Callable[[Epoch], float | None]) -> None:
    points = pd.DataFrame(
        [(epoch.epoch, value(epoch)) for run in runs for epoch in run.epochs if value(epoch) is not None],
        columns=["epoch", "value"],
    )
    if points.empty:
        return
    over_seeds = points.groupby("epoch")["value"].agg(["mean", "min", "max"])
    method = runs[0].name
    axes.plot(over_seeds.index, over_seeds["mean"], label=LABELS[method], **labels.look(method).line())
    if len(runs) > 1:
        axes.fill_between(
            over_seeds.index,
            over_seeds["min"],
            over_seeds["max"],
            color=labels.look(method).color,
            alpha=0.18,
            linewidth=0,
        )


def _mark_freeze(panels: tuple[Axes, ...], runs: list[Result]) -> None:
    frozen = {
        run.admm.frozen_at_step: run for run in runs if run.admm is not None and run.admm.frozen_at_step is not None
    }
    if len(frozen) != 1:  # never, or not the same in all seeds
        return
    ((step, run),) = frozen.items()
    last = run.epochs[-1]
    at = step * last.epoch / last.step
    for axes in panels:
        axes.axvline(at, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    panels[1].annotate(
        "mask frozen",
        (at, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=8,
        color=style.GREY,
        ha="left",
        va="bottom",
    )


def _said(runs: list[Result], task: str) -> list[str]:
    absent = [labels.run_label(m) for m in ("dense", "asp", "nxm") if statistics.task_score(runs, m, task) is None]
    several = len({run.seed for run in runs}) > 1
    return [
        f"No results file: {statistics.listed(absent)}." if absent else "",
        "Dense: its last epoch. NxM is evaluated with its weights pruned hard.",
        "Lines: means over seeds; bands: lowest to highest." if several else "",
    ]


def _paper_says(task: str) -> str:
    values = {method: statistics.paper_task_score(method, task) for method in ("nxm", "asp", "dense")}
    if None in values.values():
        return ""
    name = statistics.TASKS[task]
    ends = ", ".join(f"{labels.run_label(method)} {value:.1f}" for method, value in values.items())
    text = f"The paper ends at {ends} (BERT-base, {name})"
    return (
        f"{text}; there NxM overtakes ASP at about epoch {paper.OVERTAKES_AT_EPOCH}." if task == "stsb" else f"{text}."
    )
