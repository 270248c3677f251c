"""What selection does to a score: the best of the grid on dev, as the paper reports it, beside the honest number."""

from __future__ import annotations

import pandas as pd

from nxm.report import Evidence, facts, paper
from nxm.report.table import Table

FIELDS = ["task", "method", "best_on_dev", "chosen_held_out", "spread", "seeds"]


def make(evidence: Evidence) -> Table:
    """Two rows a method, a column a task: the grid's best dev score; the mean of the final runs of the cell chosen."""
    title = "Selection on dev against selection on held-out rows"
    cells = [run for run in facts.grid_cells(evidence.results) if run.heldout is not None]
    if evidence.selection != "heldout":
        cells = []
    searched = {(run.method, run.task) for run in cells}
    own = [run for run in facts.whole_runs(evidence.results) if (run.method, run.task) in searched]
    if not own:
        reason = f"Study {evidence.study} has no final runs of values that a grid chose on held-out rows."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (facts.study_phrase(evidence), reason))
    tasks, methods = facts.tasks_of(own), facts.methods_of(own)
    numbers = []
    for task in tasks:
        for method in methods:
            tried = [run.metric.value for run in cells if (run.task, run.method) == (task, method)]
            final = facts.task_score(own, method, task)
            if final is not None and tried:
                numbers.append([task, method, max(tried), final.mean, final.spread, len(final.values)])
    table = pd.DataFrame(numbers, columns=FIELDS)
    shown = []
    for method in methods:
        rows = table[table["method"] == method].set_index("task")
        for key, label in (("best_on_dev", "best on dev"), ("chosen_held_out", "chosen on held-out rows")):
            texts = {
                facts.TASKS.get(task, task): f"{rows.loc[task, key]:.1f}" if task in rows.index else facts.ABSENT
                for task in tasks
            }
            mean = paper.geometric_mean(rows[key]) if len(rows) == len(tasks) else None
            average = {"Geo. mean": facts.ABSENT if mean is None else f"{mean:.1f}"} if len(tasks) > 1 else {}
            name = facts.method_label(method) if key == "best_on_dev" else ""
            shown.append({"Method": name, "Selection": label} | texts | average)
    notes = (
        facts.study_phrase(evidence),
        "Best on dev: the highest dev score of any cell of the grid, one run, as the paper reports it. Chosen on "
        "held-out rows: the mean over the final runs of the cell that scored best on training rows that no run trains "
        f"on. Seeds: {facts.listed(sorted({run.seed for run in cells}))} in the grid, "
        f"{facts.listed(sorted({run.seed for run in own}))} in the final runs.",
    )
    return Table(title, pd.DataFrame(shown), table, notes)
