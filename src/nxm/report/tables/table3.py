"""Table 3: the hyper-parameters in force, beside the grid that the paper searched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from nxm.report import labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

SHOWN = {
    "epochs": "Epochs",
    "learning_rate": "Learning rate",
    "batch_size": "Batch",
    "recipe": "Recipe",
    "rho": "ρ",
    "interval": "Interval",
    "schedule": "Schedule",
    "dual_step": "Dual step",
    "freeze_at": "Frozen from",
    "start": "Start",
    "importance": "Importance",
    "relaxation": "Relaxation",
    "prune_until": "Pruned until",
    "decay": "Decay",
    "permute": "Permuted",
    "dropout": "Dropout",
    "noise": "Noise",
}
# left out where no run has them
RARE = ("start", "importance", "relaxation", "prune_until", "decay", "permute", "dropout", "noise")
_EXTRAS = (
    " Start, importance, relaxation, pruned until, decay, permuted, dropout (none said: the model's own) and noise "
    "(the share of tokens replaced in half of a batch): of NxM+ and its rivals."
)


def make(evidence: Evidence) -> Table:
    """One row a task and method; a method that lives in cells alone (the paper's recipe) shows all its cells."""
    shown, numbers = [], []
    for task in statistics.tasks_of(evidence.results):
        for method in statistics.methods_of(evidence.results):
            own = [run for run in evidence.results if (run.task, statistics.shown_as(run)) == (task, method)]
            runs = statistics.whole_runs(own) or own
            if not runs:
                continue
            grid = paper.grid(method, task)
            shown.append(
                {"Task": statistics.TASKS.get(task, task), "Method": labels.run_label(method)}
                | {label: _values(runs, key) for key, label in SHOWN.items()}
                | {"Distillation": _distillation(runs)}
                | {"Cells tried": str(len(_cells(evidence, task, method)))}
                | {
                    "Paper's learning rates": _list(grid.learning_rate) if grid else statistics.ABSENT,
                    "Paper's ρ": _list(grid.rho) if grid else statistics.ABSENT,
                    "Paper's batch, epochs": f"{_list(grid.batch_size)}; {grid.epochs}" if grid else statistics.ABSENT,
                }
            )
            numbers += [_row(run) for run in runs]
    notes = statistics.notes(evidence, ())
    plus = any(run.hyperparameters.get("start") for run in evidence.results)
    if shown:
        notes.append(
            "ρ of the recipe proximal is the pull toward Z − U over one ADMM iteration, that of the recipe paper the "
            "weight of the penalty in the loss: they do not compare. Interval: optimizer steps between projections. "
            "Dual step: of W − Z, what U takes up in an iteration: all (full, the paper's) or the share that W covers. "
            "Frozen from: share of the run after which the mask stays (1: never)." + (_EXTRAS if plus else "")
        )
    header = pd.DataFrame(shown)
    if "Cells tried" in header and (header["Cells tried"] == "0").all():
        header = header.drop(columns="Cells tried")
    table = pd.DataFrame(numbers, columns=["task", "method", "seed", "cell", *SHOWN])
    unused = [key for key in RARE if table[key].isna().all()]
    header = header.drop(columns=[SHOWN[key] for key in unused], errors="ignore")
    return Table("Table 3. Hyper-parameters in force", header, table.drop(columns=unused), tuple(notes))


def _cells(evidence: Evidence, task: str, method: str) -> set[str | None]:
    """Names of the grid's cells, those that failed among them."""
    records = [*statistics.trials_of(evidence.results), *statistics.trials_of(evidence.failures)]
    return {record.trial for record in records if (record.task, record.name) == (task, method)}


def _row(run: Result) -> dict[str, Any]:
    return {"task": run.task, "method": statistics.shown_as(run), "seed": run.seed, "cell": run.variant} | {
        key: run.hyperparameters.get(key) for key in SHOWN
    }


def _values(runs: list[Result], key: str) -> str:
    values = {run.hyperparameters.get(key) for run in runs} - {None}
    return _list(sorted(values, key=str) if any(isinstance(v, str) for v in values) else sorted(values))


def _list(values: Iterable[Any]) -> str:
    texts = [statistics.said(value) for value in values]
    return ", ".join(texts) or statistics.ABSENT


def _distillation(runs: list[Result]) -> str:
    """The weights of the loss's terms, those that are not zero."""
    for run in runs:
        terms = run.hyperparameters.get("distillation")
        if isinstance(terms, dict):
            return ", ".join(f"{name} {statistics.plain(value)}" for name, value in terms.items() if value)
    return statistics.ABSENT
