"""Statistics that tables, figures and pages share: order of runs and tasks, scores over seeds, intervals, notes.

A run is named as in params.yaml, one of its variants as `nxm_plus/no-teacher`. A function that takes `tasks` is about
that one task or, for several, the geometric mean over the paper's columns of them (`method_score`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from nxm.data import tasks as glue
from nxm.methods import METHODS, settings_class, takes_set
from nxm.report import labels, paper
from nxm.report.evidence import Evidence
from nxm.study import settings
from nxm.study.bootstrap import interval
from nxm.study.results import Failure, Result
from nxm.study.search import choose

TASKS = {task.name: task.label for task in glue.TASKS.values()}
COLUMNS = {name: label for task in glue.TASKS.values() for name, label in task.columns.items()}
METRICS = {"spearman": "Spearman", "f1": "F1", "matthews": "Matthews", "accuracy": "Accuracy"}
_SELECTED = {
    "heldout": "training rows held out",
    "dev": "these same dev rows, as in the paper (optimistic)",
}
ABSENT = "–"
SEARCHED = {"learning_rate": "Learning rate", "batch_size": "Batch", "rho": "ρ", "decay": "Decay", "start": "Start"}
Run = TypeVar("Run", Result, Failure)


def in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Return each name once, by its place in `order`; those not in it last, by name."""
    order = list(order)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def methods_of(results: Iterable[Result]) -> list[str]:
    """Return the names of the runs present, in the order they are shown."""
    return in_order(map(shown_as, results), labels.RUNS)


def tasks_of(results: Iterable[Result]) -> list[str]:
    """Return the tasks present, in the paper's order."""
    return in_order((result.task for result in results), TASKS)


def whole_runs(results: Iterable[Result]) -> list[Result]:
    """Return the results of the study's runs themselves, without those of variants and trials."""
    return [result for result in results if result.whole]


def runs_of(records: Iterable[Run], run: str) -> list[Run]:
    """Return the records of a run, or, of `nxm_plus/no-teacher`, those of that variant; none of trials."""
    name, _, variant = run.partition("/")
    place = (name, variant or None, None)
    return [record for record in records if (record.name, record.variant, record.trial) == place]


def trials_of(records: Iterable[Run]) -> list[Run]:
    """Return the trials of the search over hyper-parameters."""
    return [record for record in records if record.trial is not None]


def shown_as(record: Result | Failure) -> str:
    """Return the name under which a record is shown: its run's, or `nxm_paper` for variants by the paper's recipe."""
    by_paper = record.name == "nxm" and record.variant and record.hyperparameters.get("recipe") == "paper"
    return "nxm_paper" if by_paper else record.name


def default_of(record: Result | Failure, key: str) -> Any:
    """Return the default of a hyper-parameter in a record's run and method; None where it has none."""
    method = record.hyperparameters.get("method")
    # former files name no method; those were of methods with a set
    methods = (method,) if isinstance(method, str) else tuple(filter(takes_set, METHODS))
    return _defaults(methods).get(key)


@functools.cache
def _defaults(methods: tuple[str, ...]) -> dict[str, Any]:
    kinds = [*map(settings_class, methods), settings.Run]
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    return {name: field.default for name, field in fields.items() if not field.is_required()}


def value_of(record: Result | Failure, key: str) -> Any:
    """Return a record's value of a hyper-parameter; where it has none, as in former files, the default."""
    return record.hyperparameters.get(key, default_of(record, key))


def own_task(results: Iterable[Result], preferred: str = "stsb") -> str | None:
    """Return the task of a figure that shows one alone: the paper's when the study has it, else the first."""
    tasks = tasks_of(results)
    return preferred if preferred in tasks else (tasks[0] if tasks else None)


@dataclass(frozen=True)
class Score:
    """Mean over seeds, in percent points, and its spread (sample standard deviation; None with one seed)."""

    mean: float
    spread: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.spread is None else f"{self.mean:.1f} ± {self.spread:.1f}"


def score(values: Iterable[float]) -> Score | None:
    """Return the score of some seeds' values; None for no values."""
    values = tuple(values)
    if not values:
        return None
    series = pd.Series(values)
    return Score(float(series.mean()), float(series.std()) if len(values) > 1 else None, values)


