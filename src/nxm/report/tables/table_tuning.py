"""The search: every trial, the best on held-out rows and on dev, and the values in force."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nxm.report import captions, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = ["task", "run", "trial", *statistics.SEARCHED, "epochs", "heldout", "dev", "seeds", "in_force", "failure"]


def make(evidence: Evidence) -> Table:
    """Return a row per task, run and trial: means over the search's seeds."""
    title = "Hyper-parameters tried"
    trials, failed_trials = statistics.trials_of(evidence.results), statistics.trials_of(evidence.failures)
    if not trials and not failed_trials:
        reason = f"Study {evidence.study} has no search: its hyper-parameters come from elsewhere."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    own = statistics.whole_runs(evidence.results)
    in_force = {(run.task, run.name, *(statistics.value_of(run, key) for key in statistics.SEARCHED)) for run in own}
    failures = {(failure.task, failure.name, failure.trial): failure for failure in failed_trials}
    numbers: list[dict[str, Any]] = []
    records = [*trials, *failed_trials]
    for task in statistics.in_order((record.task for record in records), statistics.TASKS):
        for method in statistics.in_order((record.name for record in records), labels.RUNS):
            names = {record.trial: record for record in records if (record.task, record.name) == (task, method)}
            rows = []
            for name, record in names.items():
                group = [run for run in trials if (run.task, run.name, run.trial) == (task, method, name)]
                values = {key: record.hyperparameters.get(key) for key in statistics.SEARCHED}
                heldout = [run.heldout.value for run in group if run.heldout]
                failed = failures.get((task, method, name))
                rows.append(
                    {"task": task, "run": method, "trial": name, **values}
                    | {
                        "epochs": record.hyperparameters.get("epochs"),
                        "heldout": None if failed or not heldout else sum(heldout) / len(heldout),
                        "dev": None if failed else sum(run.metric.value for run in group) / len(group),
                        "seeds": len(group),
                        "in_force": (task, method, *(statistics.value_of(record, key) for key in values)) in in_force,
                        "failure": failed.failure if failed else None,
                    }
                )
            numbers += sorted(rows, key=lambda row: [(row[key] is not None, row[key]) for key in statistics.SEARCHED])
    table = pd.DataFrame(numbers, columns=FIELDS)
    shown = pd.DataFrame(
        {
            "Task": [statistics.TASKS.get(task, task) for task in table["task"]],
            "Run": [labels.run_label(method) for method in table["run"]],
        }
        | {
            labels.hyperparameter(key): [
                statistics.ABSENT if pd.isna(value) else labels.value_label(key, value) for value in table[key]
            ]
            for key in statistics.SEARCHED
            if (table.groupby(["task", "run"])[key].nunique() > 1).any()
        }
        | {
            "Epochs": table["epochs"].map("{:g}".format),
            "Held out": _scores(table, "heldout"),
            "Dev": _scores(table, "dev"),
            "In force": ["yes" if value else "" for value in table["in_force"]],
            "Failed": table["failure"].fillna(""),
        }
    )
    if not failed_trials:
        shown = shown.drop(columns="Failed")
    if not own:
        shown = shown.drop(columns="In force")
    if table["heldout"].isna().all():
        shown = shown.drop(columns="Held out")
    effort = table.groupby("run", sort=False).apply(_trials_a_task)
    notes = (
        statistics.study_phrase(evidence),
        *captions.search(evidence),
        f"Trials: {statistics.seeds_phrase(trials)}; the last epoch's score × 100; bold: the best of a run and task.",
        "Held out: training rows that no run trains on.",
        _edges(table),
        "Trials per task: "
        + ", ".join(f"{labels.run_label(m)} {effort[m]}" for m in statistics.methods_of(trials))
        + ".",
        statistics.cost_phrase(evidence),
        statistics.machine_phrase(trials),
    )
    return Table(title, shown, table, tuple(note for note in notes if note))


def _edges(table: pd.DataFrame) -> str:
    """Return a sentence on values in force that are the smallest or largest tried: better ones may lie outside."""
    found = []
    for (task, method), rows in table.groupby(["task", "run"], sort=False):
        for key in statistics.SEARCHED:
            tried = pd.to_numeric(rows[key], errors="coerce").dropna()
            for value in tried[rows["in_force"]].unique():
                if tried.nunique() > 2 and value in (tried.min(), tried.max()):
                    where = f"{labels.run_label(method)} on {statistics.TASKS.get(task, task)}"
                    found.append(f"{where} ({labels.hyperparameter(key).lower()} {labels.plain(value)})")
    return f"In force at the edge of the values tried: {'; '.join(found)}." if found else ""


def _trials_a_task(rows: pd.DataFrame) -> str:
    """Return `3` or, where tasks differ, `15 (MNLI) and 30 (CoLA)`."""
    by_task = rows.groupby("task", sort=False)["trial"].nunique()
    if by_task.nunique() == 1:
        return str(by_task.iloc[0])
    return statistics.listed(f"{count} ({statistics.TASKS.get(task, task)})" for task, count in by_task.items())


def _scores(table: pd.DataFrame, key: str) -> list[str]:
    best = table.groupby(["task", "run"])[key].transform("max")
    texts = []
    for value, top in zip(table[key], best, strict=True):
        text = statistics.ABSENT if pd.isna(value) else f"{value:.1f}"
        texts.append(f"**{text}**" if value == top else text)
    return texts
