"""The search: every cell of the grid, which is best on held-out rows and on dev, and what is in force."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nxm.report import labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = ["task", "method", "cell", *statistics.SEARCHED, "epochs", "heldout", "dev", "seeds", "in_force", "failure"]


def make(evidence: Evidence) -> Table:
    """One row a task, method and cell: means over the grid's seeds."""
    title = "Hyper-parameters tried"
    cells, failed_cells = statistics.trials_of(evidence.results), statistics.trials_of(evidence.failures)
    if not cells and not failed_cells:
        reason = f"Study {evidence.study} has no grid: its hyper-parameters were not searched for in it."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (statistics.study_phrase(evidence), reason))
    own = statistics.whole_runs(evidence.results)
    in_force = {(run.task, run.name, *(run.hyperparameters.get(key) for key in statistics.SEARCHED)) for run in own}
    failures = {(failure.task, failure.name, failure.trial): failure for failure in failed_cells}
    numbers: list[dict[str, Any]] = []
    records = [*cells, *failed_cells]
    for task in statistics.in_order((record.task for record in records), statistics.TASKS):
        for method in statistics.in_order((record.name for record in records), labels.RUNS):
            names = {record.trial: record for record in records if (record.task, record.name) == (task, method)}
            rows = []
            for name, record in names.items():
                group = [run for run in cells if (run.task, run.name, run.trial) == (task, method, name)]
                values = {key: record.hyperparameters.get(key) for key in statistics.SEARCHED}
                heldout = [run.heldout.value for run in group if run.heldout]
                failed = failures.get((task, method, name))
                rows.append(
                    {"task": task, "method": method, "cell": name, **values}
                    | {
                        "epochs": record.hyperparameters.get("epochs"),
                        "heldout": None if failed or not heldout else sum(heldout) / len(heldout),
                        "dev": None if failed else sum(run.metric.value for run in group) / len(group),
                        "seeds": len(group),
                        "in_force": (task, method, *values.values()) in in_force,
                        "failure": failed.failure if failed else None,
                    }
                )
            numbers += sorted(rows, key=lambda row: [(row[key] is not None, row[key]) for key in statistics.SEARCHED])
    table = pd.DataFrame(numbers, columns=FIELDS)
    shown = pd.DataFrame(
        {
            "Task": [statistics.TASKS.get(task, task) for task in table["task"]],
            "Method": [labels.run_label(method) for method in table["method"]],
        }
        | {
            label: [statistics.ABSENT if pd.isna(value) else statistics.said(value) for value in table[key]]
            for key, label in statistics.SEARCHED.items()
            if (table.groupby(["task", "method"])[key].nunique() > 1).any()
        }
        | {
            "Epochs": table["epochs"].map("{:g}".format),
            "Held out": _scores(table, "heldout"),
            "Dev": _scores(table, "dev"),
            "In force": ["yes" if value else "" for value in table["in_force"]],
            "Failed": table["failure"].fillna(""),
        }
    )
    if not failed_cells:
        shown = shown.drop(columns="Failed")
    if not own:
        shown = shown.drop(columns="In force")
    if table["heldout"].isna().all():
        shown = shown.drop(columns="Held out")
    effort = table.groupby("method", sort=False).apply(_cells_a_task)
    notes = (
        f"{statistics.study_phrase(evidence)} Grid: {statistics.seeds_phrase(cells)}.",
        "Score × 100 of the last epoch; bold: the best of its method and task. Held out: training rows that no run "
        "trains on.",
        _edges(table),
        "Cells a task: " + ", ".join(f"{labels.run_label(m)} {effort[m]}" for m in statistics.methods_of(cells)) + ".",
        statistics.cost_phrase(evidence),
        statistics.machine_phrase(cells),
    )
    return Table(title, shown, table, tuple(note for note in notes if note))


def _edges(table: pd.DataFrame) -> str:
    """One sentence: whose values in force are the smallest or largest tried, so that better ones may lie outside."""
    found = []
    for (task, method), rows in table.groupby(["task", "method"], sort=False):
        for key, label in statistics.SEARCHED.items():
            tried = pd.to_numeric(rows[key], errors="coerce").dropna()
            for value in tried[rows["in_force"]].unique():
                if tried.nunique() > 2 and value in (tried.min(), tried.max()):
                    where = f"{labels.run_label(method)} on {statistics.TASKS.get(task, task)}"
                    found.append(f"{where} ({label.lower()} {statistics.plain(value)})")
    return f"In force at the edge of what was tried: {'; '.join(found)}." if found else ""


def _cells_a_task(rows: pd.DataFrame) -> str:
    """`3`, or, where tasks differ, `15 (MNLI) and 30 (CoLA)`."""
    by_task = rows.groupby("task", sort=False)["cell"].nunique()
    if by_task.nunique() == 1:
        return str(by_task.iloc[0])
    return statistics.listed(f"{count} ({statistics.TASKS.get(task, task)})" for task, count in by_task.items())


def _scores(table: pd.DataFrame, key: str) -> list[str]:
    best = table.groupby(["task", "method"])[key].transform("max")
    texts = []
    for value, top in zip(table[key], best, strict=True):
        text = statistics.ABSENT if pd.isna(value) else f"{value:.1f}"
        texts.append(f"**{text}**" if value == top else text)
    return texts
