"""Learning rates tried for ASP and for NxM, the same for both, and which is in force."""

from __future__ import annotations

import pandas as pd

from nxm.report import Evidence, facts
from nxm.report.table import Table

FIELDS = ["task", "method", "learning_rate", "epochs", "mean", "spread", "seeds", "in_force"]


def make(evidence: Evidence) -> Table:
    """One row a task, method and learning rate: the tuning cells, and the study's own run where no cell is equal."""
    title = "Learning rates tried"
    cells = [run for run in evidence.results if run.cell is not None and run.cell.startswith("lr")]
    if not cells:
        reason = f"Study {evidence.study} has no tuning runs: the learning rates in force were not searched for in it."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (facts.study_phrase(evidence), reason))
    own = facts.whole_runs(evidence.results)
    tuned = {(run.task, run.method) for run in cells}
    tried = {(run.task, run.method, run.hyperparameters["learning_rate"]) for run in cells}
    in_force = {(run.task, run.method, run.hyperparameters["learning_rate"]) for run in own}
    runs = cells + [
        run
        for run in own
        if (run.task, run.method) in tuned and (run.task, run.method, run.hyperparameters["learning_rate"]) not in tried
    ]
    numbers = []
    for task in facts.tasks_of(runs):
        for method in facts.methods_of(runs):
            rates = {r.hyperparameters["learning_rate"] for r in runs if (r.task, r.method) == (task, method)}
            for rate in sorted(rates):
                key = (task, method, rate)
                group = [r for r in runs if (r.task, r.method, r.hyperparameters["learning_rate"]) == key]
                score = facts.score(run.metric.value for run in group)
                epochs = ", ".join(str(e) for e in sorted({run.hyperparameters["epochs"] for run in group}))
                numbers.append([task, method, rate, epochs, score.mean, score.spread, len(group), key in in_force])
    table = pd.DataFrame(numbers, columns=FIELDS)
    best = table.groupby(["task", "method"])["mean"].transform("max")
    shown = pd.DataFrame(
        {
            "Task": [facts.TASKS.get(task, task) for task in table["task"]],
            "Method": [facts.method_label(method) for method in table["method"]],
            "Learning rate": [facts.plain(rate) for rate in table["learning_rate"]],
            "Epochs": table["epochs"],
            "Score × 100": [
                f"{mean:.1f}" if pd.isna(spread) else f"{mean:.1f} ± {spread:.1f}"
                for mean, spread in zip(table["mean"], table["spread"], strict=True)
            ],
            "Best": ["best" if mean == top else "" for mean, top in zip(table["mean"], best, strict=True)],
            "In force": ["yes" if value else "" for value in table["in_force"]],
        }
    )
    notes = (
        f"{facts.study_phrase(evidence)} Tuning: {facts.seeds_phrase(cells)}.",
        facts.SELECTION,
        "The learning rate was looked for on dev, as the paper does: scores of what is in force are a little "
        "optimistic, alike for both methods.",
    )
    return Table(title, shown, table, notes)
