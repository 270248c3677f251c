"""The set that each matrix has where a run chose one for each, with its bits and the measured rise of the loss."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

FIELDS = [
    *("task", "run", "seed", "budget", "matrix", "layer", "kind", "rows", "columns"),
    *("set", "bits", "bits_per_weight", "rise"),
]


def make(evidence: Evidence) -> Table:
    """Return a row per task, run or variant, and matrix, of its first seed; the numbers have a row per seed."""
    title = "Sets by matrix"
    runs = [run for run in evidence.results if run.allocation is not None and run.trial is None]
    if not runs:
        reason = f"Study {evidence.study} has no run that chose a set for each matrix."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    order = statistics.methods_of(runs)
    tasks = statistics.tasks_of(runs)
    runs = sorted(runs, key=lambda run: (tasks.index(run.task), order.index(statistics.shown_as(run)), run.full_name))
    shown, numbers = [], []
    for run in sorted(runs, key=lambda run: run.seed):
        numbers += _numbers(run)
    for task, name in dict.fromkeys((run.task, run.full_name) for run in runs):
        first = min((run for run in runs if (run.task, run.full_name) == (task, name)), key=lambda run: run.seed)
        several = {"Task": statistics.TASKS.get(task, task)} if len(tasks) > 1 else {}
        shown += [several | row for row in _shown(first)]
    seeds = {run.seed for run in runs}
    notes = [
        captions.data_and_model(evidence),
        "Of each run's first seed; the other seeds are in the CSV file." if len(seeds) > 1 else "",
        "Rise: of the loss when this matrix alone is projected on its set, before training; the loss is the distance "
        "to the teacher's logits, or the task's loss without a teacher. Bits a weight: with positions and scales.",
    ]
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(filter(None, notes)))


def _shown(run: Result) -> list[dict[str, str]]:
    allocation = run.allocation
    assert allocation is not None
    name = labels.run_label(run.full_name)
    rows = []
    for own in allocation.matrices:
        layer, kind = labels.matrix_label(own.matrix)
        rows.append(
            {
                "Run": name,
                "Layer": layer,
                "Matrix": kind,
                "Set": own.choice,
                "Bits a weight": f"{own.bits / (own.rows * own.columns):.2f}",
                "Rise": f"{own.rise:.2g}",
            }
        )
    total = {"Run": name, "Layer": "", "Matrix": f"All, of {allocation.budget:g} bits", "Set": ""}
    return [*rows, total | {"Bits a weight": f"{allocation.bits:.2f}", "Rise": f"{allocation.rise:.2g}"}]


def _numbers(run: Result) -> list[list[object]]:
    allocation = run.allocation
    assert allocation is not None
    return [
        [
            *(run.task, run.full_name, run.seed, allocation.budget, own.matrix, *labels.matrix_label(own.matrix)),
            *(own.rows, own.columns, own.choice, own.bits, own.bits / (own.rows * own.columns), own.rise),
        ]
        for own in allocation.matrices
    ]
