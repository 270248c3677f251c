"""Convergence of ADMM: primal residual, dual residual and mask similarity per iteration."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, labels, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

PANELS = (
    ("primal_residual", "Primal residual", "‖W − Z‖ / ‖W‖"),
    ("dual_residual", "Dual residual", "‖Zₖ − Zₖ₋₁‖ / ‖W‖"),
    ("similarity", "Mask similarity", "Unchanged entries (%)"),
)
_MARKERS = 8  # on a line, at most twice as many


def draw(evidence: Evidence) -> Figure:
    """Return a row of three panels per task."""
    runs = {task: _runs(evidence.results, task) for task in statistics.tasks_of(evidence.results)}
    runs = {task: found for task, found in runs.items() if found}
    if not runs:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run with ADMM iterations yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    figure, panels = style.canvas(style.TWO_COLUMNS, 1.0 + 2.2 * len(runs), len(runs), 3)
    for row, (task, found) in zip(panels, runs.items(), strict=True):
        for axes, (field, title, unit) in zip(row, PANELS, strict=True):
            _panel(axes, field, found)
            axes.set(title=title if len(runs) == 1 else f"{title}, {statistics.TASKS.get(task, task)}", ylabel=unit)
            axes.set_xlabel("ADMM iteration")
    names = statistics.in_order((name for found in runs.values() for name in found), labels.RUNS)
    figure.legend(
        handles=style.handles(map(labels.look, names), line=True),
        loc="outside upper left",
        ncols=3,
        columnspacing=1.4,
        handlelength=3,
    )
    several = len({run.seed for found in runs.values() for own in found.values() for run in own}) > 1
    paper_rhos = {run.hyperparameters["rho"] for found in runs.values() for run in found.get("nxm_paper", [])}
    shows = ["ADMM iterations until the mask is frozen." if _any_frozen(runs) else "ADMM iterations."]
    if several:
        shows.append("Lines: means over seeds; bands: their range.")
    if paper_rhos:
        rhos = statistics.listed(map(labels.plain, sorted(paper_rhos)))
        shows.append(f"The paper's recipe: with the best ρ of the sweep ({rhos}).")
    style.footnote(figure, captions.caption(evidence, " ".join(shows), list(runs)))
    return figure


def _runs(results: list[Result], task: str) -> dict[str, list[Result]]:
    """Return the runs with ADMM by name; the paper's recipe is in a sweep, of which the best rho is shown."""
    own = [r for r in results if r.task == task and r.admm is not None and r.admm.iterations]
    found = {m: [r for r in own if r.name == m and r.whole] for m in statistics.methods_of(own)}
    swept = [r for r in own if statistics.shown_as(r) == "nxm_paper"]
    if swept and not found.get("nxm_paper"):
        scores = pd.Series([r.metric.value for r in swept], index=[r.variant for r in swept]).groupby(level=0).mean()
        found["nxm_paper"] = [r for r in swept if r.variant == scores.idxmax()]
    return {name: runs for name, runs in found.items() if runs}


def _any_frozen(runs: dict[str, dict[str, list[Result]]]) -> bool:
    return any(r.admm.frozen_at_step is not None for found in runs.values() for own in found.values() for r in own)


def _panel(axes: Axes, field: str, found: dict[str, list[Result]]) -> None:
    rows = [
        (name, iteration.iteration, getattr(iteration, field))
        for name, runs in found.items()
        for run in runs
        for iteration in run.admm.iterations
        if getattr(iteration, field) is not None
    ]
    if not rows:
        style.missing(axes, "not recorded: it needs two ADMM iterations")
        return
    data = pd.DataFrame(rows, columns=["series", "iteration", "value"])
    if field == "similarity":
        data["value"] = data["value"].map(style.drawable_similarity)
    last = int(data["iteration"].max())
    looks = {name: labels.look(name) for name in found}
    style.curves(axes, data, looks, "iteration", "value", every=max(last // _MARKERS, 1))
    if field == "similarity":
        style.similarity_scale(axes, "y", data.groupby(["series", "iteration"])["value"].mean())
    elif data["value"].min() > 0:
        style.log_scale(axes)
    style.integer_ticks(axes, last)
