"""What tables and figures say alike: names and order of methods and tasks, scores over seeds, retention, notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from nxm.data import tasks as glue
from nxm.report import labels, paper
from nxm.report.evidence import Evidence
from nxm.study.bootstrap import interval
from nxm.study.results import Failure, Result
from nxm.study.search import choose

TASKS = {"mnli": "MNLI", "sst2": "SST-2", "qnli": "QNLI", "cola": "CoLA", "stsb": "STS-B", "mrpc": "MRPC", "rte": "RTE"}
COLUMNS = {"mnli_m": "MNLI-m", "mnli_mm": "MNLI-mm", **{task: label for task, label in TASKS.items() if task != "mnli"}}
METRICS = {"spearman": "Spearman", "f1": "F1", "matthews": "Matthews", "accuracy": "Accuracy"}
_SELECTED = {
    "heldout": "training rows held out",
    "dev": "these same dev rows, as in the paper (optimistic)",
}
ABSENT = "–"
SEARCHED = {"learning_rate": "Learning rate", "batch_size": "Batch", "rho": "ρ", "decay": "Decay", "start": "Start"}
Run = TypeVar("Run", Result, Failure)


def in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Each name once, by its place in `order`; those not in it last, by name."""
    order = list(order)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def methods_of(results: Iterable[Result]) -> list[str]:
    """The methods present, in the order they are shown."""
    return in_order(map(shown_as, results), labels.RUNS)


def tasks_of(results: Iterable[Result]) -> list[str]:
    """The tasks present, in the paper's order."""
    return in_order((result.task for result in results), TASKS)


def whole_runs(results: Iterable[Result]) -> list[Result]:
    """The study's runs proper, without the cells of sweeps and of tuning."""
    return [result for result in results if result.whole]


def runs_of(results: Iterable[Run], method: str) -> list[Run]:
    """A method's whole runs, or, of `nxm_plus/no-teacher`, the runs of that variant of the ablation."""
    name, _, variant = method.partition("/")
    place = (name, variant or None, None)
    return [result for result in results if (result.name, result.variant, result.trial) == place]


def trials_of(records: Iterable[Run]) -> list[Run]:
    """Return the trials of the search over hyper-parameters."""
    return [record for record in records if record.trial is not None]


def shown_as(record: Result | Failure) -> str:
    """Return the name under which a record is shown: its run's; points of a sweep by the paper's recipe have their own."""
    by_paper = record.name == "nxm" and record.variant and record.hyperparameters.get("recipe") == "paper"
    return "nxm_paper" if by_paper else record.name


def own_task(results: Iterable[Result], preferred: str = "stsb") -> str | None:
    """The task of a figure that shows one alone: the paper's when the study has it, else the first."""
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
    """The score of some seeds' values; None when there are none."""
    values = tuple(values)
    if not values:
        return None
    series = pd.Series(values)
    return Score(float(series.mean()), float(series.std()) if len(values) > 1 else None, values)


def column_values(result: Result) -> dict[str, float]:
    """The run's value in each of the paper's columns: two for MNLI, the task's metric for the others."""
    if result.task == "mnli" and {"accuracy_m", "accuracy_mm"} <= result.metrics.keys():
        return {"mnli_m": result.metrics["accuracy_m"], "mnli_mm": result.metrics["accuracy_mm"]}
    return {result.task: result.metric.value}


def columns_of(results: Iterable[Result]) -> list[str]:
    """The paper's columns that these runs fill, in its order."""
    return in_order((column for result in results for column in column_values(result)), COLUMNS)


def column_score(results: Iterable[Result], method: str, column: str) -> Score | None:
    """A method's score in a column over its whole runs."""
    runs = [column_values(result) for result in runs_of(results, method)]
    return score(run[column] for run in runs if column in run)


def average_score(results: Iterable[Result], method: str, columns: list[str]) -> Score | None:
    """Geometric mean over `columns` of the means over seeds; None where one is missing. Of one column the score.

    `values` and `spread` are of the geometric means of single seeds, of those that have all columns. A collapsed run,
    which scores 0 or less, counts as 0: leaving it out would flatter.
    """
    scores = [column_score(results, method, column) for column in columns]
    means = [score.mean for score in scores if score is not None]
    if not means or len(means) < len(columns):
        return None
    if len(columns) == 1:
        return scores[0]
    seeds = score(seed_averages(results, method, columns).values())
    return Score(paper.geometric_mean(means), seeds.spread if seeds else None, seeds.values if seeds else ())


