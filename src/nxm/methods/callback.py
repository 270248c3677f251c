"""What every sparsity callback shares: targets, checkpoints, the pattern in the saved config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nxm.errors import UserError
from nxm.models.targets import find_targets, unwrap, validate_targets
from nxm.sets.base import SparseSet, apply_mask
from nxm.sets.saved import write_pattern

STATE_FILE = "nxm_state.safetensors"


class SparsityCallback(TrainerCallback):
    """What all methods share: targets, checkpoints, the pattern in the saved config. Use a subclass.

    Args:
        constraint: the set S in which the target weights end.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
    """

    def __init__(self, constraint: SparseSet, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> None:
        self.constraint = constraint
        self.include = include
        self.exclude = exclude
        self.targets: dict[str, nn.Parameter] = {}

    # What a method defines.

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        """The targets are known and hold the start's weights; training of `steps` optimizer steps follows."""
        raise NotImplementedError

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that must survive a restart: tensors, and JSON. Called in every process, saved by the first."""
        raise NotImplementedError

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; called after `begin`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Training is over: leave the weights in the constraint set."""

    # What the Trainer calls.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("the weights are sharded over processes; a projection needs whole rows: use DDP instead")
        self.targets = find_targets(model, self.include, self.exclude)
        validate_targets(self.targets, self.constraint)
        self.begin(state.max_steps, max(1, round(state.max_steps / state.num_train_epochs)))
        if state.global_step > 0:
            tensors, values = _read_state(_checkpoint(args, state) / STATE_FILE)
            self.load_state_dict(tensors, values)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        tensors, values = self.state_dict()
        if args.should_save:
            _write_state(_checkpoint(args, state) / STATE_FILE, tensors, values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.finish()
        broken = [name for name, W in self.targets.items() if not self.constraint.contains(W)]
        if broken:
            raise AssertionError(
                f"{len(broken)} matrices left {self.constraint}, first {broken[0]}: please report this"
            )
        write_pattern(unwrap(model).config, self.constraint, self.targets)


class HardPrunedEvaluation(SparsityCallback):
    """A method whose weights lie outside the constraint set while it trains.

    In eval mode the network is the hard-pruned one (the paper's evaluation, section 4.2): its weights are projected
    when it first runs so, and restored before training goes on.
    """

    _unpruned: dict[str, Tensor] | None = None  # the weights, while an evaluation runs on the pruned ones

    def __init__(self, constraint: SparseSet, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> None:
        super().__init__(constraint, include, exclude)
        self.weighed: dict[str, Tensor] = {}  # with an importance: the masks by it, as last measured; {}: none was yet

    # What a method defines.

    @property
    def inside(self) -> bool:
        """Whether the weights lie in the constraint set by now, so that nothing is to be pruned."""
        raise NotImplementedError

    def hard_mask(self, name: str, W: Tensor) -> Tensor:
        """The mask of the hard prune, bool of W's shape: of W's largest; with an importance, known only where it was
        measured, the one of that time."""
        return self.weighed[name] if self.weighed else self.constraint.mask(W)

    def weighed_in(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Tensor]:
        """What `weighed` was when `state_dict` gave this; {} for a method without an importance."""
        return {}

    # What the Trainer calls.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
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
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:  # its weights are here again
            self.weighed = self.weighed_in(*_read_state(Path(state.best_model_checkpoint) / STATE_FILE))
        super().on_train_end(args, state, control, model=model, **kwargs)

    def finish(self) -> None:
        self._hard_prune()

    @torch.no_grad()
    def _prune_in_eval_mode(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._restore()
        elif self._unpruned is None and not self.inside:
            self._unpruned = {name: W.detach().clone() for name, W in self.targets.items()}
            self._hard_prune()

    @torch.no_grad()
    def _hard_prune(self) -> None:
        """What is not in the set yet; also what the Trainer loaded back as the best of its evaluations."""
        for name, W in self.targets.items():
            if not self.constraint.contains(W):
                W.copy_(apply_mask(W, self.hard_mask(name, W)))

    @torch.no_grad()
    def _restore(self) -> None:
        if self._unpruned is not None:
            for name, W in self.targets.items():
                W.copy_(self._unpruned[name])
            self._unpruned = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _write_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"nxm": json.dumps(values)})
    os.replace(temporary, path)


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["nxm"])
            return {key: file.get_tensor(key) for key in file.keys()}, values  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: this checkpoint was not saved with this callback, or lies in another output_dir"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from None
