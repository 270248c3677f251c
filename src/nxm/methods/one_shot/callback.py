"""ASP as a Trainer callback."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm.errors import UserError
from nxm.methods.callback import SparsityCallback
from nxm.methods.importance import Importance, make_importance
from nxm.methods.masked import MaskedWeights
from nxm.sets.base import SparseSet
from nxm.sets.nm import NM


class AspCallback(SparsityCallback):
    """ASP: one-shot magnitude mask at the start, masked fine-tuning from there (`nxm.methods.masked`).

    Example: `Trainer(..., callbacks=[AspCallback(NM(2, 4))])`.

    Args:
        constraint: default `NM(2, 4)`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: weighs the magnitudes by what a change of each weight costs, by name or of one's own
            (`nxm.methods.importance`); the mask is then taken after the first batch was seen and before the first step.
            `none`: all alike, as published; the mask is taken at once.
    """

    def __init__(
        self,
        constraint: SparseSet | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str = "none",
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)
        self.importance = make_importance(importance)

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        self.masked = MaskedWeights.one_shot(self.targets, self.constraint) if self.importance is None else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.importance is not None:
            self.importance.begin(model, self.include, self.exclude)
        super().on_train_begin(args, state, control, model=model, **kwargs)
        if self.masked is not None and self.importance is not None:
            self.importance.end()  # resumed

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self.masked is None:
            self.masked = self._weighed_mask(optimizer)
        self.masked.apply_to_gradients_()

    def _weighed_mask(self, optimizer: Any) -> MaskedWeights:
        assert self.importance is not None
        measured = self.importance.measure(self.targets, optimizer)
        self.importance.end()
        if measured is None:
            raise UserError(
                f"{type(self.importance).__name__} knows nothing before the first step, when ASP prunes: use "
                "importance='activations'"
            )
        return MaskedWeights.one_shot(self.targets, self.constraint, measured)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.masked is not None:
            self.masked.apply_to_weights_()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        masks = self.masked.masks if self.masked is not None else {}
        return {f"mask.{name}": mask for name, mask in masks.items()}, {}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if tensors:
            masks = {name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()}
            self.masked = MaskedWeights(self.targets, masks)
