"""ASP as a Trainer callback."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm.asp import MaskedWeights
from nxm.callbacks.base import SparsityCallback
from nxm.constraints import NM, SparseSet


class AspCallback(SparsityCallback):
    """ASP: one-shot magnitude mask at the start, masked fine-tuning from there (`nxm.asp`).

    Example: `Trainer(..., callbacks=[AspCallback(NM(2, 4))])`.
    """

    def __init__(
        self, constraint: SparseSet | None = None, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        self.masked = MaskedWeights.one_shot(self.targets, self.constraint)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_gradients_()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_weights_()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"mask.{name}": mask for name, mask in self.masked.masks.items()}, {}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        masks = {name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()}
        self.masked = MaskedWeights(self.targets, masks)
