"""The Trainer callback that every method builds on: targets, importance, checkpoints, evaluation, the saved config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nxm.errors import UserError
from nxm.files import new_file
from nxm.methods.importance import Importance, make_importance
from nxm.models.targets import find_targets, unwrap, validate_targets
from nxm.sets import kind_of
from nxm.sets.base import ConstraintSet, SparseSet, reject_nan
from nxm.sets.saved import write_pattern

STATE_FILE = "nxm_state.safetensors"


class SparsityCallback(TrainerCallback):
    """Base of all methods' callbacks; use a subclass.

    It finds the targets, lets the importance watch until the choice is final, saves the method's state with each
    checkpoint, and at the end asserts that the weights lie in the constraint set and writes it into the model's config.

    Args:
        constraint: the set S in which the target weights end.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: the measure of the projection, by name (`nxm.methods.ImportanceName`) or an object.

    Attributes:
        targets: name -> weight, from `on_train_begin` on.
        importance: the `Importance`, or None for "none".

    Raises:
        UserError: the method needs a mask and the set is not a `SparseSet`, or the importance is unknown.
    """

    needs_mask: ClassVar[bool] = False  # whether the method works with a SparseSet only

    def __init__(
        self,
        constraint: ConstraintSet,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        importance: Importance | str = "none",
    ) -> None:
        if self.needs_mask and not isinstance(constraint, SparseSet):
            raise UserError(f"{type(self).__name__} needs a set of zero patterns (a mask), which {constraint} is not")
        self.constraint = constraint
        self.include = include
        self.exclude = exclude
        self.importance = make_importance(importance)
        self.targets: dict[str, nn.Parameter] = {}

    # Each method defines these.

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        """Prepare a training of `steps` optimizer steps; `targets` hold the initial weights."""
        raise NotImplementedError

    @property
    def choice_is_final(self) -> bool:
        """True once the choice is fixed for the rest of the training, so that the weights lie in the constraint set."""
        raise NotImplementedError

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state that must survive a restart: tensors, and JSON metadata. Called in every process."""
        raise NotImplementedError

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (the tensors may hold others as well); called after `begin`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Leave the weights in the constraint set at the end of the training."""

    def record(self) -> dict[str, Any] | None:
        """Return the course of the last training for a results file, as JSON; None for a method without one."""
        return None

    # The Trainer calls these.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("the weights are sharded over processes; a projection needs whole rows: use DDP instead")
        kind_of(self.constraint)  # what config.json cannot name is refused now, not after hours of training
        self.targets = find_targets(model, self.include, self.exclude)
        validate_targets(self.targets, self.constraint)
        self.begin(state.max_steps, max(1, round(state.max_steps / state.num_train_epochs)))
        if self.importance is not None:
            self.importance.begin(model, self.include, self.exclude)
        if state.global_step > 0:
            tensors, metadata = _read_state(_checkpoint(args, state) / STATE_FILE)
            self.load_state_dict(tensors, metadata)
            if self.importance is not None:
                self.importance.load_state_dict(tensors)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.importance is not None and self.choice_is_final:
            self.importance.end()  # nothing is chosen any more: stop the measuring, which costs time

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        tensors, metadata = self.state_dict()
        if self.importance is not None:
            tensors |= self.importance.state_dict()
        if args.should_save:
            _write_state(_checkpoint(args, state) / STATE_FILE, tensors, metadata)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.importance is not None:
            self.importance.end()
        self.finish()
        broken = [name for name, W in self.targets.items() if not self.constraint.contains(W)]
        if broken:
            raise AssertionError(
                f"{len(broken)} matrices left {self.constraint}, first {broken[0]}: please report this"
            )
        write_pattern(unwrap(model).config, self.constraint, self.targets)

    def measure_importance(self, optimizer: Any) -> dict[str, Tensor] | None:
        """Return name -> cost v of each target (`Importance.measure`); None: there is no importance, or no data yet."""
        return None if self.importance is None else self.importance.measure(self.targets, optimizer)


class HardPrunedEvaluation(SparsityCallback):
    """A method whose weights lie outside the constraint set while it trains.

    In eval mode the network is the hard-pruned one (the paper's evaluation, section 4.2): its weights are projected
    at the first such forward pass, and restored before training goes on.
    """

    _unpruned: dict[str, Tensor] | None = None  # the weights, while an evaluation runs on the pruned ones

    def __init__(
        self,
        constraint: ConstraintSet,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        importance: Importance | str = "none",
    ) -> None:
        super().__init__(constraint, include, exclude, importance)
        # An importance is known at the projections alone: the hard prune takes the last choice by it; {}: none yet.
        self.weighted_choices: dict[str, Tensor] = {}

    # A method with an importance defines this.

    def weighted_choices_in(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
        """Return `weighted_choices` as of a `state_dict`; {} for a method without an importance."""
        return {}

    # The Trainer calls these.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.weighted_choices = {}
        super().on_train_begin(args, state, control, model=model, **kwargs)
        self._hook = unwrap(model).register_forward_pre_hook(self._prune_in_eval_mode)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._restore()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        self._restore()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._hook.remove()
        self._restore()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:  # the weights are that checkpoint's
            best = _read_state(Path(state.best_model_checkpoint) / STATE_FILE)
            self.weighted_choices = self.weighted_choices_in(*best)
        super().on_train_end(args, state, control, model=model, **kwargs)

    def finish(self) -> None:
        self._hard_prune()

    def hard_choice(self, name: str, W: Tensor) -> Tensor:
        """Return the choice of the hard prune: the last one made by the importance, else that of W's own projection."""
        return self.weighted_choices[name] if self.weighted_choices else self.constraint.project(W).choice

    @torch.no_grad()
    def _prune_in_eval_mode(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._restore()
        elif self._unpruned is None and not self.choice_is_final:
            self._unpruned = {name: W.detach().clone() for name, W in self.targets.items()}
            self._hard_prune()

    @torch.no_grad()
    def _hard_prune(self) -> None:
        """Move every weight outside the set into it; also weights that the Trainer loaded back from a checkpoint."""
        for name, W in self.targets.items():
            if self.constraint.contains(W):
                continue
            if self.weighted_choices:
                reject_nan(W)
                self.constraint.hold_(W, self.weighted_choices[name])
            else:
                W.copy_(self.constraint.project(W).Z)

    @torch.no_grad()
    def _restore(self) -> None:
        if self._unpruned is not None:
            for name, W in self.targets.items():
                W.copy_(self._unpruned[name])
            self._unpruned = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _write_state(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    with new_file(path) as partial:
        save_file(contiguous, partial, metadata={"nxm": json.dumps(metadata)})


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["nxm"])
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: this checkpoint was not saved with this callback, or lies in another output_dir"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from None
