"""The search over hyper-parameters: the choice of a run's best trial on a task.

A trial is a training with its own values, and a stage: one that is done does not run again, and a value added to the
search adds its trials. The stage `select` writes the best trial's values into results/chosen, on which the run and its
variants depend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nxm.study.plan import Training, composed, trials
from nxm.study.results import Failure, Place, Result
from nxm.study.settings import Study


@dataclass(frozen=True)
class Choice:
    """The trial that is best for a run on a task, and the values that were searched."""

    trial: str
    values: Mapping[str, Any]


def choose(
    study: Study, task: str, run: str, results: Iterable[Result], failures: Iterable[Failure], by: str
) -> Choice | None:
    """Return the best trial of a run on a task; None while a trial is not done, and if every trial failed.

    The best has the highest mean score over the seeds of the search; among equals it is the first in the search's
    order. A trial that failed with any seed is not chosen.

    Args:
        by: the score that counts: "dev" or "heldout".
    """
    planned = {training: training for training in trials(study) if (training.task, training.run) == (task, run)}
    scores = {
        training: score.value
        for result in results
        if (training := _planned(study, planned, result)) is not None
        and (score := result.metric if by == "dev" else result.heldout) is not None
    }
    failed = {training for failure in failures if (training := _planned(study, planned, failure)) is not None}
    if not planned or not planned.keys() <= scores.keys() | failed:
        return None
    means: dict[str, float] = {}
    for trial in dict.fromkeys(str(training.trial) for training in planned):
        own = [training for training in planned if training.trial == trial]
        if not failed.intersection(own):
            means[trial] = sum(scores[training] for training in own) / len(own)
    if not means:
        return None
    best = max(means, key=lambda trial: means[trial])  # the first one among equals
    return Choice(best, next(training.changes for training in planned if training.trial == best))


def _planned(study: Study, planned: Mapping[Training, Training], record: Place) -> Training | None:
    """Return the trial of a record; None if the record was made with other values than the trial has now."""
    training = planned.get(Training(record.task, record.name, record.seed, trial=record.trial))
    if training is None:
        return None
    now = composed(study, training).model_dump(mode="json")
    values = record.hyperparameters  # type: ignore[attr-defined]
    return training if all(now[name] == value for name, value in values.items() if name in now) else None
