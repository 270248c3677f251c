"""Figure 2: NxM (hard-pruned for each evaluation) and ASP during training: (a) dev metric, (b) training loss."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

LOOKS = {"asp": labels.look("asp"), "nxm": replace(labels.look("nxm"), label="NxM, pruned")}


def draw(evidence: Evidence) -> Figure:
    """Return the figure for one task: STS-B, the paper's, where the study has it."""
    figure, ((left, right),) = style.canvas(style.TWO_COLUMNS, 3.0, 1, 2)
    runs = statistics.whole_runs(evidence.results)
    task = statistics.own_task(runs)
    runs = [run for run in runs if run.task == task]
    looks = {name: look for name, look in LOOKS.items() if any(run.name == name for run in runs)}
    if not looks:
        for axes in (left, right):
            style.missing(axes, f"Study {evidence.study} has results neither of NxM nor of ASP yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    own = [run for run in runs if run.name in looks]
    epochs = pd.DataFrame(
        {"series": run.name, "epoch": epoch.epoch, "metric": epoch.metric, "loss": epoch.train_loss}
        for run in own
        for epoch in run.epochs
    ).astype({"metric": float, "loss": float})
    for axes, column in ((left, "metric"), (right, "loss")):
        style.curves(axes, epochs.dropna(subset=column), looks, "epoch", column)
        style.integer_ticks(axes, round(epochs["epoch"].max()))
        axes.set_xlabel("Epoch")
    left.set(title="(a) Dev set", ylabel=f"{statistics.METRICS.get(runs[0].metric.name, runs[0].metric.name)} × 100")
    right.set(title="(b) Training loss", ylabel="Mean loss of the epoch")
    right.set_ylim(bottom=0)
    dense = statistics.task_score(runs, "dense", task)
    if dense:
        style.reference(left, dense.mean, f"Dense\n{dense.mean:.1f}", above=False)
        left.margins(y=0.12)
    _mark_freeze((left, right), [run for run in runs if run.name == "nxm"])
    if epochs["metric"].notna().any():
        left.legend(handles=style.handles(looks.values(), line=True), loc="lower right", handlelength=3)
    else:
        style.missing(left, "No evaluation on dev was recorded during these runs.")
    several = len({run.seed for run in own}) > 1
    bands = "Lines: means over seeds; bands: their range. " if several else ""
    style.footnote(figure, captions.caption(evidence, bands + _paper_says(task), [task], [_absent(runs, task)]))
    return figure


def _mark_freeze(panels: tuple[Axes, ...], runs: list[Result]) -> None:
    frozen = {
        run.admm.frozen_at_step: run for run in runs if run.admm is not None and run.admm.frozen_at_step is not None
    }
    if len(frozen) != 1:  # never, or not at the same step for all seeds
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


def _absent(runs: list[Result], task: str) -> str:
    absent = [name for name in ("dense", "asp", "nxm") if statistics.task_score(runs, name, task) is None]
    return f"No results file: {statistics.listed(map(labels.run_label, absent))}." if absent else ""


def _paper_says(task: str) -> str:
    values = {name: statistics.paper_task_score(name, task) for name in ("nxm", "asp", "dense")}
    if None in values.values():
        return ""
    ends = ", ".join(f"{labels.run_label(name)} {value:.1f}" for name, value in values.items())
    text = f"The paper (BERT-base) ends at {ends}"
    return (
        f"{text}; there NxM overtakes ASP at about epoch {paper.OVERTAKES_AT_EPOCH}." if task == "stsb" else f"{text}."
    )
