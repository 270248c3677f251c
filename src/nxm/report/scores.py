"""A study's main numbers in the formats of `dvc metrics diff`, `dvc exp show` and `dvc plots diff`."""

from __future__ import annotations

import json

import pandas as pd

from nxm.report import statistics
from nxm.report.evidence import Evidence


def scores(evidence: Evidence) -> str:
    """Return JSON: task -> run -> mean dev score over seeds, in percent points, to two decimals.

    Where the study has several columns, `geometric_mean` is one more entry besides its tasks.
    """
    results = statistics.whole_runs(evidence.results)
    runs = statistics.methods_of(results)
    found = {
        task: {
            run: round(score.mean, 2)
            for run in runs
            if (score := statistics.task_score(results, run, task)) is not None
        }
        for task in statistics.tasks_of(results)
    }
    columns = statistics.columns_of(results)
    if len(columns) > 1:
        averages = {run: statistics.average_score(results, run, columns) for run in runs}
        found["geometric_mean"] = {run: round(own.mean, 2) for run, own in averages.items() if own is not None}
    return json.dumps(found, indent=1) + "\n"


def courses(evidence: Evidence) -> str:
    """Return CSV with a row per task, run and evaluated epoch: the mean dev score over seeds."""
    rows = [
        {"task": result.task, "method": result.name, "epoch": epoch.epoch, "score": epoch.metric}
        for result in statistics.whole_runs(evidence.results)
        for epoch in result.epochs
        if epoch.metric is not None
    ]
    frame = pd.DataFrame(rows, columns=["task", "method", "epoch", "score"])
    means = frame.groupby(["task", "method", "epoch"], as_index=False)["score"].mean().round(2)
    return means.to_csv(index=False, lineterminator="\n")
