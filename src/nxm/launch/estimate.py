"""How long a study takes: what its trainings have to do, by the speed of those that are done."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from nxm.data.tasks import TASKS
from nxm.machine import JOBS
from nxm.study.profiles import planned_training
from nxm.study.results import Result, read_study, result_path
from nxm.study.settings import PlusMethod, Study

# Environment variables by which nxm.launch.schedule tells its stages what runs, and since when.
PLAN, STARTED = "NXM_PLAN", "NXM_STARTED"

# Cost of an example beside the dense model's: a student has half the layers, a teacher's answer is a third of a step.
_STUDENT, _TEACHER = 0.5, 1 / 3
_COSTS = {
    "distil": _STUDENT + _TEACHER,
    "distil_nxm": _STUDENT,
    "distil_nxm_kd": _STUDENT + _TEACHER,
    "distil_nxm_plus": _STUDENT + _TEACHER,
    **dict.fromkeys(get_args(PlusMethod), 1 + _TEACHER),
}


def estimate_seconds(study: Study, stages: Sequence[str], timed: Sequence[Result], jobs: int) -> float | None:
    """Seconds that the trainings among `stages` (DVC's names) will take; None when no run was timed yet.

    Each task goes by the speed of its own runs, since its sentences have their own length; one without any by that of
    all. Other stages are not counted: most take seconds, those that measure times some minutes. With several `jobs` the
    runs timed are taken to have run so too.
    """
    work: dict[str, float] = defaultdict(float)
    for stage in stages:
        if planned := planned_training(study, stage):
            work[planned.task] += stage_units(study, stage)
    if not work:
        return 0.0
    if not timed:
        return None
    return sum(_seconds_per_unit(timed, task) * units for task, units in work.items()) / jobs


def _seconds_per_unit(timed: Sequence[Result], task: str) -> float:
    runs = [result for result in timed if result.task == task] or timed
    return sum(result.wall_seconds for result in runs) / sum(_result_units(result) for result in runs)


def timed_runs(root: Path, study: Study) -> list[Result]:
    """The runs to judge a study's time by: its own, or, where it has none, other studies' of the same weights."""
    own = read_study(root / "results", study.study)
    if own:
        return own
    others = [path.name for path in sorted((root / "results").glob("*/"))]
    found = [result for name in others for result in read_study(root / "results", name)]
    return [result for result in found if result.provenance.weights.partition(" ")[0] == study.weights.name]


def say_progress(study: Study, timed: Sequence[Result]) -> str | None:
    """A line for the start of a training: which of how many, and about how long all the rest takes.

    Judged by the speed of what this launch has trained so far, else of earlier runs. None outside
    `nxm.launch.schedule`: plain
    `dvc repro` does not say how much it will do. (DVC chooses the order anew each time, so the place in the plan says
    nothing.)
    """
    planned = [stage for stage in os.environ.get(PLAN, "").splitlines() if stage_units(study, stage)]
    current = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if current not in planned:
        return None
    done = [result for result in timed if _written(result) >= float(os.environ[STARTED])]
    line = f"training {len(done) + 1} of {len(planned)}: {current}"
    runs = done or timed or timed_runs(Path(), study)
    whole = estimate_seconds(study, planned, runs, int(os.environ[JOBS]))
    if whole is None:
        return line
    finished = sum(_seconds_per_unit(runs, result.task) * _result_units(result) for result in done)
    left = max(0.0, whole - finished / int(os.environ[JOBS]))
    return line + f"; about {say_duration(left)} left in all"


def say_duration(seconds: float) -> str:
    """`95 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def stage_units(study: Study, stage: str) -> float:
    """Examples x cost of a training stage, evaluated ones counting a third; 0 for stages that train nothing."""
    planned = planned_training(study, stage)
    if planned is None:
        return 0.0
    rows = TASKS[planned.task].rows
    heldout = study.prepare.heldout_examples
    train = min(study.prepare.most_examples(planned.task) or rows["train"], rows["train"] - heldout)
    dev = sum(count for split, count in rows.items() if split != "train")
    evaluated = -(-planned.epochs // study.trainer.evaluate_every) * dev + heldout
    return _COSTS.get(planned.method, 1.0) * (planned.epochs * train + evaluated / 3)


def _result_units(result: Result) -> float:
    evaluations = sum(epoch.metric is not None for epoch in result.epochs)
    data = result.provenance
    evaluated = evaluations * data.dev_examples + data.heldout_examples
    return _COSTS.get(result.method, 1.0) * (len(result.epochs) * data.train_examples + evaluated / 3)


def _written(result: Result) -> float:
    path = result_path("", result.study, result.task, result.method, result.seed, result.cell)
    return path.stat().st_mtime if path.exists() else 0.0
