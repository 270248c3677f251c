"""Structured pruning: the heads and FFN rows that each run retains by layer, and its score."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nxm.report import captions, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

FIELDS = ["task", "run", "seed", "layer", "heads", "rows", "dense_heads", "dense_rows", "share", "budget", "pruned_to"]


def make(evidence: Evidence) -> Table:
    """Return a row per task, run and seed; the numbers have a row per layer."""
    title = "Heads and FFN rows by layer"
    runs = [run for run in statistics.whole_runs(evidence.results) if run.structure is not None]
    if not runs:
        reason = f"Study {evidence.study} has no run whose layers were shrunk."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    tasks = statistics.tasks_of(runs)
    shown, numbers = [], []
    for task in tasks:
        dense = statistics.task_score(statistics.whole_runs(evidence.results), "dense", task)
        for method in statistics.methods_of(runs):
            for run in (own for own in statistics.runs_of(runs, method) if own.task == task):
                shown.append(
                    ({"Task": statistics.TASKS.get(task, task)} if len(tasks) > 1 else {}) | _shown(run, dense)
                )
                numbers += _layers(run)
    notes = [
        *captions.notes(evidence),
        "Weights: of the six matrices of all layers, compared with the dense architecture. Budget and hard count: "
        "shares of the start; a run without them has the structure of its start.",
    ]
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(notes))


def _shown(run: Result, dense: statistics.Score | None) -> dict[str, str]:
    found = run.structure
    assert found is not None
    pruning = found.pruning
    share = statistics.retention(run.metric.value, dense.mean if dense else None)
    return {
        "Run": labels.run_label(run.name),
        "Seed": str(run.seed),
        "Budget": f"{100 * pruning.budget:g} % ({pruning.cost})" if pruning else statistics.ABSENT,
        "Hard count": statistics.percent(100 * pruning.share if pruning else None),
        "Weights": statistics.percent(100 * found.share),
        f"Heads of {found.dense_heads}": _by_layer(found.heads),
        f"FFN rows of {found.dense_rows}": _by_layer(found.rows),
        "Score": f"{run.metric.value:.1f}",
        "% of dense": statistics.ABSENT if share is None else f"{share:.1f}",
    }


def _layers(run: Result) -> list[list[object]]:
    found = run.structure
    assert found is not None
    budget, share = (found.pruning.budget, found.pruning.share) if found.pruning else (None, None)
    return [
        [
            *(run.task, run.name, run.seed, layer, heads, rows, found.dense_heads, found.dense_rows),
            *(found.share, budget, share),
        ]
        for layer, (heads, rows) in enumerate(zip(found.heads, found.rows, strict=True))
    ]


def _by_layer(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))