def column_values(result: Result) -> dict[str, float]:
    """Return a result's value in each of the paper's columns: two for MNLI, the task's metric for the others."""
    if result.task == "mnli" and {"accuracy_m", "accuracy_mm"} <= result.metrics.keys():
        return {"mnli_m": result.metrics["accuracy_m"], "mnli_mm": result.metrics["accuracy_mm"]}
    return {result.task: result.metric.value}


def columns_of(results: Iterable[Result]) -> list[str]:
    """Return the paper's columns that these results fill, in its order."""
    return in_order((column for result in results for column in column_values(result)), COLUMNS)


def column_score(results: Iterable[Result], run: str, column: str) -> Score | None:
    """Return a run's score in a column."""
    values = [column_values(result) for result in runs_of(results, run)]
    return score(value[column] for value in values if column in value)


def average_score(results: Iterable[Result], run: str, columns: list[str]) -> Score | None:
    """Return the geometric mean over `columns` of a run's means over seeds; of one column its score.

    None where a column is missing. `values` and `spread` are of the geometric means of single seeds, of those that have
    all columns. A collapsed training, which scores 0 or less, counts as 0: leaving it out would flatter.
    """
    scores = [column_score(results, run, column) for column in columns]
    means = [score.mean for score in scores if score is not None]
    if not means or len(means) < len(columns):
        return None
    if len(columns) == 1:
        return scores[0]
    seeds = score(seed_averages(results, run, columns).values())
    return Score(paper.geometric_mean(means), seeds.spread if seeds else None, seeds.values if seeds else ())


def seed_averages(results: Iterable[Result], run: str, columns: list[str]) -> dict[int, float]:
    """Return a run's geometric mean over `columns` by seed, of the seeds that have all of them."""
    by_seed: dict[int, dict[str, float]] = {}
    for result in runs_of(results, run):
        by_seed.setdefault(result.seed, {}).update(column_values(result))
    return {
        seed: paper.geometric_mean(values[column] for column in columns)
        for seed, values in sorted(by_seed.items())
        if set(columns) <= values.keys()
    }


def task_score(results: Iterable[Result], run: str, task: str) -> Score | None:
    """Return a run's score on a task: of its one metric, which for MNLI is the mean of two."""
    return score(result.metric.value for result in runs_of(results, run) if result.task == task)


def task_groups(tasks: list[str]) -> list[list[str]]:
    """Return what is reported on: each task, and all of them together where there are several."""
    return [[task] for task in tasks] + ([tasks] if len(tasks) > 1 else [])


def method_score(results: Iterable[Result], run: str, tasks: list[str]) -> Score | None:
    """Return a run's score on one task or its geometric mean over the columns of several; None where one is missing."""
    if len(tasks) == 1:
        return task_score(results, run, tasks[0])
    own = [result for result in results if result.task in tasks]
    return average_score(own, run, columns_of(own)) if {result.task for result in own} == set(tasks) else None


def seed_scores(results: Iterable[Result], run: str, tasks: list[str]) -> dict[int, float]:
    """Return the values behind `method_score` by seed, of the seeds that have all tasks."""
    own = [result for result in results if result.task in tasks]
    if len(tasks) == 1:
        return {result.seed: result.metric.value for result in runs_of(own, run)}
    return seed_averages(own, run, columns_of(own))


def paper_score(run: str, tasks: list[str]) -> float | None:
    """Return the paper's value for what `method_score` is of ours; None where the paper does not have the run."""
    if len(tasks) == 1:
        return paper_task_score(run, tasks[0])
    return paper.average(run, [column for column in paper.COLUMNS if column.partition("_")[0] in tasks])


def paper_task_score(run: str, task: str) -> float | None:
    """Return the paper's value for what `task_score` is of ours; None where the paper does not have the run."""
    row = paper.SCORES.get(run)
    if row is None:
        return None
    return (row["mnli_m"] + row["mnli_mm"]) / 2 if task == "mnli" else row[task]


def combined(values: Iterable[float]) -> float:
    """Return one value unchanged, and of several their geometric mean."""
    values = list(values)
    return values[0] if len(values) == 1 else paper.geometric_mean(values)


