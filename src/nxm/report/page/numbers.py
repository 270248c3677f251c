"""Numbers for sentences: functions that a template calls, computed from results files and returned as text.

    points(RUN, RIVAL)               1.8 [0.9, 2.8]: the difference in points, with its 95 % interval
    above(RUN, RIVAL)                1.8 points [0.9, 2.8] above (or below, or level)
    heldout(RUN, RIVAL)              0.8 above (or below): the difference on the held-out training rows
    score(RUN)                       82.4
    retention(RUN, WHOLE="dense")    101.0 %: the share of another run's score
    retention_interval(RUN, WHOLE="dense")   95.8 to 104.5 %
    time(RUN)                        1.70: training time as a multiple of the dense model's
    best_trial(RUN)                  45.0: the best held-out score of the search
    above_constant(RUN)              2.6 points above the best constant answer (one task)
    examples(RUN), steps(RUN)        training examples and optimizer steps (one task)
    similarity(RUN)                  99.89 %: the least similarity of the masks of two consecutive ADMM iterations
    outside(RUN), targets(RUN)       weights outside the mask for some ADMM iterations but not all; all weights of the
                                     target matrices
    left(RUN)                        19.9 %: the weights of the layers that a shrunk model has left, mean over runs
    paper_points(RUN, RIVAL)         0.7 points below, in the paper
    paper_retention(RUN)             98.4 %, in the paper

A run is named as in params.yaml, a variant `nxm_plus/no-teacher`. Every function takes `task=`, a task or a list of
tasks, and `study=`. Without a task it is the only one that all runs named have, or the geometric mean over those;
for the paper's numbers `task="all"` is the paper's eight columns.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from nxm.errors import UserError
from nxm.report import paper, statistics
from nxm.report.evidence import Evidence
from nxm.study.results import Result

Found = TypeVar("Found")


def points(evidence: Evidence, tasks: list[str], run: str, rival: str) -> str:
    """A difference and its interval, without a direction."""
    return _measured(statistics.difference(evidence, run, rival, tasks)).text(".1f")


def above(evidence: Evidence, tasks: list[str], run: str, rival: str) -> str:
    """A difference and its interval, in words that hold whichever run is ahead."""
    found = _measured(statistics.difference(evidence, run, rival, tasks))
    if found.low is None or found.high is None:
        return _direction(found.value)
    low, high = (found.low, found.high) if found.value >= 0 else (-found.high, -found.low)
    return _direction(found.value, f" [{low:.1f}, {high:.1f}]")


def heldout(evidence: Evidence, tasks: list[str], run: str, rival: str) -> str:
    """A difference on the held-out training rows."""
    value = _measured(statistics.heldout_difference(evidence, run, rival, tasks))
    return _direction(value).replace(" points", "")


def score(evidence: Evidence, tasks: list[str], run: str) -> str:
    """A score x 100, the mean over seeds."""
    return f"{_measured(statistics.method_score(evidence.results, run, tasks)).mean:.1f}"


def retention(evidence: Evidence, tasks: list[str], run: str, whole: str = "dense") -> str:
    """The share of another run's score."""
    return statistics.percent(_measured(statistics.retention_interval(evidence, run, whole, tasks)).value)


def retention_interval(evidence: Evidence, tasks: list[str], run: str, whole: str = "dense") -> str:
    """The 95 % interval of the share of another run's score."""
    found = _measured(statistics.retention_interval(evidence, run, whole, tasks))
    return f"{_measured(found.low):.1f} to {_measured(found.high):.1f} %"


def time(evidence: Evidence, tasks: list[str], run: str) -> str:
    """Training time as a multiple of the dense model's, means over tasks and seeds."""
    own, dense = ([one.train_seconds for one in _runs(evidence, tasks, name)] for name in (run, "dense"))
    if not dense:
        raise LookupError("the study has no run of dense")
    return f"{sum(own) / len(own) / (sum(dense) / len(dense)):.2f}"


