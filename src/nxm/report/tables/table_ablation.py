"""The ablation: what NxM+ and its rivals gain or lose when one ingredient is changed, with intervals over seeds."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nxm.report import labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.bootstrap import DRAWS

FIELDS = [
    "task",
    "name",
    "rival",
    "mean",
    "spread",
    "difference",
    "low",
    "high",
    "heldout",
    "kept",
    *("seconds", "memory"),
]


def make(evidence: Evidence) -> Table:
    """One row a task and variant, beside the method that it varies or what it names; rivals beside NxM+. A last group
    for all tasks."""
    title = "Ablation: one ingredient changed"
    runs = [run for run in evidence.results if run.trial is None and run.full_name in _compared(evidence)]
    if not runs:
        reason = f"Study {evidence.study} has no ablation."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (statistics.study_phrase(evidence), reason))
    tasks = statistics.tasks_of(runs)
    shown, numbers = [], []
    for group in [[task] for task in tasks] + ([tasks] if len(tasks) > 1 else []):
        for name, rival in _compared(evidence).items():
            row = _row(evidence, name, rival, group)
            if row is not None:
                numbers.append(row)
                shown.append(_shown(evidence, row, group))
    notes = statistics.notes(evidence, ())
    notes += [
        "Each variant is its method with the values named changed, at the learning rate chosen for the method; rivals "
        "have their own. Where it differs from its method in more than one ingredient, it is compared with a variant.",
        *_gaps(evidence, tasks),
        f"Points: mean over seeds; intervals by paired bootstrap over dev examples and seeds, {DRAWS:,} draws.",
        "Time and memory: of this training, beside the dense model's, which come on top where it is start or teacher.",
    ]
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(notes))


def _compared(evidence: Evidence) -> dict[str, str | None]:
    """What stands in the table -> what it is compared with: NxM+, its variants, then each rival with its own."""
    own: dict[str, str | None] = {}
    for method in labels.PLUS:
        own[method] = None if method == "nxm_plus" else "nxm_plus"
        own |= {name: rival for name, rival in evidence.variants.items() if name.startswith(f"{method}/")}
    return own


def _gaps(evidence: Evidence, tasks: list[str]) -> list[str]:
    """A sentence on each variant and task where a run failed, with the reason, and one on all that has not run."""
    seeds = {run.seed for run in statistics.whole_runs(evidence.results)}
    sentences, waiting = [], []
    for name in evidence.variants:
        for task in statistics.in_order(evidence.variant_tasks.get(name, tasks), tasks):
            done = {run.seed for run in statistics.runs_of(evidence.results, name) if run.task == task}
            failed = {run.seed: run.failure for run in statistics.runs_of(evidence.failures, name) if run.task == task}
            where = f"{labels.run_label(name)}, on {statistics.TASKS.get(task, task)}"
            for reason in dict.fromkeys(failed.values()):
                own = sorted(seed for seed, said in failed.items() if said == reason)
                sentences.append(f"{where}, seed {statistics.listed(own)}: failed: {reason.rstrip('.')}.")
            if lacking := sorted(seeds - done - failed.keys()):
                waiting.append(where + (f", seed {statistics.listed(lacking)}" if done or failed else ""))
    return [*sentences, *([f"No result yet: {'; '.join(waiting)}."] if waiting else [])]


def _changed(evidence: Evidence, name: str) -> str:
    """What a variant's values are where its method's are others: `dual step full`; empty for a method itself."""
    ours, base = (statistics.runs_of(evidence.results, which)[:1] for which in (name, name.partition("/")[0]))
    if not ours or not base:
        return ""
    values, before = ours[0].hyperparameters, base[0].hyperparameters
    return "; ".join(
        f"{_NAMES.get(key, key.replace('_', ' '))} {_NULL.get(key, 'none') if value is None else _value(key, value)}"
        for key, value in values.items()
        if value != before.get(key)
    )


_NAMES = {"set": "pattern"}
_NULL = {"dropout": "the model's own"}  # what null means where it does not mean none


def _value(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_value(key, own)}" for key, own in value.items())
    return statistics.said(value)


def _row(evidence: Evidence, name: str, rival: str | None, tasks: list[str]) -> dict[str, Any] | None:
    score = statistics.method_score(evidence.results, name, tasks)
    if score is None:
        return None
    points = statistics.difference(evidence, name, rival, tasks) if rival else None
    kept = statistics.kept(evidence, name, "dense", tasks)
    heldout = statistics.heldout_score(evidence.results, name, tasks[0]) if len(tasks) == 1 else None
    return {
        "task": tasks[0] if len(tasks) == 1 else "geometric_mean",
        "name": name,
        "rival": rival,
        "mean": score.mean,
        "spread": score.spread,
        "difference": points.value if points else None,
        "low": points.low if points else None,
        "high": points.high if points else None,
        "heldout": heldout.mean if heldout else None,
        "kept": kept.value if kept else None,
        "seconds": _mean(evidence, name, tasks, "train_seconds"),
        "memory": _mean(evidence, name, tasks, "peak_memory_mib"),
    }


def _mean(evidence: Evidence, name: str, tasks: list[str], field: str) -> float | None:
    values = [getattr(run, field) for run in statistics.runs_of(evidence.results, name) if run.task in tasks]
    return sum(values) / len(values) if values else None


def _shown(evidence: Evidence, row: dict[str, Any], tasks: list[str]) -> dict[str, str]:
    name, rival = row["name"], row["rival"]
    own = None if row["difference"] is None else statistics.Interval(row["difference"], row["low"], row["high"])
    method, _, variant = name.partition("/")
    spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
    return {
        "Task": statistics.TASKS.get(row["task"], "Geo. mean"),
        "Method": labels.run_label(method),
        "Variant": variant.replace("-", " "),
        "Changed": _changed(evidence, name),
        "Score": f"{row['mean']:.1f}{spread}",
        "Kept of dense": statistics.percent(row["kept"]),
        "Points [95 %]": own.text() if own else statistics.ABSENT,
        "Against": labels.run_label(rival) if rival else statistics.ABSENT,
        "Excludes 0": {True: "yes", False: "no", None: statistics.ABSENT}[own.certain if own else None],
        "Held out": statistics.ABSENT if row["heldout"] is None else f"{row['heldout']:.1f}",
        "Time": _beside_dense(evidence, row["seconds"], tasks, "train_seconds"),
        "Memory": _beside_dense(evidence, row["memory"], tasks, "peak_memory_mib"),
    }


def _beside_dense(evidence: Evidence, value: float, tasks: list[str], field: str) -> str:
    dense = _mean(evidence, "dense", tasks, field)
    return f"{value / dense:.2f}x" if dense else statistics.ABSENT