def retention(part: float | None, whole: float | None) -> float | None:
    """Return a score as percent of the dense one; None where one is missing or the dense one is not positive."""
    return None if part is None or whole is None or whole <= 0 else 100 * part / whole


@dataclass(frozen=True)
class Interval:
    """A quantity and its 95 % interval by the paired bootstrap (None: no predictions to draw from)."""

    value: float
    low: float | None
    high: float | None

    def text(self, form: str = "+.1f") -> str:
        """Return the value and the interval, such as `+2.1 [+1.2, +3.0]`."""
        if self.low is None or self.high is None:
            return format(self.value, form)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @property
    def certain(self) -> bool | None:
        """True where the interval excludes zero, False where it does not; None without an interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def difference(evidence: Evidence, run: str, rival: str, tasks: list[str]) -> Interval | None:
    """Return the difference in points between a run and another."""
    return _interval(evidence, run, rival, tasks, lambda ours, theirs: ours - theirs, ratio=False)


def retention_interval(evidence: Evidence, run: str, whole: str, tasks: list[str]) -> Interval | None:
    """Return a run's score as percent of another run's.

    None where the other one's score is 0 or less; without an interval where it is in some draw.
    """
    return _interval(evidence, run, whole, tasks, lambda ours, theirs: 100 * ours / theirs, ratio=True)


def score_interval(evidence: Evidence, run: str, tasks: list[str]) -> tuple[float, float] | None:
    """Return the 95 % interval of a run's score; None without draws."""
    drawn = draws(evidence, run, tasks)
    return None if drawn is None else interval(drawn)


def heldout_score(results: Iterable[Result], run: str, task: str) -> Score | None:
    """Return a run's score on the held-out training rows of one task."""
    own = [result for result in runs_of(results, run) if result.task == task]
    return score(result.heldout.value for result in own if result.heldout is not None)


def heldout_difference(evidence: Evidence, run: str, rival: str, tasks: list[str]) -> float | None:
    """Return the difference in points on the held-out training rows, of means over the seeds of both runs.

    The geometric mean is over tasks, since MNLI has one held-out score.
    """
    paired = _paired(evidence.results, run, rival)
    ours, theirs = ([heldout_score(paired, name, task) for task in tasks] for name in (run, rival))
    if None in ours or None in theirs:
        return None
    return combined(score.mean for score in ours) - combined(score.mean for score in theirs)


def _paired(results: Iterable[Result], run: str, rival: str) -> list[Result]:
    """Return the results of both runs for the tasks and seeds that both have: only these are comparable."""
    results = list(results)
    places = [{(result.task, result.seed) for result in runs_of(results, name)} for name in (run, rival)]
    return [
        result
        for name in (run, rival)
        for result in runs_of(results, name)
        if (result.task, result.seed) in set.intersection(*places)
    ]


def draws(evidence: Evidence, run: str, tasks: list[str]) -> np.ndarray | None:
    """Return a run's score in each bootstrap draw, (draws,); None where a task has none."""
    series = [evidence.bootstrap.get(task, {}).get(run) for task in tasks]
    if any(own is None for own in series):
        return None
    columns = np.concatenate([own for own in series if own is not None], axis=1)  # (draws, columns)
    if len(tasks) == 1:
        return columns.mean(axis=1)
    return columns.clip(min=0.0).prod(axis=1) ** (1 / columns.shape[1])


def _interval(
    evidence: Evidence, run: str, rival: str, tasks: list[str], combine: Callable[[Any, Any], Any], ratio: bool
) -> Interval | None:
    paired = _paired(evidence.results, run, rival)
    ours, theirs = (method_score(paired, name, tasks) for name in (run, rival))
    if ours is None or theirs is None or (ratio and theirs.mean <= 0):
        return None
    means = (ours.mean, theirs.mean)
    ours_drawn, theirs_drawn = (draws(evidence, name, tasks) for name in (run, rival))
    if ours_drawn is None or theirs_drawn is None or (ratio and theirs_drawn.min() <= 0):
        return Interval(combine(*means), None, None)
    return Interval(combine(*means), *interval(combine(ours_drawn, theirs_drawn)))


