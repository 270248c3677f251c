"""The claims of README and of the studies' findings, judged by the results that are here.

A claim is a number that a page's template asks for (`nxm.report.page.numbers`), or one of those that a block of it
shows. It was made with the committed results, and is computed again from those here. It *holds* if

- it has an interval: the value here lies in the committed 95 % interval and, where that excludes zero, so does the one
  from here, on the same side;
- it is a score of a run whose predictions are not stored: it differs by no more than half the width of the dense
  model's interval;
- it is a difference or a score on held-out rows, whose draws are not stored: it differs by no more than half the width
  of that interval on dev, times the square root of the ratio of rows;
- it describes the course of a training (similarity, weights outside the mask): it differs by no more than a tenth (of
  the similarity's distance to 100 %);
- it is a count: it is equal.

Times are no claims that another machine could repeat, and the paper's numbers are nobody's to repeat here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from nxm.errors import UserError
from nxm.report import effects, page, statistics
from nxm.report.effects import Difference
from nxm.report.evidence import Evidence
from nxm.report.page.blocks import best_rival
from nxm.report.page.numbers import called, number, tasks_of
from nxm.report.statistics import Interval

DIFFERENCES, _SHARES = ("points", "above"), ("retention", "retention_interval")
_HELDOUT, _COURSES = ("heldout", "best_trial"), ("similarity", "outside", "left")
_COUNTS = ("examples", "steps", "targets")
JUDGED = (*DIFFERENCES, *_SHARES, *_HELDOUT, *_COURSES, *_COUNTS, "score", "above_constant")
Number = tuple[str, list[str], str | list[str] | None]  # name, runs, task


@dataclass(frozen=True)
class Claim:
    """A number of a page, as committed and as the results here have it.

    Attributes:
        place: page and line of the template.
        words: the number, such as `above("nxm", "asp")`.
        committed, made: as the page prints it; empty if it cannot be computed.
        low, high: where the number must lie to hold; None for a count, and where the data give no interval.
        reason: why it does not hold; empty if it does.
    """

    study: str
    place: str
    words: str
    committed: str
    made: str
    holds: bool
    reason: str = ""
    low: float | None = None
    high: float | None = None


def claims(
    root: Path, committed: Callable[[str], Evidence], made: Callable[[str], Evidence], names: Iterable[str]
) -> list[Claim]:
    """Return the verdict on every claim of the pages that is about one of the studies `names`."""
    return [
        _judge(root, place, committed(place.study), made(place.study), one)
        for place, one in numbers(root, committed, names)
    ]


def differences(
    root: Path, evidence: Callable[[str], Evidence], names: Iterable[str], templates: Sequence[Path] | None = None
) -> list[Difference]:
    """Return all differences between runs that the pages show, each once, by study. `templates`: see `numbers`."""
    asked: dict[str, list[effects.Comparison]] = {}
    for place, (name, runs, task) in numbers(root, evidence, names, templates):
        if name in DIFFERENCES:
            try:
                tasks = tuple(tasks_of(name, evidence(place.study), runs, task))
            except LookupError:  # a run is missing; the claim says so
                continue
            own = asked.setdefault(place.study, [])
            if (runs[1], runs[0], tasks) not in own:
                own.append((runs[0], runs[1], tasks))
    return [one for study, own in asked.items() for one in effects.measured(evidence(study), own).values()]


# --- the numbers of the pages ----------------------------------------------------------------------------------------


def numbers(
    root: Path, read: Callable[[str], Evidence], names: Iterable[str], templates: Sequence[Path] | None = None
) -> Iterator[tuple[page.Call, Number]]:
    """Yield the numbers that pages show of some studies; those of a block one by one. `templates`: only of these."""
    names = set(names)
    for template in page.pages(root) if templates is None else templates:
        for call in page.calls(template, root):
            if call.study not in names:
                continue
            if call.function in JUDGED:
                yield call, (call.function, [str(run) for run in call.arguments], call.task)
            elif call.function in _BLOCKS:
                for one in _BLOCKS[call.function](read(call.study), *call.arguments):
                    yield call, one


def _headline(evidence: Evidence) -> Iterator[Number]:
    runs = statistics.whole_runs(evidence.results)
    for tasks in statistics.task_groups(statistics.tasks_of(runs)):
        yield from _compared(evidence, "nxm", "asp", tasks)


def _best(evidence: Evidence) -> Iterator[Number]:
    runs = statistics.whole_runs(evidence.results)
    for tasks in statistics.task_groups(statistics.tasks_of(statistics.runs_of(runs, "nxm_plus"))):
        yield from _compared(evidence, "nxm_plus", best_rival([run for run in runs if run.task in tasks], tasks), tasks)


def _last(block: Callable[[Evidence], Iterator[Number]]) -> Callable[[Evidence], Iterator[Number]]:
    """Return the numbers of a block's last sentence: those of the largest group of tasks."""

    def last(evidence: Evidence) -> Iterator[Number]:
        found = list(block(evidence))
        longest = max((len(task or ()) for *_, task in found), default=0)
        yield from (one for one in found if len(one[2] or ()) == longest)

    return last


