"""Effect of selection on a score: the trial best on dev, as in the paper, and the one best on held-out rows."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

FIELDS = ["task", "run", "best_on_dev", "best_held_out", "final", "spread", "seeds"]
RULES = {
    "best_on_dev": "best on dev",
    "best_held_out": "best on held-out rows",
    "final": "final runs with the latter's values",
}


def make(evidence: Evidence) -> Table:
    """Return three rows per run: dev scores of the trials chosen by each rule, and of the final runs."""
    title = "Selection on dev against selection on held-out rows"
    trials = [run for run in statistics.trials_of(evidence.results) if run.heldout is not None]
    if evidence.selection != "heldout":
        trials = []
    searched = {(run.name, run.task) for run in trials}
    own = [run for run in statistics.whole_runs(evidence.results) if (run.name, run.task) in searched]
    if not own:
        reason = f"Study {evidence.study} has no final runs with values that a search chose on held-out rows."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    tasks, methods = statistics.tasks_of(own), statistics.methods_of(own)
    numbers = []
    for task in tasks:
        for method in methods:
            final = statistics.task_score(own, method, task)
            if final is not None:
                chosen = _chosen([run for run in trials if (run.task, run.name) == (task, method)])
                numbers.append([task, method, *chosen, final.mean, final.spread, len(final.values)])
    table = pd.DataFrame(numbers, columns=FIELDS)
    means = {(method, rule): _mean(table, method, rule, tasks) for method in methods for rule in RULES}
    shown = []
    for method in methods:
        rows = table[table["run"] == method].set_index("task")
        for rule, label in RULES.items():
            texts = {
                statistics.TASKS.get(task, task): _text(rows.loc[task], rule)
                if task in rows.index
                else statistics.ABSENT
                for task in tasks
            }
            mean = means[method, rule]
            average = {"Geo. mean": statistics.ABSENT if mean is None else f"{mean:.1f}"} if len(tasks) > 1 else {}
            share = statistics.retention(mean, means.get(("dense", rule)))
            name = labels.run_label(method) if rule == "best_on_dev" else ""
            shown.append(
                {"Run": name, "Selection": label}
                | texts
                | average
                | {"% of dense": statistics.ABSENT if share is None else f"{share:.1f}"}
            )
    notes = (
        captions.data_and_model(evidence),
        f"Dev scores × 100. Trials: {statistics.seeds_phrase(trials)}; both rules choose among these. Held-out rows: "
        "training rows that no run trains on. ±: standard deviation over seeds.",
    )
    return Table(title, pd.DataFrame(shown), table, notes)


def _chosen(trials: list[Result]) -> tuple[float, float]:
    """Return the dev scores of the trial best on dev and of the trial best on held-out rows, means over seeds."""
    both = [(run.trial, run.metric.value, run.heldout.value) for run in trials if run.heldout is not None]
    scores = pd.DataFrame(both, columns=["trial", "dev", "heldout"]).groupby("trial", sort=False).mean()
    return float(scores["dev"].max()), float(scores["dev"].loc[scores["heldout"].idxmax()])


def _mean(table: pd.DataFrame, method: str, rule: str, tasks: list[str]) -> float | None:
    """Return the score of one task, or the geometric mean of several; None where one is missing."""
    values = table[table["run"] == method][rule]
    return None if len(values) < len(tasks) else statistics.combined(values)


def _text(row: pd.Series, rule: str) -> str:
    if rule == "final" and not pd.isna(row["spread"]):
        return f"{row['final']:.1f} ± {row['spread']:.1f}"
    return f"{row[rule]:.1f}"
