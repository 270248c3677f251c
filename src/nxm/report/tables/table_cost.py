"""Cost of the runs: time, memory and energy."""

from __future__ import annotations

import pandas as pd

from nxm.report import labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import TIMES, Failure, Result

FIELDS = ["task", "run", "runs", "epochs", *TIMES, "trials", "search_seconds", "all_seconds"]
ALL = "all"  # in the place of a task


def make(evidence: Evidence) -> Table:
    """Return a row per task and run: means over seeds (memory: the highest), and the cost of its search.

    With several tasks, a last group is over all of them.
    """
    records: list[Result | Failure] = [*evidence.results, *evidence.failures]
    runs = statistics.whole_runs(evidence.results)
    trials = statistics.trials_of(records)
    tasks = statistics.in_order((record.task for record in [*runs, *trials]), statistics.TASKS)
    numbers = []
    for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
        for method in statistics.in_order(map(statistics.shown_as, records), labels.RUNS):
            own, search, every = (
                [run for run in some if statistics.shown_as(run) == method and task in (run.task, ALL)]
                for some in (runs, trials, records)
            )
            if every:
                row = {"task": task, "run": method, "runs": len(own), "trials": len(search)}
                row |= {"search_seconds": _seconds(search), "all_seconds": _seconds(every)}
                numbers.append(row | (_means(own) if own else {}))
    table = pd.DataFrame(numbers, columns=FIELDS).astype(dict.fromkeys(("epochs", *TIMES), float))
    counted = table["energy_joules"].notna()
    shown = pd.DataFrame(
        {
            "Task": [statistics.TASKS.get(task, "All") for task in table["task"]],
            "Run": [labels.run_label(method) for method in table["run"]],
            "Runs": table["runs"].astype(str),
            "Epochs": _texts(table["epochs"], "g"),
            "Whole run (s)": _texts(table["wall_seconds"], ".0f"),
            "Training (s)": _texts(table["train_seconds"], ".0f"),
            "Training (s per epoch)": _texts(table["train_seconds"] / table["epochs"], ".1f"),
            "Peak memory (GiB)": _texts(table["peak_memory_mib"] / 1024, ".1f"),
        }
    )
    if counted.any():
        shown["GPU energy (kJ)"] = _texts(table["energy_joules"] / 1e3, ".1f")
    if trials:
        searched = table["trials"] > 0
        shown["Trials"] = table["trials"].astype(str).where(searched, statistics.ABSENT)
        shown["Search (min)"] = _texts((table["search_seconds"] / 60).where(searched), ".1f")
    shown["In all (min)"] = _texts(table["all_seconds"] / 60, ".1f")
    notes = [
        statistics.study_phrase(evidence),
        statistics.cost_phrase(evidence),
        statistics.machine_phrase(evidence.results),
        "Search: all trials together, failed ones included." if trials else "",
        "In all: runs, search, sweeps and variants; other columns: means over runs, of memory the highest.",
        "" if counted.any() else "Energy is measured on GPUs only.",
        "Runs shared the machine with others; the latency figure compares times of a training step.",
    ]
    return Table("Cost of the runs", shown, table, tuple(note for note in notes if note))


def _seconds(records: list[Result | Failure]) -> float:
    return sum(record.wall_seconds or 0.0 for record in records)


def _means(runs: list[Result]) -> dict[str, float]:
    """Return epochs and times, means over runs; of memory the highest."""
    values = [{"epochs": run.hyperparameters["epochs"]} | {key: getattr(run, key) for key in TIMES} for run in runs]
    frame = pd.DataFrame(values, dtype=float)
    return frame.mean().to_dict() | {"peak_memory_mib": frame["peak_memory_mib"].max()}


def _texts(numbers: pd.Series, form: str) -> pd.Series:
    return numbers.map(lambda number: statistics.ABSENT if pd.isna(number) else format(number, form))
