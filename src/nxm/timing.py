"""How long a study takes: what its trainings have to do, by the speed of those that are done."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from nxm.glue import TASKS
from nxm.job import JOBS
from nxm.results import Result, read_study, result_path
from nxm.settings import PlusMethod, Study
from nxm.study import planned_training

# Environment variables by which nxm.launch tells its stages what runs, and since when.
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

    Other stages are not counted: most take seconds, those that measure times some minutes. With several `jobs` the
    runs timed are taken to have run so too.
    """
    work = sum(stage_units(study, stage) for stage in stages)
    if not work:
        return 0.0
    units = sum(_result_units(result) for result in timed)
    return sum(result.wall_seconds for result in timed) / units * work / jobs if units else None


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

    Judged by what this launch has done so far, else by earlier runs. None outside `nxm.launch`: plain `dvc repro` does
    not say how much it will do. (DVC chooses the order anew each time, so the place in the plan says nothing.)
    """
    planned = [stage for stage in os.environ.get(PLAN, "").splitlines() if stage_units(study, stage)]
    current = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if current not in planned:
        return None
    started = float(os.environ[STARTED])
    done = [result for result in timed if _written(result) >= started]
    line = f"training {len(done) + 1} of {len(planned)}: {current}"
    work = sum(stage_units(study, stage) for stage in planned)
    finished = sum(_result_units(result) for result in done)
    if finished:
        left: float | None = (time.time() - started) / finished * (work - finished)
    else:
        left = estimate_seconds(study, planned, timed or timed_runs(Path(), study), int(os.environ[JOBS]))
    return line + (f"; about {say_duration(left)} left in all" if left else "")


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
