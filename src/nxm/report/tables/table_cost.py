"""What the runs cost: time, memory and energy by method."""

from __future__ import annotations

import pandas as pd

from nxm.report import Evidence, facts
from nxm.report.table import Table
from nxm.results import TIMES

FIELDS = ["task", "method", "runs", "epochs", *TIMES, "search_cells", "search_seconds"]


def make(evidence: Evidence) -> Table:
    """One row a task and method: means over seeds (memory: the highest), and what the search took, its failures too."""
    runs = facts.whole_runs(evidence.results)
    cells = [*facts.grid_cells(evidence.results), *facts.grid_cells(evidence.failures)]
    numbers = []
    for task in facts.tasks_of(runs):
        for method in facts.methods_of(runs):
            own = [run for run in runs if (run.task, run.method) == (task, method)]
            if own:
                epochs = pd.Series([float(run.hyperparameters["epochs"]) for run in own]).mean()
                means = pd.DataFrame([{key: getattr(run, key) for key in TIMES} for run in own], dtype=float).mean()
                means["peak_memory_mib"] = max(run.peak_memory_mib for run in own)
                search = [cell.wall_seconds for cell in cells if (cell.task, cell.method) == (task, method)]
                numbers.append([task, method, len(own), epochs, *means, len(search), sum(search)])
    table = pd.DataFrame(numbers, columns=FIELDS)
    told = table["energy_joules"].notna()
    shown = pd.DataFrame(
        {
            "Task": [facts.TASKS.get(task, task) for task in table["task"]],
            "Method": [facts.method_label(method) for method in table["method"]],
            "Runs": [str(count) for count in table["runs"]],
            "Epochs": [f"{epochs:g}" for epochs in table["epochs"]],
            "Whole run (s)": [f"{seconds:.0f}" for seconds in table["wall_seconds"]],
            "Training (s)": [f"{seconds:.0f}" for seconds in table["train_seconds"]],
            "Training (s an epoch)": [
                f"{seconds / epochs:.1f}"
                for seconds, epochs in zip(table["train_seconds"], table["epochs"], strict=True)
            ],
            "Peak memory (GiB)": [f"{mib / 1024:.1f}" for mib in table["peak_memory_mib"]],
        }
    )
    if told.any():
        energy = [f"{joules / 1e3:.1f}" for joules in table["energy_joules"]]
        shown["GPU energy (kJ)"] = pd.Series(energy).where(told, facts.ABSENT)
    if cells:
        searched = table["search_cells"] > 0
        shown["Search (cells)"] = table["search_cells"].astype(str).where(searched, facts.ABSENT)
        minutes = pd.Series([f"{seconds / 60:.1f}" for seconds in table["search_seconds"]])
        shown["Search (min)"] = minutes.where(searched, facts.ABSENT)
    notes = [
        facts.study_phrase(evidence),
        facts.cost_phrase(evidence.results),
        facts.machine_phrase(evidence.results),
        "" if told.all() else "Energy is counted by GPUs alone.",
        "Times are of runs beside others, whatever these took: what a method adds to a step is in the latency figure.",
    ]
    return Table("Cost of the runs", shown, table, tuple(note for note in notes if note))