def percent(value: float | None) -> str:
    """Return a percentage as text, such as `98.4 %`."""
    return ABSENT if value is None else f"{value:.1f} %"


def listed(words: Iterable[object]) -> str:
    """Return words as a list in a sentence: `a`, `a and b`, `a, b and c`."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def metrics_phrase(results: Iterable[Result]) -> str:
    """Return one sentence with the metric of each task: `Metrics: F1 (MRPC), Accuracy (QNLI and RTE).`"""
    by_metric: dict[str, list[str]] = {}
    results = list(results)
    for task in tasks_of(results):
        metric = next(result.metric.name for result in results if result.task == task)
        by_metric.setdefault(METRICS.get(metric, metric), []).append(TASKS.get(task, task))
    text = ", ".join(f"{metric} ({listed(tasks)})" for metric, tasks in by_metric.items())
    return f"Metric{'s' if len(by_metric) > 1 else ''}: {text}."


def seeds_phrase(results: Iterable[Result]) -> str:
    """Return the seeds of some results: `seed 1` or `seeds 1, 2 and 3`."""
    seeds = sorted({result.seed for result in results})
    return f"seed{'s' if len(seeds) != 1 else ''} {listed(seeds)}"


def size_phrase(results: Iterable[Result], tasks: Iterable[str]) -> str:
    """Return the number of examples by task, tasks of one size together.

    Such as `STS-B (1,280 of 5,749 training and 1,500 dev examples)`.
    """
    by_size: dict[str, list[str]] = {}
    for task in tasks:
        own = [result.provenance for result in results if result.task == task]
        sizes = sorted({(one.train_examples, one.dev_examples) for one in own})
        whole = glue.TASKS[task].rows["train"] if task in glue.TASKS else 0
        text = " or ".join(
            f"{train:,}{f' of {whole:,}' if train < whole else ''} training and {dev:,} dev examples"
            for train, dev in sizes
        )
        by_size.setdefault(text, []).append(TASKS.get(task, task))
    return "; ".join(f"{listed(names)} ({text}{' each' if len(names) > 1 else ''})" for text, names in by_size.items())


def study_phrase(evidence: Evidence, tasks: list[str] | None = None) -> str:
    """Return one sentence with the study, its tasks and their sizes, the model, and the seeds of its runs."""
    results = whole_runs(evidence.results) or evidence.results
    if not results:
        return f"Study {evidence.study}: no results yet."
    sizes = size_phrase(results, tasks or tasks_of(results))
    main = next((result for result in results if result.name == "dense"), results[0])
    model = (
        f"{labels.weights_label(main.provenance.weights)}, {main.model.layers} layers, {main.model.hidden_size} wide"
    )
    return f"Study {evidence.study}: {sizes}; {model}; {seeds_phrase(results)}."


def machine_phrase(results: Iterable[Result]) -> str:
    """Return one sentence with the machines of some results, and the precision where it was not fp32."""
    made_with = {(result.provenance.machine, result.provenance.precision) for result in results}
    machines = sorted(
        machine_text(machine.model_dump()) + ("" if precision == "fp32" else f", {precision} autocast")
        for machine, precision in made_with
    )
    return f"Machine: {'; '.join(machines)}." if machines else ""


def machine_text(machine: Mapping[str, Any]) -> str:
    """Return a machine of a results file as text: `AMD EPYC, 2 cores, 23.5 GiB, device cpu`."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return f"{machine['cpu']}, {cores}, {machine['memory_gib']:g} GiB, device {machine['device']}"


def missing_phrase(evidence: Evidence, runs: Iterable[str]) -> str:
    """Return one sentence with the runs that lack a task or a seed that others have; empty when none does."""
    results = whole_runs(evidence.results)
    seeds = {result.seed for result in results}
    gaps = []
    for run in runs:
        for task in tasks_of(results):
            lacking = sorted(seeds - {result.seed for result in runs_of(results, run) if result.task == task})
            if lacking:
                which = "" if len(lacking) == len(seeds) else f" seed {listed(lacking)}"
                gaps.append(f"{labels.run_label(run)} on {TASKS.get(task, task)}{which}")
    return f"No results file: {'; '.join(gaps)}." if gaps else ""


