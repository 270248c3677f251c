"""The Trainer callback that every method builds on: targets, importance, checkpoints, evaluation, the saved config."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm.errors import UserError
from nxm.methods.evaluation import ProjectedInEval
from nxm.methods.importance import Importance, make_importance
from nxm.methods.state import checkpoint, read_state, saved_checkpoint, write_state
from nxm.models.activations import forget_ranges, release_inputs
from nxm.models.targets import find_targets, left_dense, owner_of_config, unwrap, validate_targets
from nxm.sets import kind_of
from nxm.sets.allocation import Allocation, sets_by_name
from nxm.sets.base import ConstraintSet, SparseSet, reject_nan
from nxm.sets.saved import restore_renamed, write_patterns

STATE_FILE = "nxm_state.safetensors"


class MethodCallback(TrainerCallback):
    """Base of all methods: eval mode, fp16's skipped steps and checkpoints in a Trainer; use a subclass.

    In eval mode the model is the one that the training would end with now (`nxm.methods.evaluation`).
    """

    _in_eval: ProjectedInEval | None = None  # while a training runs
    _scale: float | None = None  # of the gradients before the step, in fp16
    _taken_by: str | None = None  # the class of an optimizer that stepped on the parameters outside the Trainer's step

    # Each method defines these. In all of them the parameters have their training values.

    def start(self, model: nn.Module, steps: int, steps_per_epoch: int | None) -> dict[str, nn.Parameter]:
        """Prepare a training of `steps` optimizer steps of a model with its initial weights.

        Args:
            steps_per_epoch: None for data without a length.

        Returns: full name -> parameter, of those that `projected` knows.
        """
        raise NotImplementedError

    def projected(self, name: str, W: Tensor) -> Tensor | None:
        """Return what W would be if the training ended now, a new tensor; None if it would stay as it is."""
        raise NotImplementedError

    def training_value(self, name: str) -> Tensor | None:
        """Return what a checkpoint has in a parameter's place; None: the parameter, as it is in train mode."""
        return None

    def before_step(self, step: int) -> None:
        """Called before the forward pass of the step after `step` others, and for each part of its gradient again."""

    def before_update(self, step: int, optimizer: Any) -> None:
        """Called with the gradients complete and clipped, before the optimizer's step."""

    def after_update(self, step: int, skipped: bool) -> None:
        """Called after the optimizer's step, which fp16 has skipped if the gradients overflowed."""

    def after_step(self, step: int, optimizer: Any) -> None:
        """Called at the end of a step; `step` counts it."""

    def watch(self, model: nn.Module) -> None:
        """Register what observes the model, before the first step."""

    def unwatch(self) -> None:
        """Remove what `watch` registered; may be called more than once, and without it."""

    def abandon(self) -> None:
        """Undo what the method does to the weights for a forward pass: the training ended, or an exception ended it.

        Weights that were loaded since then count.
        """

    def whole_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what must survive a restart: tensors, and JSON metadata. Called in every process."""
        raise NotImplementedError

    def load_whole_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restore a `whole_state`; called after `start` and `watch`."""
        raise NotImplementedError

    def load_best(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Take from a `whole_state` what `finish` needs: the weights are those of that checkpoint."""
        raise NotImplementedError

    def finish(self, model: nn.Module) -> None:
        """Leave the weights as they are to be saved, at the end of the training."""
        raise NotImplementedError

    def to_save(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return what to save of a model after `finish`: itself, or a smaller one of the same function."""
        return model

    def record(self) -> dict[str, Any] | None:
        """Return the course of the last training for a results file, as JSON; None for a method without one."""
        return None

    # The Trainer calls these.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._leave()
        model = unwrap(model)
        _refuse_what_cannot_work(args, kwargs.get("optimizer"))
        if state.global_step > 0:
            restore_renamed(model, checkpoint(args, state))
        try:
            parameters = self.start(model, state.max_steps, _steps_per_epoch(args, kwargs.get("train_dataloader")))
            # once nothing refuses the training any more
            release_inputs(model, but=state)
            forget_ranges(getattr(model, "config", None))
            self._in_eval = ProjectedInEval(
                model,
                parameters,
                torch.no_grad()(self.projected),
                self.training_value,
                training=state,
                on_taken=self._taken,
            )
            self.watch(model)
            if state.global_step > 0:
                with self._training_weights():
                    self.load_whole_state(*read_state(checkpoint(args, state) / STATE_FILE))
        except BaseException:
            self._leave()
            raise

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._taken_by is not None:
            raise UserError(
                f"an optimizer of class {self._taken_by} changed the weights outside the Trainer's optimizer step, as "
                "layer-wise optimizers do; the method cannot follow: use one optimizer, which the Trainer steps"
            )
        with self._training_weights():
            self.before_step(state.global_step)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._in_eval is not None:
            self._in_eval.begin_update()
        self._scale = _gradient_scale(optimizer)
        self.before_update(state.global_step, optimizer)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._in_eval is not None:
            self._in_eval.end_update()
        # A fused optimizer skips inside its kernel, unseen by accelerate's `step_was_skipped`; but the scale shrinks.
        skipped = self._scale is not None and _gradient_scale(optimizer) < self._scale
        with self._training_weights():
            self.after_update(state.global_step, skipped)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        with self._training_weights():
            self.after_step(state.global_step, optimizer)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        tensors, metadata = self.whole_state()
        if args.should_save:
            write_state(saved_checkpoint(args, state) / STATE_FILE, tensors, metadata)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._leave()
        best = state.best_model_checkpoint
        # Then the weights are that checkpoint's; unless it is gone, which the Trainer warns of.
        if args.load_best_model_at_end and best is not None and Path(best).is_dir():
            restore_renamed(unwrap(model), Path(best))
            self.load_best(*read_state(Path(best) / STATE_FILE))
        self.finish(unwrap(model))

    def _taken(self, by: str) -> None:
        """Leave a model that an optimizer of class `by` changed: it is in other hands."""
        self._leave()
        self._taken_by = by

    def _leave(self) -> None:
        """Leave the model with its training weights, and nothing attached."""
        self.unwatch()
        if self._in_eval is not None:
            self._in_eval.detach()
            self.abandon()
        self._in_eval = self._taken_by = None

    def _training_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._in_eval is None else self._in_eval.training_weights()


class SparsityCallback(MethodCallback):
    """Base of the methods that train into a constraint set; use a subclass.

    It finds the targets, lets the importance watch until the choice is final, and at the end asserts that the weights
    lie in the constraint set and writes it into the model's config. In eval mode the model is the projected one.

    Args:
        constraint: the set S in which the target weights end, or an `Allocation` with each matrix's own.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: the measure of the projection, by name (`nxm.methods.ImportanceName`) or an object.

    Attributes:
        targets: name -> weight, from the begin of a training on; without those that an allocation leaves dense.
        sets: name -> set of each target, from then on.
        importance: the `Importance`, or None for "none".
        weighted_choices: name -> the last choice that the importance made, which is known at the projections alone; the
            projection in eval mode takes it. Empty before there is one, and without an importance.

    Raises:
        UserError: the constraint is no set, the method needs a mask and a set is not a `SparseSet`, or the importance
            is unknown. When a training begins: the allocation is of other matrices, or is not that of the checkpoint.
    """

    needs_mask: ClassVar[bool] = False  # whether the method works with a SparseSet only

    def __init__(
        self,
        constraint: ConstraintSet | Allocation,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        importance: Importance | str = "none",
    ) -> None:
        if not isinstance(constraint, ConstraintSet | Allocation):
            raise UserError(f"{constraint!r} is not a constraint set; give one such as NM(2, 4), or parse_set('2:4')")
        self.constraint = constraint
        for own in self.distinct_sets:
            if self.needs_mask and not isinstance(own, SparseSet):
                raise UserError(f"{type(self).__name__} needs a set of zero patterns (a mask), which {own} is not")
        self.include = include
        self.exclude = exclude
        self.importance = make_importance(importance)
        self.targets: dict[str, nn.Parameter] = {}
        self.sets: Mapping[str, ConstraintSet] = {}
        self.weighted_choices: dict[str, Tensor] = {}

    # Each method defines these.

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        """Prepare a training of `steps` optimizer steps; `targets` hold the initial weights.

        steps_per_epoch: None for data without a length.
        """
        raise NotImplementedError

    @property
    def choice_is_final(self) -> bool:
        """True once the choice is fixed for the rest of the training, so that the weights lie in the constraint set."""
        raise NotImplementedError

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the method's state for checkpoints: tensors, and JSON metadata. Called in every process."""
        raise NotImplementedError

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (the tensors may hold others as well); called after `begin`."""
        raise NotImplementedError

    def weighted_choices_in(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
        """Return `weighted_choices` as of a `state_dict`; {} for a method without an importance."""
        return {}

    # Methods may call these.

    @property
    def distinct_sets(self) -> list[ConstraintSet]:
        """The one set, or the different sets of the allocation, in the order of its matrices."""
        own = [self.constraint] if isinstance(self.constraint, ConstraintSet) else self.constraint.sparse.values()
        return list(dict.fromkeys(own))

    def measure_importance(self, optimizer: Any) -> dict[str, Tensor] | None:
        """Return name -> cost v of each target (`Importance.measure`); None: there is no importance, or no data yet.

        A target of which nothing is known is left out, and a warning names it.
        """
        measured = None if self.importance is None else self.importance.measure(self.targets, optimizer)
        if measured is not None and len(measured) < len(self.targets):
            unknown = [name for name in self.targets if name not in measured]
            warnings.warn(
                f"{len(unknown)} of {len(self.targets)} matrices took no part in training so far, first {unknown[0]}: "
                "their weights are chosen by magnitude",
                stacklevel=2,
            )
        return measured

    def hard_choice(self, name: str, W: Tensor) -> Tensor:
        """Return the choice of the hard prune: the last one made by the importance, else that of W's own projection."""
        return self.weighted_choices[name] if self.weighted_choices else self.sets[name].project(W).choice

    # The base class calls these.

    def start(self, model: nn.Module, steps: int, steps_per_epoch: int | None) -> dict[str, nn.Parameter]:
        for own in self.distinct_sets:
            kind_of(own)  # what config.json cannot name is refused now, not after hours of training
        if getattr(model, "config", None) is None:
            warnings.warn(
                f"{type(model).__name__} has no config: its weights will lie in {self.constraint}, but no config.json "
                "will say so",
                stacklevel=2,
            )
        self.targets = self._find_targets(model)
        self.sets = sets_by_name(
            self.constraint if isinstance(self.constraint, ConstraintSet) else self.constraint.sparse, self.targets
        )
        validate_targets(self.targets, self.sets)
        if dense := left_dense(model):
            warnings.warn(
                f"{len(dense)} matrices of {type(model).__name__} stay dense, since they are in no Linear layer of its "
                f"blocks: {', '.join(list(dense)[:3])}{', ...' if len(dense) > 3 else ''}",
                stacklevel=2,
            )
        self.weighted_choices = {}
        self.begin(steps, steps_per_epoch)
        return self.targets

    def projected(self, name: str, W: Tensor) -> Tensor | None:
        if self.sets[name].contains(W):
            return None
        if not self.weighted_choices:
            return self.sets[name].project(W).Z
        reject_nan(W)
        Z = W.detach().clone()
        self.sets[name].hold_(Z, self.weighted_choices[name])
        return Z

    def watch(self, model: nn.Module) -> None:
        if self.importance is not None:
            self.importance.begin(model, self.include, (*self.exclude, *self._dense_patterns))

    def unwatch(self) -> None:
        if self.importance is not None:
            self.importance.end()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.choice_is_final:
            self.unwatch()  # nothing is chosen any more, and the measuring costs time
        super().on_step_begin(args, state, control, **kwargs)

    def whole_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, metadata = self.state_dict()
        tensors = tensors | (self.importance.state_dict() if self.importance is not None else {})
        return tensors, metadata | {"sets": self._texts}

    def load_whole_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self._refuse_other_sets(metadata.get("sets"))
        self.load_state_dict(tensors, metadata)
        if self.importance is not None:
            self.importance.load_state_dict(tensors)

    def load_best(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.weighted_choices = self.weighted_choices_in(tensors, metadata)

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        for W in self.targets.values():
            reject_nan(W)
        for name, W in self.targets.items():  # also weights that the Trainer loaded back from a checkpoint
            projected = self.projected(name, W)
            if projected is not None:
                W.copy_(projected)
        broken = [name for name, W in self.targets.items() if not self.sets[name].contains(W)]
        if broken:
            raise AssertionError(
                f"{len(broken)} matrices left {self.constraint}, first {broken[0]}: please report this"
            )
        if getattr(model, "config", None) is not None:
            prefix, owner = owner_of_config(model)
            sets = {name.removeprefix(prefix): own for name, own in self.sets.items() if name.startswith(prefix)}
            claims = [
                (each, [name for name, own in sets.items() if own == each]) for each in dict.fromkeys(sets.values())
            ]
            if sets:  # else the config is that of a part without targets
                write_patterns(model.config, claims, dict(owner.named_parameters()))

    def _find_targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the targets that have a set. Raises UserError for an allocation of other matrices."""
        if isinstance(self.constraint, Allocation):
            self.constraint.refuse_other_targets(find_targets(model, self.include, self.exclude))
        return find_targets(model, self.include, (*self.exclude, *self._dense_patterns))

    @property
    def _dense_patterns(self) -> tuple[str, ...]:
        """Regular expressions, as in `exclude`, for the matrices that the allocation leaves dense."""
        dense = self.constraint.dense if isinstance(self.constraint, Allocation) else ()
        return tuple(f"^{re.escape(name)}$" for name in dense)

    @property
    def _texts(self) -> str | dict[str, str]:
        """The set as text, or name -> text of an allocation's sets, for checkpoints."""
        if isinstance(self.constraint, ConstraintSet):
            return str(self.constraint)
        return {name: str(own) for name, own in self.sets.items()}

    def _refuse_other_sets(self, former: str | dict[str, str] | None) -> None:
        """Raise UserError unless a checkpoint was saved with these sets; None: it is older and does not say."""
        if former is None or former == self._texts:
            return
        before, now = (
            dict.fromkeys(self.targets, texts) if isinstance(texts, str) else texts for texts in (former, self._texts)
        )
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"this checkpoint was saved with other sets: {len(differing)} matrices differ, first {name}, which was "
                f"{before.get(name, 'dense')} and is {now.get(name, 'dense')} now: resume with the same sets, or begin "
                "a new training"
            )


def steps_in(interval: str | int, steps_per_epoch: int | None) -> int:
    """Return the optimizer steps of an interval, "epoch" or a number of steps.

    Raises:
        UserError: it is an epoch, and the data has no length.
    """
    if interval != "epoch":
        return int(interval)
    if steps_per_epoch is None:
        raise UserError("interval 'epoch' needs data with a length, which this has not: give a number of steps")
    return steps_per_epoch


def _refuse_what_cannot_work(args: TrainingArguments, optimizer: Any) -> None:
    """Raise UserError for a training in which the saved weights could not be right."""
    if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError("the weights are sharded over processes; a projection needs whole rows: use DDP instead")
    if args.enable_jit_checkpoint:
        raise UserError(
            "enable_jit_checkpoint saves in the middle of a step, without the method's state, so that it could not be "
            "resumed: set save_steps instead"
        )
    inner = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's wrapper
    if callable(getattr(inner, "eval", None)):
        raise UserError(
            f"{type(inner).__name__} keeps other weights for evaluation than for training, as schedule-free optimizers "
            "do; what it swaps in would not lie in the constraint set: use another, such as optim='adamw_torch'"
        )


def _steps_per_epoch(args: TrainingArguments, loader: Any) -> int | None:
    """Return the optimizer steps of an epoch as the Trainer counts them; None for data without a length."""
    try:
        batches = len(loader)
    except TypeError:
        return None
    return max(1, -(-batches // args.gradient_accumulation_steps))


def _gradient_scale(optimizer: Any) -> float | None:
    """Return the factor of fp16's gradients, which shrinks when a step is skipped; None without fp16."""
    scaler = getattr(optimizer, "scaler", None)
    return scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
