"""Gradual magnitude pruning as a Trainer callback."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm.asp import MaskedWeights
from nxm.callbacks.base import HardPrunedEvaluation
from nxm.constraints import NM, SparseSet
from nxm.errors import UserError
from nxm.gmp import gradual_mask, share_left
from nxm.settings import Gmp


class GmpCallback(HardPrunedEvaluation):
    """Gradual magnitude pruning into the constraint set (`nxm.gmp`).

    Example: `Trainer(..., callbacks=[GmpCallback(NM(2, 4))])`.

    Args:
        constraint: default `NM(2, 4)`.
        settings: interval between two prunings, and the share of the run after which the mask is the set's own.
        include, exclude: regular expressions on weight names, see `nxm.targets.find_targets`.
    """

    def __init__(
        self,
        constraint: SparseSet | None = None,
        settings: Gmp | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)
        self.settings = settings or Gmp(interval=10, prune_until=0.5)

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        self.interval = steps_per_epoch if self.settings.interval == "epoch" else int(self.settings.interval)
        self.last_step = math.floor(steps * self.settings.prune_until)
        if self.last_step < 2 * self.interval:
            raise UserError(
                f"gradual pruning has {self.last_step} optimizer steps (prune_until = {self.settings.prune_until:g} of "
                f"{steps}), fewer than two intervals of {self.interval}: not gradual; set a smaller interval"
            )
        self.masked = MaskedWeights(
            self.targets, {name: torch.ones_like(W, dtype=torch.bool) for name, W in self.targets.items()}
        )
        self.settled = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_gradients_()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_weights_()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if self.settled or (step % self.interval and step != self.last_step):
            return
        share = share_left(step / self.last_step)
        masks = {name: gradual_mask(W.detach(), self.constraint, share) for name, W in self.targets.items()}
        self.masked = MaskedWeights(self.targets, masks)
        self.settled = step >= self.last_step

    @property
    def inside(self) -> bool:
        return self.settled

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"mask.{name}": mask for name, mask in self.masked.masks.items()}, {"settled": self.settled}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        masks = {name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()}
        self.masked = MaskedWeights(self.targets, masks)
        self.settled = values["settled"]
