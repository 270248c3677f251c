"""How long a study takes: what its trainings have to do, by the speed of those that are done."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from nxm.glue import TASKS
from nxm.results import Result
from nxm.settings import Study

# dvc.yaml's stage -> the block of params.yaml with its epochs, and its cost beside plain training of the dense model:
# a student has half the layers; a teacher's forward pass is a third of the dense model's training step.
_TRAININGS = {
    "baseline": ("dense", 1.0),
    "asp": ("asp", 1.0),
    "admm_unstructured": ("admm_unstructured", 1.0),
    "nxm": ("nxm", 1.0),
    "nxm_rho": ("nxm", 1.0),
    "nxm_paper": ("nxm", 1.0),
    "tune": ("nxm", 1.0),
    "distil": ("distil", 0.5 + 1 / 3),
    "distil_nxm": ("distil_nxm", 0.5),
}
_TASK_OF_METHOD = {"distil_nxm_kd": 0.5 + 1 / 3}


def estimate_seconds(study: Study, stages: Sequence[str], timed: Sequence[Result]) -> float | None:
    """Seconds that the trainings among `stages` (DVC's names) will take; None when nothing comparable was timed.

    Other stages take seconds and are not counted.
    """
    work = [units for units in (_units(study, stage) for stage in stages) if units]
    rate = _seconds_per_unit(study, timed)
    if rate is None:
        return None if work else 0.0
    return rate * sum(work)


def say_progress(study: Study, timed: Sequence[Result]) -> str | None:
    """A line for the start of a stage: which of how many, and about how long the rest takes.

    None outside `nxm.launch` (plain `dvc repro` does not say how many stages it will run).
    """
    planned = os.environ.get("NXM_PLAN", "").splitlines()
    current = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if current not in planned:
        return None
    place = planned.index(current)
    line = f"stage {place + 1} of {len(planned)}: {current}"
    seconds = estimate_seconds(study, planned[place:], timed)
    return line + (f"; about {say_duration(seconds)} left in all" if seconds else "")


def say_duration(seconds: float) -> str:
    """`95 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _units(study: Study, stage: str) -> float | None:
    """Epochs x examples x cost, an evaluated example counting as a third; None for stages that train nothing."""
    kind, _, cell = stage.partition("@")
    if kind not in _TRAININGS:
        return None
    block, cost = _TRAININGS[kind]
    task = next(name for name in study.tasks if re.match(rf"{name}(-|$)", cell))
    cost = next((cost for method, cost in _TASK_OF_METHOD.items() if cell.endswith(method)), cost)
    epochs = getattr(study, block)[task].epochs
    return cost * _examples(study, task, epochs, -(-epochs // study.trainer.evaluate_every))


def _examples(study: Study, task: str, epochs: int, evaluations: int) -> float:
    rows = TASKS[task].rows
    train = study.prepare.train_examples or rows["train"]
    return epochs * train + evaluations * sum(n for split, n in rows.items() if split != "train") / 3


def _seconds_per_unit(study: Study, timed: Sequence[Result]) -> float | None:
    full = [result for result in timed if result.model.layers == max(r.model.layers for r in timed)]
    units = sum(
        _examples(study, result.task, len(result.epochs), sum(epoch.metric is not None for epoch in result.epochs))
        for result in full
        if result.task in study.tasks
    )
    return sum(result.wall_seconds for result in full if result.task in study.tasks) / units if units else None