def seed_averages(results: Iterable[Result], method: str, columns: list[str]) -> dict[int, float]:
    """A method's geometric mean over `columns` by seed, of the seeds that have all of them."""
    by_seed: dict[int, dict[str, float]] = {}
    for result in runs_of(results, method):
        by_seed.setdefault(result.seed, {}).update(column_values(result))
    return {
        seed: paper.geometric_mean(values[column] for column in columns)
        for seed, values in sorted(by_seed.items())
        if set(columns) <= values.keys()
    }


def task_score(results: Iterable[Result], method: str, task: str) -> Score | None:
    """A method's score on a task (one metric; MNLI's is the mean of its two) over its whole runs."""
    return score(run.metric.value for run in runs_of(results, method) if run.task == task)


def method_score(results: Iterable[Result], method: str, tasks: list[str]) -> Score | None:
    """A method's score on one task, or its geometric mean over the columns of several; None where one is missing."""
    if len(tasks) == 1:
        return task_score(results, method, tasks[0])
    runs = [run for run in results if run.task in tasks]
    return average_score(runs, method, columns_of(runs)) if {run.task for run in runs} == set(tasks) else None


def paper_task_score(method: str, task: str) -> float | None:
    """The paper's value for what `task_score` says; None where it has none."""
    row = paper.SCORES.get(method)
    if row is None:
        return None
    return (row["mnli_m"] + row["mnli_mm"]) / 2 if task == "mnli" else row[task]


def retention(part: float | None, whole: float | None) -> float | None:
    """Percent of the dense score that is kept; None where a score is missing or the dense one is not positive."""
    return None if part is None or whole is None or whole <= 0 else 100 * part / whole


@dataclass(frozen=True)
class Interval:
    """A quantity and its 95 % interval by the paired bootstrap (None: no predictions to draw from)."""

    value: float
    low: float | None
    high: float | None

    def text(self, form: str = "+.1f") -> str:
        """`+2.1 [+1.2, +3.0]`"""
        if self.low is None or self.high is None:
            return format(self.value, form)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @property
    def certain(self) -> bool | None:
        """Whether the interval excludes zero; None without an interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def difference(evidence: Evidence, method: str, rival: str, tasks: list[str]) -> Interval | None:
    """How many points a method is above another, on one task or in the geometric mean over several."""
    return _interval(evidence, method, rival, tasks, lambda ours, theirs: ours - theirs, ratio=False)


def kept(evidence: Evidence, method: str, whole: str, tasks: list[str]) -> Interval | None:
    """Percent of another method's score that a method keeps, on one task or in the geometric mean over several.

    None where the other one's score is 0 or less; without an interval where it is in some draw.
    """
    return _interval(evidence, method, whole, tasks, lambda ours, theirs: 100 * ours / theirs, ratio=True)


def score_interval(evidence: Evidence, method: str, tasks: list[str]) -> tuple[float, float] | None:
    """The 95 % interval of a method's score, on one task or of the geometric mean; None without draws."""
    draws = _draws(evidence, method, tasks)
    return None if draws is None else interval(draws)


def heldout_score(results: Iterable[Result], method: str, task: str) -> Score | None:
    """A method's score on the training rows held out."""
    return score(run.heldout.value for run in runs_of(results, method) if run.task == task and run.heldout is not None)


def heldout_difference(evidence: Evidence, method: str, rival: str, tasks: list[str]) -> float | None:
    """How many points a method is above another on the training rows held out, means over the seeds of both.

    On one task, or in the geometric mean over several.
    """
    paired = _paired(evidence.results, method, rival)
    ours, theirs = ([heldout_score(paired, name, task) for task in tasks] for name in (method, rival))
    if None in ours or None in theirs:
        return None
    return _combined(ours) - _combined(theirs)


def _combined(scores: list[Score]) -> float:
    means = [score.mean for score in scores]
    return means[0] if len(means) == 1 else paper.geometric_mean(means)


def _paired(results: Iterable[Result], method: str, rival: str) -> list[Result]:
    """Both methods' runs of those tasks and seeds that both have: only these compare."""
    results = list(results)
    places = [{(run.task, run.seed) for run in runs_of(results, name)} for name in (method, rival)]
    return [
        run
        for name in (method, rival)
        for run in runs_of(results, name)
        if (run.task, run.seed) in set.intersection(*places)
    ]