def collapsed_phrase(results: Iterable[Result]) -> str:
    """Return one sentence with the results of 0 or less, where several tasks are averaged; empty when none is."""
    results = whole_runs(results)
    columns = columns_of(results)
    found = [
        f"{labels.run_label(result.name)} on {COLUMNS.get(column, column)}, seed {result.seed}"
        for result in sorted(results, key=lambda result: (result.task, result.name, result.seed))
        for column, value in column_values(result).items()
        if value <= 0 and len(columns) > 1
    ]
    return f"0 in its seed's geometric mean, for a score of 0 or less: {'; '.join(found)}." if found else ""


def selection_phrase(evidence: Evidence) -> str:
    """Return a few sentences with the values that were searched, the score that chose them, and the exceptions."""
    text = "Scores are of the last epoch: no epoch is selected on dev."
    trials = [*trials_of(evidence.results), *trials_of(evidence.failures)]
    if evidence.selection == "params" or not trials:
        return text
    searched = {label for run in methods_of(trials) for label in _searched(trials, run)}
    values = listed(label.lower() for label in in_order(searched, SEARCHED.values()))
    names = listed(labels.run_label(run) for run in methods_of(trials))
    text += f" By a grid on {_SELECTED[evidence.selection]}: the {values} of {names}; nothing else was searched here."
    others = [f"{labels.run_label(run)} on {TASKS.get(task, task)}" for run, task in _not_the_best(evidence)]
    return text + (f" Not so {listed(others)}: their values are not (or not yet) the grid's best." if others else "")


def _searched(trials: Iterable[Run], run: str) -> list[str]:
    """Return the labels of the values that a run's trials differ in."""
    own = [trial for trial in trials if trial.name == run]
    return [label for key, label in SEARCHED.items() if len({str(value_of(trial, key)) for trial in own}) > 1]


def _not_the_best(evidence: Evidence) -> list[tuple[str, str]]:
    """Return runs and tasks that were searched and whose values are not the best trial's."""
    study = evidence.settings
    if study is None or study.search.by is None:
        return []
    found = []
    for task in study.tasks:
        for run in study.search.runs:
            choice = choose(study, task, run, evidence.results, evidence.failures, study.search.by)
            values = choice.values if choice else {}
            own = [result for result in runs_of(evidence.results, run) if result.task == task]
            if any(value_of(result, key) != values.get(key) for result in own for key in values) or (
                own and choice is None
            ):
                found.append((run, task))
    return found


def notes(evidence: Evidence, runs: Iterable[str]) -> list[str]:
    """Return the notes of every table: study, sizes, seeds, selection, machine, and which of `runs` are missing."""
    results = whole_runs(evidence.results)
    several = len({result.seed for result in results}) > 1
    spread = "± is the standard deviation over seeds." if several else "One seed: no spread."
    lines = [study_phrase(evidence)]
    if results:
        lines += [f"{selection_phrase(evidence)} {spread}", machine_phrase(results)]
        lines += [collapsed_phrase(results), missing_phrase(evidence, runs)]
    return [line for line in lines if line]


def millions(count: float) -> str:
    """Return a count as text: `22.7 M`, `120 k` or `7`."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.0f} k" if count >= 1e4 else f"{count:,.0f}"


def plain(value: float) -> str:
    """Return a number as people write hyper-parameters: `9e-5`, `0.003`, `32`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:g}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text


def cost_phrase(evidence: Evidence) -> str:
    """Return one sentence with the cost of all trainings, trials and failed ones included; empty without results."""
    results, failures = evidence.results, evidence.failures
    if not results:
        return ""
    seconds = sum(result.wall_seconds for result in results) + sum(one.wall_seconds or 0.0 for one in failures)
    memory = max(result.peak_memory_mib for result in results) / 1024
    runs = len(results) + len(failures)
    cells = sum(not run.whole for run in (*results, *failures))
    kinds = f" ({'all' if cells == runs else cells} of them trials, variants or points of sweeps)" if cells else ""
    noun = "training run" if runs == 1 else "training runs"
    return f"{runs} {noun}{kinds} took {seconds / 60:.1f} minutes in all and {memory:.1f} GiB of memory at most."
