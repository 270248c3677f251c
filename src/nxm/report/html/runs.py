"""The trainings of a study as rows, with their values and commands, and as points of the interactive plot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nxm.report import labels, statistics, storage
from nxm.report.evidence import Evidence
from nxm.study.plan import Training, trainings
from nxm.study.results import Failure, Result, place_of, result_path

MEASURES = {  # of the plot: label, and whether a smaller value is better
    "retained": "Share of the dense score (%)",
    "score": "Dev score × 100",
    "seconds": "Training time (s)",
    "size": "Size when stored (MiB)",
    "nonzero": "Non-zero parameters (millions)",
    "bits": "Bits of a target weight",
}
SIZE = (
    "Size: the target matrices stored as their sets allow, with the positions of non-zeros and the scales of integers, "
    "everything else with 32 bits. Bits of a target weight: of those matrices, divided by all of their weights."
)
ALL = "geometric_mean"


@dataclass(frozen=True)
class Row:
    """A training that has a result."""

    anchor: str
    result: Result
    task: str
    run: str
    kind: str
    score: float
    heldout: float | None
    retained: float | None
    size: float | None
    values: tuple[tuple[str, str], ...]
    path: str
    command: str
    machine: str


def anchor(training: Training) -> str:
    """Return the identifier of a training's row on the page."""
    return "run-" + slug(training.path)


def slug(text: str) -> str:
    """Return a text as an identifier: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def rows(evidence: Evidence) -> list[Row]:
    """Return a row per training with a result: runs first, then variants, trials and points of sweeps."""
    order = {"run": 0, "variant": 1, "point of a sweep": 2, "trial": 3}
    made = [_row(evidence, result) for result in evidence.results]
    tasks, names = statistics.tasks_of(evidence.results), list(labels.RUNS)
    return sorted(
        made,
        key=lambda row: (
            order[row.kind],
            tasks.index(row.result.task),
            names.index(row.result.name) if row.result.name in names else len(names),
            row.result.variant or "",
            [str(row.result.hyperparameters.get("start", "")), *_searched_values(row.result)]
            if row.result.trial
            else [],
            row.result.seed,
        ),
    )


def _searched_values(result: Result) -> list[float]:
    values = [statistics.value_of(result, key) for key in statistics.SEARCHED]
    return [float(value) for value in values if isinstance(value, int | float)]


def _row(evidence: Evidence, result: Result) -> Row:
    training = place_of(result)
    dense = [one for one in statistics.runs_of(evidence.results, "dense") if one.task == result.task]
    same = next((one.metric.value for one in dense if one.seed == result.seed), None)
    return Row(
        anchor=anchor(training),
        result=result,
        task=statistics.TASKS.get(result.task, result.task),
        run=name_of(evidence, result),
        kind=_kind(evidence, result),
        score=result.metric.value,
        heldout=result.heldout.value if result.heldout else None,
        retained=statistics.retention(result.metric.value, same),
        size=size_mib(result),
        values=tuple(_values(result)),
        path=result_path("", training).as_posix(),
        command=command(evidence, training),
        machine=statistics.machine_text(result.provenance.machine.model_dump()),
    )


def name_of(evidence: Evidence, record: Result | Failure) -> str:
    """Return the words for a record: its run's or variant's label; a trial's has the values in which trials differ."""
    if record.trial is None:
        return labels.run_label(record.full_name)
    every = [*statistics.trials_of(evidence.results), *statistics.trials_of(evidence.failures)]
    own = [trial for trial in every if trial.name == record.name]
    shown = [
        f"{label.lower()} {labels.value_label(key, statistics.value_of(record, key))}"
        for key, label in statistics.SEARCHED.items()
        if len({str(statistics.value_of(trial, key)) for trial in own}) > 1
    ]
    return ", ".join([labels.run_label(record.name), *(shown or ["trial"])])


def _kind(evidence: Evidence, result: Result) -> str:
    if result.trial is not None:
        return "trial"
    if result.variant is None:
        return "run"
    return "point of a sweep" if result.full_name in evidence.sweep else "variant"


def command(evidence: Evidence, training: Training) -> str:
    """Return the command that trains once more, from the repository's root."""
    study = evidence.settings
    whole = next((own for own in trainings(study) if own == training), training) if study else training
    stage = f"dvc repro --force --single-item {whole.dvc_name}"
    return stage if study is None or study.root == "." else f"cd studies/{study.study} && {stage}"


def _values(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the values that a training used, in words, in the order of Table 3."""
    if result.sparsity.pattern:
        yield labels.hyperparameter("set"), result.sparsity.pattern
    for key in statistics.in_order(result.hyperparameters, labels.HYPERPARAMETERS):
        if key != "set":
            yield labels.hyperparameter(key), labels.value_label(key, result.hyperparameters[key])


def size_mib(result: Result) -> float | None:
    """Return the MiB of a stored model (`nxm.report.storage.stored_bytes`); None where they are not known."""
    size = storage.stored_bytes(result)
    return None if size is None else size / 2**20


def points(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the points of the plot: means over seeds of each run and variant, by task and for the geometric mean."""
    own = [result for result in evidence.results if result.trial is None]
    names = dict.fromkeys(result.full_name for result in own)
    order = statistics.in_order((name.partition("/")[0] for name in names), labels.RUNS)
    found = []
    for group in statistics.task_groups(statistics.tasks_of(statistics.whole_runs(own))):
        for name in sorted(names, key=lambda name: (order.index(name.partition("/")[0]), "/" in name, name)):
            results = [result for result in statistics.runs_of(own, name) if result.task in group]
            score = statistics.method_score(own, name, group)
            if score is not None and results:
                found.append(_point(evidence, name, group, results, score))
    return found


def _point(
    evidence: Evidence, name: str, tasks: list[str], results: list[Result], score: statistics.Score
) -> dict[str, Any]:
    run, _, variant = name.partition("/")
    kept = statistics.retention_interval(evidence, name, "dense", tasks)
    seeds = sorted({result.seed for result in results})
    look, first = labels.look(run), min(results, key=lambda result: (result.task, result.seed))
    sizes, bits = map(size_mib, results), map(storage.bits_per_weight, results)
    return {
        "task": tasks[0] if len(tasks) == 1 else ALL,
        "name": labels.run_label(name),
        "run": look.label,
        "variant": bool(variant),
        "color": look.color,
        "seeds": statistics.listed(seeds),
        "score": round(score.mean, 4),
        "spread": None if score.spread is None else round(score.spread, 4),
        "retained": round(kept.value, 4) if kept else None,
        "low": round(kept.low, 4) if kept and kept.low is not None else None,
        "high": round(kept.high, 4) if kept and kept.high is not None else None,
        "seconds": round(_mean(one.train_seconds for one in results), 2),
        "size": _mean_or_none(sizes),
        "nonzero": round(_mean(one.sparsity.nonzero_parameters for one in results) / 1e6, 4),
        "bits": _mean_or_none(bits),
        "command": command(evidence, place_of(first)),
        "anchor": anchor(place_of(first)),
    }


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    known = list(values)
    present = [value for value in known if value is not None]
    return round(_mean(present), 3) if present and len(present) == len(known) else None


def _mean(values: Any) -> float:
    values = list(values)
    return float(sum(values) / len(values))


def not_run(evidence: Evidence) -> list[Training]:
    """Return the planned trainings that have neither a result nor a recorded failure."""
    if evidence.settings is None:
        return []
    done = {place_of(record) for record in (*evidence.results, *evidence.failures)}
    return [training for training in trainings(evidence.settings) if training not in done]
