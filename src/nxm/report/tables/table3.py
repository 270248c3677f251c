"""Table 3: the hyper-parameters in force, and the grid that the paper searched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from nxm.report import captions, labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

SHOWN = (
    *("epochs", "learning_rate", "batch_size", "recipe", "rho", "interval", "schedule", "dual_step", "freeze_at"),
    *("start", "importance", "relaxation", "prune_until", "decay", "permute", "dropout", "noise"),
)
RARE = SHOWN[9:]  # left out where no run has them
STUDENTS = ("student", "distil")  # starts that a row's label names: "Student, NxM"


def make(evidence: Evidence) -> Table:
    """Return a row per task and run; of one that is only in a sweep (the paper's recipe), all values."""
    shown, numbers = [], []
    for task in statistics.tasks_of(evidence.results):
        for method in statistics.methods_of(evidence.results):
            own = [run for run in evidence.results if (run.task, statistics.shown_as(run)) == (task, method)]
            runs = statistics.whole_runs(own) or own
            if not runs:
                continue
            grid = paper.grid(method, task)
            shown.append(
                {"Task": statistics.TASKS.get(task, task), "Run": labels.run_label(method)}
                | {labels.hyperparameter(key): _values(runs, key) for key in SHOWN}
                | {"Distillation": _distillation(runs)}
                | {"Trials": str(len(_trials(evidence, task, method)))}
                | {
                    "Paper's learning rates": _list(grid.learning_rate) if grid else statistics.ABSENT,
                    "Paper's ρ": _list(grid.rho) if grid else statistics.ABSENT,
                    "Paper's batch, epochs": f"{_list(grid.batch_size)}; {grid.epochs}" if grid else statistics.ABSENT,
                }
            )
            numbers += [_row(run) for run in runs]
    notes = [captions.data_and_model(evidence), *captions.search(evidence)]
    if shown:
        notes.append("ρ: pull toward Z − U over one ADMM iteration; with the paper's recipe, the penalty's weight.")
        notes.append("Dual step: U takes up all of W − Z (full, the paper's) or the share that W covers (matched).")
        notes.append("Frozen from: share of the run after which the mask stays (1: never).")
        if any(run.hyperparameters.get("noise") for run in evidence.results):
            notes.append("Token noise: share of tokens replaced in half of a batch.")
    header = pd.DataFrame(shown)
    if "Trials" in header and (header["Trials"] == "0").all():
        header = header.drop(columns="Trials")
    table = pd.DataFrame(numbers, columns=["task", "run", "seed", "variant", *SHOWN])
    unused = [key for key in RARE if table[key].isna().all()]
    header = header.drop(columns=[labels.hyperparameter(key) for key in unused], errors="ignore")
    return Table("Table 3. Hyper-parameters in force", header, table.drop(columns=unused), tuple(notes))


def _trials(evidence: Evidence, task: str, method: str) -> set[str | None]:
    """Return the names of the search's trials, failed ones included."""
    records = [*statistics.trials_of(evidence.results), *statistics.trials_of(evidence.failures)]
    return {record.trial for record in records if (record.task, record.name) == (task, method)}


def _row(run: Result) -> dict[str, Any]:
    return {"task": run.task, "run": statistics.shown_as(run), "seed": run.seed, "variant": run.variant} | {
        key: _value(run, key) for key in SHOWN
    }


def _value(run: Result, key: str) -> Any:
    """Return a value; in a rare column None for a default and a student's start, which former files do not all have."""
    value = run.hyperparameters.get(key)
    usual = key in RARE and value == statistics.default_of(run, key)
    return None if usual or (key == "start" and value in STUDENTS) else value


def _values(runs: list[Result], key: str) -> str:
    values = {_value(run, key) for run in runs} - {None}
    ordered = sorted(values, key=str) if any(isinstance(value, str) for value in values) else sorted(values)
    return ", ".join(labels.value_label(key, value) for value in ordered) or statistics.ABSENT


def _list(values: Iterable[float]) -> str:
    return ", ".join(map(labels.plain, values)) or statistics.ABSENT


def _distillation(runs: list[Result]) -> str:
    """Return the weights of the loss's terms that are not zero, and the temperature."""
    for run in runs:
        terms = run.hyperparameters.get("distillation")
        if isinstance(terms, dict):
            return labels.value_label("distillation", {name: value for name, value in terms.items() if value})
    return statistics.ABSENT
