"""Gradual magnitude pruning as a Trainer callback."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm.errors import UserError
from nxm.methods.callback import HardPrunedEvaluation
from nxm.methods.gradual.algorithm import gradual_mask, share_left
from nxm.methods.gradual.settings import Gmp
from nxm.methods.importance import Importance, make_importance
from nxm.methods.masked import MaskedWeights
from nxm.sets.base import SparseSet
from nxm.sets.nm import NM


class GmpCallback(HardPrunedEvaluation):
    """Gradual magnitude pruning into the constraint set (`nxm.methods.gradual.algorithm`).

    Example: `Trainer(..., callbacks=[GmpCallback(NM(2, 4))])`.

    Args:
        constraint: default `NM(2, 4)`.
        settings: interval between two prunings, and the share of the run after which the mask is the set's own.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: weighs the magnitudes by what a change of each weight costs, by name or of one's own
            (`nxm.methods.importance`); `none`: all alike, as published.
    """

    def __init__(
        self,
        constraint: SparseSet | None = None,
        settings: Gmp | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str = "none",
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)
        self.settings = settings or Gmp(interval=10, prune_until=0.5)
        self.importance = make_importance(importance)

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
        self.weighed = {}
        self.settled = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.importance is not None:
            self.importance.begin(model, self.include, self.exclude)
        super().on_train_begin(args, state, control, model=model, **kwargs)
        if self.settled and self.importance is not None:
            self.importance.end()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_gradients_()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masked.apply_to_weights_()

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        if self.settled or (step % self.interval and step != self.last_step):
            return
        scores = {name: W.detach() for name, W in self.targets.items()}
        measured = self.importance.measure(self.targets, optimizer) if self.importance is not None else None
        if measured is not None:
            scores = {name: score * measured[name].sqrt() for name, score in scores.items()}
            self.weighed = {name: self.constraint.mask(score) for name, score in scores.items()}
        share = share_left(step / self.last_step)
        masks = {name: gradual_mask(score, self.constraint, share) for name, score in scores.items()}
        self.masked = MaskedWeights(self.targets, masks)
        self.settled = step >= self.last_step
        if self.settled and self.importance is not None:
            self.importance.end()  # nothing is pruned any more

    def finish(self) -> None:
        super().finish()
        if self.importance is not None:
            self.importance.end()

    @property
    def inside(self) -> bool:
        return self.settled

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"mask.{name}": mask for name, mask in self.masked.masks.items()}
        tensors |= {f"weighed.{name}": mask for name, mask in self.weighed.items()}
        if self.importance is not None:
            tensors |= self.importance.state_dict()
        return tensors, {"settled": self.settled}

    def weighed_in(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Tensor]:
        """The set's masks as of the last pruning."""
        keys = {name: f"weighed.{name}" for name in self.targets}
        return {name: tensors[key].to(self.targets[name].device) for name, key in keys.items() if key in tensors}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        masks = {name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()}
        self.masked = MaskedWeights(self.targets, masks)
        self.weighed = self.weighed_in(tensors, values)
        self.settled = values["settled"]
        if self.importance is not None:
            self.importance.load_state_dict(tensors)
