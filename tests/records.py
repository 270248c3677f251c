"""Results of any training, made from a committed one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from nxm.study.plan import Training
from nxm.study.results import Failure, Result, read_result

ROOT = Path(__file__).parent.parent
VALUES = {"epochs": 5, "learning_rate": 9e-5, "batch_size": 32}


@cache
def _committed(run: str) -> Result:
    return read_result(ROOT / f"results/stsb/{run}/seed0.json")


def record(training: Training, study: str = "embedded", score: float | None = None, **changes: Any) -> Result:
    """Return a result of a training: the embedded study's of the same run, or else of its dense run, with changes.

    Args:
        score: of dev, in percent points.
        changes: values of the result's keys, such as `hyperparameters`.
    """
    known = training.run if (ROOT / f"results/stsb/{training.run}/seed0.json").exists() else "dense"
    values = _committed(known).model_dump(mode="json")
    values |= {"study": study, "task": training.task, "run": training.run, "seed": training.seed}
    values |= {"variant": training.variant, "trial": training.trial}
    if score is not None:
        values["metric"] = values["metric"] | {"value": score}
    return Result.model_validate(values | changes)


def failure(training: Training, study: str = "embedded", **changes: Any) -> Failure:
    """Return the record of a variant or trial that could not be trained."""
    values = {"study": study, "task": training.task, "run": training.run, "seed": training.seed}
    values |= {"variant": training.variant, "trial": training.trial, "hyperparameters": VALUES, "wall_seconds": 90.0}
    return Failure.model_validate(values | {"failure": "the loss became nan at step 3"} | changes)
