"""How ADMM converges: primal residual, dual residual and mask similarity by iteration, by method."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

PANELS = (
    ("primal_residual", "Primal residual", "‖W − Z‖ / ‖W‖"),
    ("dual_residual", "Dual residual", "‖Zₖ − Zₖ₋₁‖ / ‖W‖"),
    ("similarity", "Mask similarity", "mask entries that stay (%)"),
)


def draw(evidence: Evidence) -> Figure:
    """A row of three panels a task; lines are means over seeds."""
    runs = {task: _runs(evidence.results, task) for task in statistics.tasks_of(evidence.results)}
    runs = {task: found for task, found in runs.items() if found}
    if not runs:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no run with ADMM iterations yet.")
        style.footnote(figure, [statistics.study_phrase(evidence)])
        return figure
    figure, panels = style.canvas(style.TWO_COLUMNS, 1.0 + 2.2 * len(runs), len(runs), 3)
    entries = {}
    for row, (task, found) in zip(panels, runs.items(), strict=True):
        for axes, (field, title, unit) in zip(row, PANELS, strict=True):
            _panel(axes, field, found)
            axes.set(title=title if len(runs) == 1 else f"{title}, {statistics.TASKS.get(task, task)}", ylabel=unit)
            axes.set_xlabel("ADMM iteration")
        handles, labels = row[0].get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=3, columnspacing=1.4, handlelength=3
    )
    several = len({run.seed for found in runs.values() for own in found.values() for run in own}) > 1
    paper_rhos = {run.hyperparameters["rho"] for found in runs.values() for run in found.get("nxm_paper", [])}
    names = statistics.listed(map(statistics.plain, sorted(paper_rhos)))
    style.footnote(
        figure,
        [
            statistics.study_phrase(evidence, list(runs)),
            "Until the mask is frozen, where it is." if _any_frozen(runs) else "",
            "Lines: means over seeds." if several else "",
            f"Of the paper's recipe the best rho of the sweep is shown ({names})." if paper_rhos else "",
        ],
    )
    return figure


def _runs(results: list[Result], task: str) -> dict[str, list[Result]]:
    """Runs with ADMM by method. The paper's recipe lives in cells: those of the rho that ends best stand for it."""
    own = [r for r in results if r.task == task and r.admm is not None and r.admm.iterations]
    found = {m: [r for r in own if r.name == m and r.whole] for m in statistics.methods_of(own)}
    cells = [r for r in own if statistics.shown_as(r) == "nxm_paper"]
    if cells and not found.get("nxm_paper"):
        by_cell = pd.Series([r.metric.value for r in cells], index=[r.variant for r in cells]).groupby(level=0).mean()
        found["nxm_paper"] = [r for r in cells if r.variant == by_cell.idxmax()]
    return {method: runs for method, runs in found.items() if runs}


def _any_frozen(runs: dict[str, dict[str, list[Result]]]) -> bool:
    return any(r.admm.frozen_at_step is not None for found in runs.values() for own in found.values() for r in own)


def _panel(axes: Axes, field: str, found: dict[str, list[Result]]) -> None:
    lines = {}
    for method, runs in found.items():
        points = pd.DataFrame(
            [
                (i.iteration, getattr(i, field))
                for run in runs
                for i in run.admm.iterations
                if getattr(i, field) is not None
            ],
            columns=["iteration", "value"],
        )
        lines[method] = points.groupby("iteration")["value"].mean()
    everything = [value for line in lines.values() for value in line]
    if not everything:
        style.missing(axes, "not recorded: it needs two ADMM iterations")
        return
    if field == "similarity":
        style.similarity_scale(axes, "y", everything)
    elif min(everything) > 0:
        style.log_scale(axes)
    for method, line in lines.items():
        values = line.map(style.drawable_similarity) if field == "similarity" else line
        many = len(line) > 15
        axes.plot(
            line.index,
            values,
            label=labels.run_label(method),
            **(labels.look(method).line() | ({"marker": ""} if many else {})),
        )
    style.integer_ticks(axes, max(int(line.index.max()) for line in lines.values() if len(line)))