def best_trial(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The best held-out score among the trials of a run's search on one task."""
    task = _one(tasks)
    trials = [trial for trial in statistics.trials_of(evidence.results) if (trial.name, trial.task) == (run, task)]
    scores = [trial.heldout.value for trial in trials if trial.heldout is not None]
    if not scores:
        raise LookupError(f"no trial of {run} on {task} has a held-out score")
    return f"{max(scores):.1f}"


def above_constant(evidence: Evidence, tasks: list[str], run: str) -> str:
    """A difference to the best constant answer on one task, in words."""
    task = _one(tasks)
    if task not in evidence.floors:
        raise LookupError(f"the score of a constant answer was not measured on {task}")
    return _direction(_measured(statistics.task_score(evidence.results, run, task)).mean - evidence.floors[task])


def examples(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The number of training examples on one task."""
    return f"{_same(one.provenance.train_examples for one in _runs(evidence, [_one(tasks)], run)):,}"


def steps(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The number of optimizer steps on one task."""
    return f"{_same(one.epochs[-1].step for one in _runs(evidence, [_one(tasks)], run)):,}"


def similarity(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The least similarity of the masks of two consecutive ADMM iterations, rounded down."""
    values = [
        iteration.similarity
        for one in _runs(evidence, tasks, run)
        for iteration in (one.admm.iterations if one.admm else ())
        if iteration.similarity is not None
    ]
    if not values:
        raise LookupError(f"{run} has no ADMM iterations")
    return f"{math.floor(1e4 * min(values)) / 100:.2f} %"


def outside(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The number of weights that were outside the mask for some ADMM iterations but not all, mean over runs."""
    own = [one.admm.swaps for one in _runs(evidence, tasks, run) if one.admm]
    if not own:
        raise LookupError(f"{run} has no ADMM iterations")
    last = [max(swap.iterations_outside for swap in swaps) for swaps in own]
    counts = [
        sum(swap.count for swap in swaps if 0 < swap.iterations_outside < end)
        for swaps, end in zip(own, last, strict=True)
    ]
    return f"{round(sum(counts) / len(counts), -2):,.0f}"


def targets(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The number of weights in the target matrices."""
    return statistics.millions(_same(one.sparsity.target_parameters for one in _runs(evidence, tasks, run)))


def left(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The weights of the layers' matrices that a shrunk model has left, as a share of the dense architecture's."""
    shares = [one.structure.share for one in _runs(evidence, tasks, run) if one.structure]
    if not shares:
        raise LookupError(f"{run} has no shrunk model")
    return statistics.percent(100 * sum(shares) / len(shares))


def paper_points(evidence: Evidence, tasks: list[str], run: str, rival: str) -> str:
    """The paper's difference."""
    return _direction(_paper_score(run, tasks) - _paper_score(rival, tasks))


def paper_retention(evidence: Evidence, tasks: list[str], run: str) -> str:
    """The paper's share of the dense score."""
    return statistics.percent(statistics.retention(_paper_score(run, tasks), _paper_score("dense", tasks)))


_PAPER = (paper_points, paper_retention)
NUMBERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(points, above, heldout, score, retention, retention_interval, time, best_trial, above_constant),
        *(examples, steps, similarity, outside, targets, left),
        *_PAPER,
    )
}


def number(name: str, evidence: Evidence, runs: list[str], task: str | Sequence[str] | None = None) -> str:
    """The number `name` of `runs` on a task, on several, or (None) on all that the runs have.

    Raises:
        UserError: too few or too many runs, a run or a task that the study does not have, or a number that was not
            measured.
    """
    where = f"{called(name, runs, task)} of study {evidence.study}"
    function = NUMBERS[name]
    try:
        inspect.signature(function).bind(evidence, [], *runs)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
    try:
        return function(evidence, tasks_of(name, evidence, runs, task), *runs)
    except LookupError as error:
        raise UserError(f"{where}: {error.args[0]}") from None


def called(name: str, runs: Sequence[str], task: str | Sequence[str] | None = None) -> str:
    """The call of a number as a template has it: `above("nxm", "asp", task='cola')`."""
    words = [f'"{run}"' for run in runs] + ([] if task is None else [f"task={task!r}"])
    return f"{name}({', '.join(words)})"


def tasks_of(name: str, evidence: Evidence, runs: Sequence[str], task: str | Sequence[str] | None = None) -> list[str]:
    """The tasks that the number `name` of `runs` is about. Raises LookupError where a run does not have them."""
    if task == "all" and NUMBERS[name] in _PAPER:
        return list(statistics.TASKS)
    whole = [] if NUMBERS[name] is best_trial else list(runs)  # a trial needs no whole run
    return _tasks(evidence, whole, task)


def _tasks(evidence: Evidence, runs: list[str], task: str | Sequence[str] | None) -> list[str]:
    """The tasks asked for, each of which every run has, in the paper's order."""
    asked = None if task is None else [task] if isinstance(task, str) else list(task)
    known = statistics.tasks_of(evidence.results)
    if asked is not None and (strange := [one for one in asked if one not in known]):
        raise LookupError(f"the study has no task {statistics.listed(strange)}; it has {statistics.listed(known)}")
    tasks = known if asked is None else [one for one in known if one in asked]
    for run in runs:
        own = {one.task for one in statistics.runs_of(evidence.results, run)}
        lacking = [one for one in tasks if one not in own]
        if (asked is None and len(lacking) == len(tasks)) or (asked is not None and lacking):
            on = f" on {statistics.listed(lacking)}" if asked else ""
            raise LookupError(f"no run of {run}{on}; it has {statistics.listed(names_of(evidence, run))}")
        tasks = [one for one in tasks if one in own]
    return tasks


def names_of(evidence: Evidence, like: str) -> list[str]:
    """The runs of a study by name; if `like` is a variant of one of them, that run's variants."""
    own = statistics.methods_of(statistics.whole_runs(evidence.results))
    base, _, variant = like.partition("/")
    variants = [run.full_name for run in evidence.results if run.name == base and run.variant]
    return sorted(set(variants)) if variant and variants else own


def _runs(evidence: Evidence, tasks: list[str], run: str) -> list[Result]:
    return [one for one in statistics.runs_of(evidence.results, run) if one.task in tasks]


def _one(tasks: list[str]) -> str:
    if len(tasks) != 1:
        raise LookupError(f"needs one task: set task= to one of {statistics.listed(tasks)}")
    return tasks[0]


def _same(values: Iterable[int]) -> int:
    own = sorted(set(values))
    if len(own) != 1:
        raise LookupError(f"the runs differ in it: {statistics.listed(own)}")
    return own[0]


def _paper_score(run: str, tasks: list[str]) -> float:
    if run not in paper.SCORES:
        raise LookupError(f"the paper has no {run}; it has {statistics.listed(paper.SCORES)}")
    if set(tasks) == set(statistics.TASKS):
        return paper.PRINTED_AVERAGE[run]
    return _measured(statistics.paper_score(run, tasks))


def _measured(found: Found | None) -> Found:
    if found is None:
        raise LookupError("it was not measured: the results files do not have it")
    return found


def _direction(value: float, interval: str = "") -> str:
    if f"{abs(value):.1f}" == "0.0":
        return f"level{interval}"
    return f"{abs(value):.1f} points{interval} {'above' if value > 0 else 'below'}"
