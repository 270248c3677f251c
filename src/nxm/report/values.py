"""Single numbers for sentences that a person writes, such as README.md's: made from results files like its tables.

    points STUDY METHOD RIVAL [TASK]      1.8 [0.9, 2.8]: how many points above, with its interval
    above STUDY METHOD RIVAL [TASK]       1.8 points [0.9, 2.8] above (or below, or level, as it comes out)
    heldout STUDY METHOD RIVAL [TASK]     0.8 above (or below): the difference on the training rows held out
    score STUDY METHOD [TASK]             82.4
    kept STUDY METHOD [WHOLE] [TASK]      101.0 %, of the dense score or of another method's
    kept_interval STUDY METHOD [WHOLE] [TASK]   95.8 to 104.5 %
    time STUDY METHOD [TASK]              1.70: training time as a multiple of the dense model's

A variant of an ablation is METHOD/VARIANT. Without TASK: the one that all methods named have, or
the geometric mean over those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from nxm.errors import UserError
from nxm.report import Evidence, facts

Found = TypeVar("Found")


def points(evidence: Evidence, tasks: list[str], method: str, rival: str) -> str:
    """A difference and its interval, without a direction."""
    return _measured(facts.difference(evidence, method, rival, tasks)).text(".1f")


def above(evidence: Evidence, tasks: list[str], method: str, rival: str) -> str:
    """A difference and its interval in words that are true whichever is ahead."""
    found = _measured(facts.difference(evidence, method, rival, tasks))
    if found.low is None or found.high is None:
        return _direction(found.value, f"{abs(found.value):.1f} points")
    low, high = (found.low, found.high) if found.value >= 0 else (-found.high, -found.low)
    return _direction(
        found.value, f"{abs(found.value):.1f} points [{low:.1f}, {high:.1f}]", f" [{low:.1f}, {high:.1f}]"
    )


def heldout(evidence: Evidence, tasks: list[str], method: str, rival: str) -> str:
    """A difference on the training rows held out."""
    value = _measured(facts.heldout_difference(evidence, method, rival, tasks))
    return _direction(value, f"{abs(value):.1f}")


def score(evidence: Evidence, tasks: list[str], method: str) -> str:
    """A score x 100, the mean over seeds."""
    return f"{_measured(facts.method_score(evidence.results, method, tasks)).mean:.1f}"


def kept(evidence: Evidence, tasks: list[str], method: str, whole: str = "dense") -> str:
    """The share of another method's score that is kept."""
    return facts.percent(_measured(facts.kept(evidence, method, whole, tasks)).value)


def kept_interval(evidence: Evidence, tasks: list[str], method: str, whole: str = "dense") -> str:
    """The interval of the share that is kept."""
    found = _measured(facts.kept(evidence, method, whole, tasks))
    return f"{_measured(found.low):.1f} to {_measured(found.high):.1f} %"


def time(evidence: Evidence, tasks: list[str], method: str) -> str:
    """Training time beside the dense model's, means over tasks and seeds."""
    own, dense = (
        [run.train_seconds for run in facts.runs_of(evidence.results, name) if run.task in tasks]
        for name in (method, "dense")
    )
    if not dense:
        raise LookupError("the study has no run of dense")
    return f"{sum(own) / len(own) / (sum(dense) / len(dense)):.2f}"


VALUES: dict[str, Callable[..., str]] = {
    "points": points,
    "above": above,
    "heldout": heldout,
    "score": score,
    "kept": kept,
    "kept_interval": kept_interval,
    "time": time,
}


def value(what: str, evidence: Evidence, names: list[str]) -> str:
    """The value `what` of the methods in `names`, the last of which may be a task.

    Raises:
        UserError: an unknown kind of value, methods that have not run (on that task), or too few or too many names.
    """
    where = f"value '{' '.join([what, evidence.study, *names])}'"
    if what not in VALUES:
        raise UserError(f"{where}: '{what}' is none of {', '.join(VALUES)}")
    task = names[-1] if names and names[-1] in facts.TASKS else None
    methods = names[:-1] if task else names
    tasks = [task] if task else facts.tasks_of(evidence.results)
    for method in methods:
        own = {run.task for run in facts.runs_of(evidence.results, method)}
        tasks = [task for task in tasks if task in own]
        if not tasks:
            raise UserError(f"{where}: study {evidence.study} has no run of {method}" + (f" on {task}" if task else ""))
    try:
        inspect.signature(VALUES[what]).bind(evidence, tasks, *methods)
    except TypeError as error:
        raise UserError(f"{where}: {error}; python -m pydoc nxm.report.values says what each takes") from None
    try:
        return VALUES[what](evidence, tasks, *methods)
    except LookupError as error:
        raise UserError(f"{where}: {error}") from None


def _measured(found: Found | None) -> Found:
    if found is None:
        raise LookupError("the results files do not have it")
    return found


def _direction(value: float, size: str, when_level: str = "") -> str:
    if f"{abs(value):.1f}" == "0.0":
        return f"level{when_level}"
    return f"{size} {'above' if value > 0 else 'below'}"
