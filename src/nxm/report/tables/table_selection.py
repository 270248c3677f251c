"""What selection does to a score: the cell that is best on dev, as the paper chooses it, beside the honest choice."""

from __future__ import annotations

import pandas as pd

from nxm.report import labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

FIELDS = ["task", "method", "best_on_dev", "best_held_out", "final", "spread", "seeds"]
RULES = {
    "best_on_dev": "best on dev",
    "best_held_out": "best on held-out rows",
    "final": "the latter, final runs",
}


def make(evidence: Evidence) -> Table:
    """Three rows a method, a column a task: dev scores of the grid's cells chosen by either rule, and of final runs."""
    title = "Selection on dev against selection on held-out rows"
    cells = [run for run in statistics.trials_of(evidence.results) if run.heldout is not None]
    if evidence.selection != "heldout":
        cells = []
    searched = {(run.name, run.task) for run in cells}
    own = [run for run in statistics.whole_runs(evidence.results) if (run.name, run.task) in searched]
    if not own:
        reason = f"Study {evidence.study} has no final runs of values that a grid chose on held-out rows."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (statistics.study_phrase(evidence), reason))
    tasks, methods = statistics.tasks_of(own), statistics.methods_of(own)
    numbers = []
    for task in tasks:
        for method in methods:
            final = statistics.task_score(own, method, task)
            if final is not None:
                chosen = _chosen([run for run in cells if (run.task, run.name) == (task, method)])
                numbers.append([task, method, *chosen, final.mean, final.spread, len(final.values)])
    table = pd.DataFrame(numbers, columns=FIELDS)
    means = {(method, rule): _mean(table, method, rule, tasks) for method in methods for rule in RULES}
    shown = []
    for method in methods:
        rows = table[table["method"] == method].set_index("task")
        for rule, label in RULES.items():
            texts = {
                statistics.TASKS.get(task, task): _text(rows.loc[task], rule)
                if task in rows.index
                else statistics.ABSENT
                for task in tasks
            }
            mean = means[method, rule]
            average = {"Geo. mean": statistics.ABSENT if mean is None else f"{mean:.1f}"} if len(tasks) > 1 else {}
            kept = statistics.percent(statistics.retention(mean, means.get(("dense", rule))))
            name = labels.run_label(method) if rule == "best_on_dev" else ""
            shown.append({"Method": name, "Cell": label} | texts | average | {"Kept of dense": kept})
    notes = (
        statistics.study_phrase(evidence),
        "All numbers are dev scores × 100. Best on dev: of the cell of the grid with the highest dev score, as in the "
        "paper. Best on held-out rows: of the cell that scored highest on training rows that no run trains "
        f"on. Both are of {statistics.seeds_phrase(cells)}, so they differ by the choice alone. Final runs: of the latter "
        f"cell's values with {statistics.seeds_phrase(own)}; ± is the standard deviation over them.",
    )
    return Table(title, pd.DataFrame(shown), table, notes)


def _chosen(cells: list[Result]) -> tuple[float, float]:
    """The dev score of the cell best on dev, and of the one best on held-out rows; means over the grid's seeds."""
    both = [(run.trial, run.metric.value, run.heldout.value) for run in cells if run.heldout is not None]
    scores = pd.DataFrame(both, columns=["cell", "dev", "heldout"]).groupby("cell", sort=False).mean()
    return float(scores["dev"].max()), float(scores["dev"].loc[scores["heldout"].idxmax()])


def _mean(table: pd.DataFrame, method: str, rule: str, tasks: list[str]) -> float | None:
    """The score of one task, or the geometric mean of several; None where one is missing."""
    values = table[table["method"] == method][rule]
    if len(values) < len(tasks):
        return None
    return float(values.iloc[0]) if len(tasks) == 1 else paper.geometric_mean(values)


def _text(row: pd.Series, rule: str) -> str:
    if rule == "final" and not pd.isna(row["spread"]):
        return f"{row['final']:.1f} ± {row['spread']:.1f}"
    return f"{row[rule]:.1f}"