def _draws(evidence: Evidence, method: str, tasks: list[str]) -> np.ndarray | None:
    """A method's score in each bootstrap draw; None where a task has none."""
    series = [evidence.bootstrap.get(task, {}).get(method) for task in tasks]
    if any(draws is None for draws in series):
        return None
    columns = np.concatenate([draws for draws in series if draws is not None], axis=1)  # (draws, columns)
    if len(tasks) == 1:
        return columns.mean(axis=1)
    return columns.clip(min=0.0).prod(axis=1) ** (1 / columns.shape[1])


def _interval(
    evidence: Evidence, method: str, rival: str, tasks: list[str], combine: Callable[[Any, Any], Any], ratio: bool
) -> Interval | None:
    paired = _paired(evidence.results, method, rival)
    ours, theirs = (method_score(paired, name, tasks) for name in (method, rival))
    if ours is None or theirs is None or (ratio and theirs.mean <= 0):
        return None
    means = (ours.mean, theirs.mean)
    draws = [_draws(evidence, name, tasks) for name in (method, rival)]
    if draws[0] is None or draws[1] is None or (ratio and draws[1].min() <= 0):
        return Interval(combine(*means), None, None)
    return Interval(combine(*means), *interval(combine(*draws)))


def percent(value: float | None) -> str:
    """A percentage as it is printed."""
    return ABSENT if value is None else f"{value:.1f} %"