def _verdict_table(evidence: Evidence, runs: Sequence[str]) -> Iterator[Number]:
    tasks = statistics.tasks_of(statistics.whole_runs(evidence.results))
    for run in runs:
        yield "score", [run], tasks
        if run != "dense":
            yield "retention", [run], tasks


def _ingredients(evidence: Evidence) -> Iterator[Number]:
    for variant, rival in evidence.variants.items():
        runs = [statistics.runs_of(evidence.results, name) for name in (variant, rival)]
        common = set.intersection(*({run.task for run in own} for own in runs))
        if tasks := [task for task in statistics.tasks_of(evidence.results) if task in common]:
            yield "points", [variant, rival], tasks


def _compared(evidence: Evidence, run: str, rival: str, tasks: list[str]) -> Iterator[Number]:
    have = [name for name in (run, rival, "dense") if statistics.method_score(evidence.results, name, tasks)]
    for name in (run, rival):
        if {name, "dense"} <= set(have):
            yield "retention", [name], tasks
    if {run, rival} <= set(have):
        yield "points", [run, rival], tasks


_BLOCKS: dict[str, Callable[..., Iterator[Number]]] = {
    "headline": _headline,
    "mean": _last(_headline),
    "best": _best,
    "best_mean": _last(_best),
    "verdict_table": _verdict_table,
    "ingredients": _ingredients,
}


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge(root: Path, place: page.Call, committed: Evidence, made: Evidence, one: Number) -> Claim:
    name, runs, task = one
    where = f"{os.path.relpath(place.template, root)}:{place.line}"
    words = called(name, runs, task if isinstance(task, str) or place.function in JUDGED else None)
    if place.function not in JUDGED:
        words = f"{place.function}: {words}"
        words += f" ({', '.join(task)})" if isinstance(task, list) and len(task) == 1 else ""
    before = _printed(name, committed, runs, task)
    try:
        now = number(name, made, runs, task)
    except UserError as error:
        return Claim(place.study, where, words, before, "", False, f"it cannot be computed: {error}")
    if not before:  # nothing was committed that could be contradicted
        return Claim(place.study, where, words, before, now, True)
    tasks = tasks_of(name, committed, runs, task)
    if (own := tasks_of(name, made, runs, task)) != tasks:
        reason = f"it is of {statistics.listed(own)} here, not of {statistics.listed(tasks)}"
        return Claim(place.study, where, words, before, now, False, reason)
    allowed = _allowed(name, committed, runs, tasks)
    reason = "" if made is committed else _reason(name, allowed, measure(name, made, runs, tasks), before == now)
    return Claim(place.study, where, words, before, now, not reason, reason, allowed.low, allowed.high)


def _printed(name: str, evidence: Evidence, runs: list[str], task: str | list[str] | None) -> str:
    try:
        return number(name, evidence, runs, task)
    except UserError:
        return ""


def _allowed(name: str, evidence: Evidence, runs: list[str], tasks: list[str]) -> Interval:
    """Return a number as committed, with the interval in which it must lie to hold."""
    found = measure(name, evidence, runs, tasks)
    if name in _COURSES:
        tenth = (100 - found.value if name == "similarity" else found.value) / 10
        return Interval(found.value, found.value - tenth, found.value + tenth)
    return found


