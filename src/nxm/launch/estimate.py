"""Estimates of a study's time, from the work of its trainings and the speed of those that are done."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nxm.data.tasks import TASKS
from nxm.durations import say_duration
from nxm.environment import JOBS, PLAN, STARTED
from nxm.errors import UserError
from nxm.sets import DENSE
from nxm.study.plan import Training, composed, trainings
from nxm.study.results import Result, place_of, read_study, result_path
from nxm.study.settings import Allocate, Study

# Cost of an example in units of the dense model's: a student has half the layers; a teacher only has a forward pass
_STUDENT, _TEACHER = 0.5, 1 / 3
_MATRICES = 36  # of a model of six layers, before a result says how many there are


def estimate_seconds(study: Study, stages: Sequence[str], timed: Sequence[Result], jobs: int) -> float | None:
    """Return the seconds that the trainings among `stages` (DVC's names) take; None without a timed run.

    A task's speed is that of its own runs, since sentences differ in length between tasks, or else that of all runs.
    Other stages are not counted: most take seconds, measurements a few minutes. With several `jobs`, the timed runs are
    assumed to have run side by side too.
    """
    work: dict[str, float] = defaultdict(float)
    known, units = planned(study), _units(study.model_dump_json())
    for stage in stages:
        if stage in known:
            work[known[stage].task] += units[stage]
    if not work:
        return 0.0
    if not timed:
        return None
    return sum(_seconds_per_unit(study, timed, task) * units for task, units in work.items()) / jobs


@functools.lru_cache(maxsize=4)
def _planned(text: str) -> dict[str, Training]:
    return {training.dvc_name: training for training in trainings(Study.model_validate_json(text))}


def planned(study: Study) -> dict[str, Training]:
    """Return the trainings of a study by the names of their stages."""
    return _planned(study.model_dump_json())


def _seconds_per_unit(study: Study, timed: Sequence[Result], task: str) -> float:
    runs = [result for result in timed if result.task == task] or timed
    return sum(result.wall_seconds for result in runs) / sum(_result_units(study, result) for result in runs)


def timed_runs(study: Study) -> list[Result]:
    """Return timed runs of a study, or else those of other studies with the same weights."""
    own = read_study(Path.cwd())
    if own:
        return own
    root = Path(study.root)
    found: list[Result] = []
    for folder in (root, *sorted(path.parent for path in root.glob("studies/*/study.yaml"))):
        with suppress(UserError):  # a damaged file of another study: its own commands say so
            found += read_study(folder)
    return [result for result in found if result.provenance.weights.partition(" ")[0] == study.weights.name]


def say_progress(study: Study, timed: Sequence[Result]) -> str | None:
    """Return a line for the start of a training: its number, the number of all, and about how long the rest takes.

    The speed is that of the trainings of this launch, or else of earlier ones. None outside `nxm repro`, since plain
    `dvc repro` does not announce its stages. The order may change, so trainings are numbered as they start.
    """
    plan = [stage for stage in os.environ.get(PLAN, "").splitlines() if stage in planned(study)]
    current = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if current not in plan:
        return None
    done = [result for result in timed if _written(result) >= float(os.environ[STARTED])]
    line = f"training {len(done) + 1} of {len(plan)}: {current}"
    runs = done or timed or timed_runs(study)
    whole = estimate_seconds(study, plan, runs, int(os.environ[JOBS]))
    if whole is None:
        return line
    finished = sum(_seconds_per_unit(study, runs, result.task) * _result_units(study, result) for result in done)
    left = max(0.0, whole - finished / int(os.environ[JOBS]))
    return line + f"; about {say_duration(left)} left in all"


def stage_units(study: Study, stage: str) -> float:
    """Return examples x cost of a training stage, evaluated ones counting a third; 0 for stages that train nothing."""
    return _units(study.model_dump_json()).get(stage, 0.0)


@functools.lru_cache(maxsize=4)
def _units(text: str) -> dict[str, float]:
    study = Study.model_validate_json(text)
    return {stage: _training_units(study, training) for stage, training in _planned(text).items()}


def _training_units(study: Study, training: Training) -> float:
    run = composed(study, training)
    rows = TASKS[training.task].rows
    heldout = study.prepare.heldout_examples
    train = min(study.prepare.most_examples(training.task) or rows["train"], rows["train"] - heldout)
    dev = sum(count for split, count in rows.items() if split != "train")
    evaluated = -(-run.epochs // study.trainer.evaluate_every) * dev + heldout
    if isinstance(run.set, Allocate):
        evaluated += _measured(run.set.choices, run.set.examples, _MATRICES)
    return _cost(study, training.run, run.teacher) * (run.epochs * train + evaluated / 3)


def _measured(choices: Sequence[str], examples: int, matrices: int) -> int:
    """Return the examples that the loss is measured on to choose a set for each matrix."""
    return examples * matrices * sum(choice != DENSE for choice in choices)


def _cost(study: Study, name: str, teacher: object) -> float:
    size, start = 1.0, study.runs.get(name, {}).get("start")
    if start == "student" or study.runs.get(str(start), {}).get("start") == "student":
        size = _STUDENT
    if study.runs.get(str(start), {}).get("method") == "structured":
        size *= study.runs[str(start)]["budget"]
    return size + (_TEACHER if teacher else 0.0)


def _result_units(study: Study, result: Result) -> float:
    evaluations = sum(epoch.metric is not None for epoch in result.epochs)
    data = result.provenance
    evaluated = evaluations * data.dev_examples + data.heldout_examples
    if (found := result.allocation) is not None:
        evaluated += _measured(found.choices, found.examples, len(found.matrices))
    cost = _cost(study, result.name, result.hyperparameters.get("distillation"))
    return cost * (len(result.epochs) * data.train_examples + evaluated / 3)


def _written(result: Result) -> float:
    path = result_path("", place_of(result))
    return path.stat().st_mtime if path.exists() else 0.0
