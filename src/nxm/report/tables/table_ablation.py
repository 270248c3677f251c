"""The ablation: the effect of changing one ingredient of NxM+ and its rivals, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from nxm.report import captions, effects, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Part, Table
from nxm.study.bootstrap import DRAWS
from nxm.study.results import Result

FIELDS = [
    "task",
    "run",
    "variant",
    "rival",
    "mean",
    "spread",
    "difference",
    "low",
    "high",
    "heldout",
    "kept",
    *("seconds", "memory"),
    *effects.FIELDS,
]
SECOND = "How far the data carry each change"
_TAUGHT = ("distillation", "teacher")
_UNKNOWN = "unknown"


def make(evidence: Evidence) -> Table:
    """Return a row per task and variant, compared with its run or the one it names; rivals are compared with NxM+.

    With several tasks, a last group has their geometric mean. The second table says how far the data carry each change.
    """
    title = "Ablation: one ingredient changed"
    runs = [run for run in evidence.results if run.trial is None and run.full_name in _compared(evidence)]
    if not runs:
        reason = f"Study {evidence.study} has no ablation."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    tasks = statistics.tasks_of(runs)
    groups, compared = statistics.task_groups(tasks), _compared(evidence)
    asked = [(name, rival, tuple(group)) for group in groups for name, rival in compared.items() if rival]
    measured = effects.measured(evidence, asked)
    shown, carried, numbers = [], [], []
    for group in groups:
        for name, rival in compared.items():
            row = _row(evidence, name, rival, group)
            if row is not None:
                found = measured.get((name, rival, tuple(group))) if rival else None
                numbers.append(row | (found.values if found else {}))
                shown.append(_shown(evidence, row, group))
                if found is not None:
                    names = {
                        key: shown[-1][key] for key in ("Task", "Run", "Variant", "Points [95 %]", "Compared with")
                    }
                    carried.append(names | effects.texts(found))
    notes = [
        *captions.notes(evidence),
        f"Intervals: paired bootstrap over dev examples and seeds, {DRAWS:,} draws.",
        "A variant has its run's learning rate; rivals have their own.",
        "Time and memory: multiples of the dense model's, whose training is not included where it is start or teacher.",
        *_gaps(evidence, tasks),
    ]
    several = len({run.seed for run in runs}) > 1
    second = Part(SECOND, pd.DataFrame(carried), effects.notes(several)) if carried else None
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(notes), second)


def _compared(evidence: Evidence) -> dict[str, str | None]:
    """Return the rows' names, each with the name it is compared with: NxM+, its variants, each rival with its own."""
    own: dict[str, str | None] = {}
    for method in labels.PLUS:
        own[method] = None if method == "nxm_plus" else "nxm_plus"
        own |= {name: rival for name, rival in evidence.variants.items() if name.startswith(f"{method}/")}
    return own


def _gaps(evidence: Evidence, tasks: list[str]) -> list[str]:
    """Return a sentence per variant and task with failed runs, with the reason, and one on all that have not run."""
    seeds = {run.seed for run in statistics.whole_runs(evidence.results)}
    sentences, waiting = [], []
    for name in evidence.variants:
        for task in statistics.in_order(evidence.variant_tasks.get(name, tasks), tasks):
            done = {run.seed for run in statistics.runs_of(evidence.results, name) if run.task == task}
            failed = {run.seed: run.failure for run in statistics.runs_of(evidence.failures, name) if run.task == task}
            where = f"{labels.run_label(name)}, on {statistics.TASKS.get(task, task)}"
            for reason in dict.fromkeys(failed.values()):
                own = sorted(seed for seed, why in failed.items() if why == reason)
                sentences.append(f"{where}, seed {statistics.listed(own)}: failed: {reason.rstrip('.')}.")
            if lacking := sorted(seeds - done - failed.keys()):
                waiting.append(where + (f", seed {statistics.listed(lacking)}" if done or failed else ""))
    return [*sentences, *([f"No result yet: {'; '.join(waiting)}."] if waiting else [])]


def _changed(evidence: Evidence, name: str) -> str:
    """Return a variant's values that differ from its run's, `dual step: full`; empty for a run."""
    ours, base = (statistics.runs_of(evidence.results, which)[:1] for which in (name, name.partition("/")[0]))
    if not ours or not base:
        return ""
    return "; ".join(_changes(ours[0], base[0]))


def _changes(ours: Result, base: Result) -> Iterator[str]:
    """Yield the values that differ in words, by key."""
    for key in sorted(ours.hyperparameters.keys() | base.hyperparameters.keys() | {"set"}):
        value, before = _value(ours, key), _value(base, key)
        if value == before or _UNKNOWN in (value, before):
            continue
        if key in _TAUGHT and value is None:
            if key == _TAUGHT[0]:  # both become null together
                yield "without teacher"
            continue
        yield f"{labels.hyperparameter(key).lower()}: {labels.value_label(key, value)}"


def _value(run: Result, key: str) -> Any:
    """Return a value that two results are compared in: the default where one lacks it.

    Former files name neither the method nor the teacher, and the set in some variants alone.
    """
    if key == "set":
        return run.sparsity.pattern
    if key in ("method", "teacher") and key not in run.hyperparameters:
        return None if key == "teacher" and not run.hyperparameters.get("distillation") else _UNKNOWN
    return statistics.value_of(run, key)


def _row(evidence: Evidence, name: str, rival: str | None, tasks: list[str]) -> dict[str, Any] | None:
    run, _, variant = name.partition("/")
    score = statistics.method_score(evidence.results, name, tasks)
    if score is None:
        return None
    points = statistics.difference(evidence, name, rival, tasks) if rival else None
    kept = statistics.retention_interval(evidence, name, "dense", tasks)
    heldout = statistics.heldout_score(evidence.results, name, tasks[0]) if len(tasks) == 1 else None
    return {
        "task": tasks[0] if len(tasks) == 1 else "geometric_mean",
        "run": run,
        "variant": variant or None,
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
    run, variant, rival = row["run"], row["variant"] or "", row["rival"]
    own = None if row["difference"] is None else statistics.Interval(row["difference"], row["low"], row["high"])
    name = f"{run}/{variant}" if variant else run
    spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
    return {
        "Task": statistics.TASKS.get(row["task"], "Geo. mean"),
        "Run": labels.run_label(run),
        "Variant": labels.variant_label(variant) if variant else "",
        "Changed": _changed(evidence, name),
        "Score": f"{row['mean']:.1f}{spread}",
        "% of dense": statistics.ABSENT if row["kept"] is None else f"{row['kept']:.1f}",
        "Points [95 %]": own.text() if own else statistics.ABSENT,
        "Compared with": labels.run_label(rival) if rival else statistics.ABSENT,
        "Excludes 0": {True: "yes", False: "no", None: statistics.ABSENT}[own.certain if own else None],
        "Held out": statistics.ABSENT if row["heldout"] is None else f"{row['heldout']:.1f}",
        "Time": _times_dense(evidence, row["seconds"], tasks, "train_seconds"),
        "Memory": _times_dense(evidence, row["memory"], tasks, "peak_memory_mib"),
    }


def _times_dense(evidence: Evidence, value: float, tasks: list[str], field: str) -> str:
    dense = _mean(evidence, "dense", tasks, field)
    return f"{value / dense:.2f}×" if dense else statistics.ABSENT
