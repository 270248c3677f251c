"""A study's main numbers in the form that `dvc metrics diff`, `dvc exp show` and `dvc plots diff` compare."""

from __future__ import annotations

import json

import pandas as pd

from nxm.report import statistics
from nxm.report.evidence import Evidence


def scores(evidence: Evidence) -> str:
    """JSON: task -> method -> mean dev score over seeds, in percent points, to two decimals.

    Where there are several tasks, `geometric_mean` is one more.
    """
    runs = statistics.whole_runs(evidence.results)
    found = {
        task: {
            method: round(score.mean, 2)
            for method in statistics.methods_of(runs)
            if (score := statistics.task_score(runs, method, task)) is not None
        }
        for task in statistics.tasks_of(runs)
    }
    columns = statistics.columns_of(runs)
    if len(columns) > 1:
        averages = {method: statistics.average_score(runs, method, columns) for method in statistics.methods_of(runs)}
        found["geometric_mean"] = {method: round(own.mean, 2) for method, own in averages.items() if own is not None}
    return json.dumps(found, indent=1) + "\n"


def courses(evidence: Evidence) -> str:
    """CSV: one row a task, method and evaluated epoch: the mean dev score over seeds."""
    rows = [
        {"task": run.task, "method": run.name, "epoch": epoch.epoch, "score": epoch.metric}
        for run in statistics.whole_runs(evidence.results)
        for epoch in run.epochs
        if epoch.metric is not None
    ]
    frame = pd.DataFrame(rows, columns=["task", "method", "epoch", "score"])
    means = frame.groupby(["task", "method", "epoch"], as_index=False)["score"].mean().round(2)
    return means.to_csv(index=False, lineterminator="\n")