def _reason(name: str, before: Interval, now: Interval, same: bool) -> str:
    """Return why a claim does not hold; empty if it does. `same`: it is printed with the same digits."""
    if name in _COUNTS:
        return "" if before.value == now.value else "the counts differ"
    if before.low is None or before.high is None:
        return "" if same else "it differs, and no interval says by how much it may"
    if not before.low <= now.value <= before.high:
        return f"{now.value:.2f} is outside {before.low:.2f} to {before.high:.2f}"
    if name in DIFFERENCES and before.certain:
        if now.low is None or now.high is None:
            return "it has no interval any more"
        if not now.certain or (now.low > 0) != (before.low > 0):
            return f"its interval [{now.low:.1f}, {now.high:.1f}] no longer excludes zero"
    return ""


def measure(name: str, evidence: Evidence, runs: list[str], tasks: list[str]) -> Interval:
    """Return a number with the interval by which it is judged."""
    run = runs[0]
    if name in DIFFERENCES:
        return _known(statistics.difference(evidence, run, runs[1], tasks))
    if name in _SHARES:
        return _known(statistics.retention_interval(evidence, run, runs[1] if len(runs) > 1 else "dense", tasks))
    if name in ("score", "above_constant"):
        floor = evidence.floors[tasks[0]] if name == "above_constant" else 0.0
        value = _known(statistics.method_score(evidence.results, run, tasks)).mean - floor
        if own := statistics.score_interval(evidence, run, tasks):
            return Interval(value, own[0] - floor, own[1] - floor)
        dense = statistics.score_interval(evidence, "dense", tasks)
        half = None if dense is None else (dense[1] - dense[0]) / 2
        return Interval(value, None, None) if half is None else Interval(value, value - half, value + half)
    if name == "heldout":
        value = _known(statistics.heldout_difference(evidence, run, runs[1], tasks))
        return _on_heldout(value, evidence, statistics.difference(evidence, run, runs[1], tasks), tasks)
    if name == "best_trial":
        trials = [one for one in statistics.trials_of(evidence.results) if (one.name, one.task) == (run, tasks[0])]
        value = max(one.heldout.value for one in trials if one.heldout is not None)
        whole = run if statistics.method_score(evidence.results, run, tasks) else "dense"
        known = statistics.method_score(evidence.results, whole, tasks) is not None
        width = measure("score", evidence, [whole], tasks) if known else None
        return _on_heldout(value, evidence, width, tasks)
    results = [one for one in statistics.runs_of(evidence.results, run) if one.task in tasks]
    return Interval(_COUNTED[name](results), None, None)


def _on_heldout(value: float, evidence: Evidence, dev: Interval | None, tasks: list[str]) -> Interval:
    """Return a value on held-out rows with the width of an interval on dev, for the number of held-out rows."""
    if dev is None or dev.low is None or dev.high is None:
        return Interval(value, None, None)
    sizes = [one.provenance for one in evidence.results if one.task in tasks and one.provenance.heldout_examples]
    ratio = max((one.dev_examples / one.heldout_examples for one in sizes), default=1.0)
    half = (dev.high - dev.low) / 2 * sqrt(max(ratio, 1.0))
    return Interval(value, value - half, value + half)


def _outside(results: list[Any]) -> float:
    counts = []
    for one in results:
        end = max(swap.iterations_outside for swap in one.admm.swaps)
        counts.append(sum(swap.count for swap in one.admm.swaps if 0 < swap.iterations_outside < end))
    return float(np.mean(counts))


_COUNTED: dict[str, Callable[[list[Any]], float]] = {
    "similarity": lambda results: (
        100 * min(step.similarity for one in results for step in one.admm.iterations if step.similarity is not None)
    ),
    "outside": _outside,
    "examples": lambda results: results[0].provenance.train_examples,
    "steps": lambda results: results[0].epochs[-1].step,
    "targets": lambda results: results[0].sparsity.target_parameters,
    "left": lambda results: float(np.mean([100 * one.structure.share for one in results if one.structure])),
}


def _known(found: Any) -> Any:
    assert found is not None, "`number` has computed it"
    return found