def listed(words: Iterable[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def metrics_phrase(results: Iterable[Result]) -> str:
    """One sentence: which metric is whose: `Metrics: F1 (MRPC), Accuracy (QNLI and RTE).`"""
    by_metric: dict[str, list[str]] = {}
    results = list(results)
    for task in tasks_of(results):
        metric = next(result.metric.name for result in results if result.task == task)
        by_metric.setdefault(METRICS.get(metric, metric), []).append(TASKS.get(task, task))
    said = ", ".join(f"{metric} ({listed(tasks)})" for metric, tasks in by_metric.items())
    return f"Metric{'s' if len(by_metric) > 1 else ''}: {said}."


def seeds_phrase(results: Iterable[Result]) -> str:
    """`seed 1` or `seeds 1, 2 and 3`."""
    seeds = sorted({result.seed for result in results})
    return f"seed{'s' if len(seeds) != 1 else ''} {listed(seeds)}"


def size_phrase(results: Iterable[Result], tasks: Iterable[str]) -> str:
    """How much data tasks had: `STS-B (1,280 of 5,749 training and 1,500 dev examples)`; those of one size together."""
    by_size: dict[str, list[str]] = {}
    for task in tasks:
        sizes = sorted({(r.provenance.train_examples, r.provenance.dev_examples) for r in results if r.task == task})
        whole = glue.TASKS[task].rows["train"] if task in glue.TASKS else 0
        text = " or ".join(
            f"{train:,}{f' of {whole:,}' if train < whole else ''} training and {dev:,} dev examples"
            for train, dev in sizes
        )
        by_size.setdefault(text, []).append(TASKS.get(task, task))
    return "; ".join(f"{listed(names)} ({text}{' each' if len(names) > 1 else ''})" for text, names in by_size.items())


def study_phrase(evidence: Evidence, tasks: list[str] | None = None) -> str:
    """One sentence: study, tasks with sizes, model, seeds of its whole runs."""
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
    """One sentence: the machines of these runs, and what they computed in where it was not fp32."""
    made_with = {(result.provenance.machine, result.provenance.precision) for result in results}
    machines = sorted(
        machine_text(machine.model_dump()) + ("" if precision == "fp32" else f", {precision} autocast")
        for machine, precision in made_with
    )
    return f"Machine: {'; '.join(machines)}." if machines else ""


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine of a results file: `AMD EPYC, 2 cores, 23.5 GiB, device cpu`."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return f"{machine['cpu']}, {cores}, {machine['memory_gib']:g} GiB, device {machine['device']}"


def missing_phrase(evidence: Evidence, methods: Iterable[str]) -> str:
    """One sentence: which methods lack a task or a seed that others have; empty when none does."""
    runs = whole_runs(evidence.results)
    seeds = {run.seed for run in runs}
    gaps = []
    for method in methods:
        for task in tasks_of(runs):
            lacking = sorted(seeds - {run.seed for run in runs if (run.name, run.task) == (method, task)})
            if lacking:
                which = "" if len(lacking) == len(seeds) else f" seed {listed(lacking)}"
                gaps.append(f"{labels.run_label(method)} on {TASKS.get(task, task)}{which}")
    return f"No results file: {'; '.join(gaps)}." if gaps else ""


def collapsed_phrase(results: Iterable[Result]) -> str:
    """One sentence: which runs scored 0 or less, where there are several tasks to average; empty when none did."""
    runs = whole_runs(results)
    columns = columns_of(runs)
    found = [
        f"{labels.run_label(run.name)} on {COLUMNS.get(column, column)}, seed {run.seed}"
        for run in sorted(runs, key=lambda run: (run.task, run.name, run.seed))
        for column, value in column_values(run).items()
        if value <= 0 and len(columns) > 1
    ]
    return f"0 in its seed's geometric mean, for a score of 0 or less: {'; '.join(found)}." if found else ""


def selection_phrase(evidence: Evidence) -> str:
    """A few sentences: what was searched, by which score, and of which runs that is not true."""
    text = "Scores are of the last epoch: no epoch is selected on dev."
    cells = [*trials_of(evidence.results), *trials_of(evidence.failures)]
    if evidence.selection == "params" or not cells:
        return text
    searched = {label for method in methods_of(cells) for label in _searched(cells, method)}
    what = listed(label.lower() for label in in_order(searched, SEARCHED.values()))
    names = listed(labels.run_label(method) for method in methods_of(cells))
    text += f" By a grid on {_SELECTED[evidence.selection]}: the {what} of {names}; nothing else was searched here."
    others = [f"{labels.run_label(method)} on {TASKS.get(task, task)}" for method, task in _not_the_best(evidence)]
    return text + (f" Not so {listed(others)}: their values are not (or not yet) the grid's best." if others else "")


def _searched(cells: Iterable[Run], method: str) -> list[str]:
    """What a method's cells differ in, as `SEARCHED` calls it."""
    own = [cell.hyperparameters for cell in cells if cell.name == method]
    return [label for key, label in SEARCHED.items() if len({str(values.get(key)) for values in own}) > 1]


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
            own = [record for record in runs_of(evidence.results, run) if record.task == task]
            if any(record.hyperparameters.get(key) != values.get(key) for record in own for key in values) or (
                own and choice is None
            ):
                found.append((run, task))
    return found


def notes(evidence: Evidence, methods: Iterable[str]) -> list[str]:
    """What stands under every table: study, sizes, seeds, selection, machine, what is missing."""
    runs = whole_runs(evidence.results)
    several = len({run.seed for run in runs}) > 1
    spread = "± is the standard deviation over seeds." if several else "One seed: no spread."
    lines = [study_phrase(evidence)]
    if runs:
        lines += [f"{selection_phrase(evidence)} {spread}", machine_phrase(runs)]
        lines += [collapsed_phrase(runs), missing_phrase(evidence, methods)]
    return [line for line in lines if line]


def millions(count: float) -> str:
    """A count as `22.7 M`, `120 k` or `7`."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.0f} k" if count >= 1e4 else f"{count:,.0f}"


def said(value: float | str | bool) -> str:
    """A hyper-parameter of any kind."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else plain(value)


def plain(value: float) -> str:
    """A hyper-parameter as a person writes it: `9e-5`, `0.003`, `32`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:g}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text


def cost_phrase(evidence: Evidence) -> str:
    """One sentence: what all runs took, cells and failed ones included; empty when there are none."""
    results, failures = evidence.results, evidence.failures
    if not results:
        return ""
    seconds = sum(run.wall_seconds for run in results) + sum(run.wall_seconds or 0.0 for run in failures)
    memory = max(result.peak_memory_mib for result in results) / 1024
    runs = len(results) + len(failures)
    cells = sum(not run.whole for run in (*results, *failures))
    kinds = f" ({'all' if cells == runs else cells} of them trials, variants or points of sweeps)" if cells else ""
    noun = "training run" if runs == 1 else "training runs"
    return f"{runs} {noun}{kinds} took {seconds / 60:.1f} minutes in all and {memory:.1f} GiB of memory at most."
