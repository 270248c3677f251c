"""Gradual magnitude pruning as a Trainer callback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nxm.errors import UserError
from nxm.methods.callback import SparsityCallback, steps_in
from nxm.methods.gradual.algorithm import gradual_mask, share_left
from nxm.methods.gradual.settings import DEFAULT_GMP, Gmp
from nxm.methods.held import HeldWeights
from nxm.methods.importance import Importance
from nxm.sets.allocation import Allocation
from nxm.sets.base import ConstraintSet, SparseSet
from nxm.sets.nm import NM


def make(
    constraint: ConstraintSet | Allocation, settings: Gmp, include: tuple[str, ...], exclude: tuple[str, ...]
) -> GmpCallback:
    """Return the callback as a study trains with it."""
    return GmpCallback(constraint, settings, include, exclude)


class GmpCallback(SparsityCallback):
    """Gradual magnitude pruning into the constraint set (`nxm.methods.gradual.algorithm`).

    Example: `Trainer(..., callbacks=[GmpCallback(NM(2, 4))])`.

    Args:
        constraint: a `SparseSet`, or an `Allocation` of such sets; default `NM(2, 4)`.
        settings: see `nxm.methods.gradual.settings.Gmp`; default `DEFAULT_GMP`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: the measure of the projection, by name or an object (`nxm.methods.importance`); None: the settings'.
    """

    needs_mask = True
    sets: Mapping[str, SparseSet]

    def __init__(
        self,
        constraint: ConstraintSet | Allocation | None = None,
        settings: Gmp | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str | None = None,
    ) -> None:
        self.settings = DEFAULT_GMP if settings is None else settings
        if not isinstance(self.settings, Gmp):
            raise UserError(f"settings must be an object of class Gmp, got {settings!r}: write Gmp(...)")
        super().__init__(
            constraint or NM(), include, exclude, self.settings.importance if importance is None else importance
        )

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        self.interval = steps_in(self.settings.interval, steps_per_epoch)
        self.last_step = math.floor(steps * self.settings.prune_until)
        self.settings.refuse_short_training(steps, steps_per_epoch)
        self._hold({name: torch.ones_like(W, dtype=torch.bool) for name, W in self.targets.items()})
        self.settled = False

    def before_update(self, step: int, optimizer: Any) -> None:
        self.held.apply_to_gradients_()

    def after_update(self, step: int, skipped: bool) -> None:
        self.held.apply_to_weights_()

    @torch.no_grad()
    def after_step(self, step: int, optimizer: Any) -> None:
        if self.settled or (step % self.interval and step != self.last_step):
            return
        scores = {name: W.detach() for name, W in self.targets.items()}
        importance = self.measure_importance(optimizer)
        if importance is not None:
            scores |= {name: scores[name] * cost.sqrt() for name, cost in importance.items()}
            self.weighted_choices = {name: self.sets[name].mask(score) for name, score in scores.items()}
        share = share_left(step / self.last_step)
        self._hold({name: gradual_mask(score, self.sets[name], share) for name, score in scores.items()})
        self.settled = step >= self.last_step

    @property
    def choice_is_final(self) -> bool:
        return self.settled

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"mask.{name}": mask for name, mask in self.held.choices.items()}
        tensors |= {f"choice.{name}": mask for name, mask in self.weighted_choices.items()}
        return tensors, {"settled": self.settled}

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self._hold({name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()})
        self.weighted_choices = self.weighted_choices_in(tensors, metadata)
        self.settled = metadata["settled"]

    def weighted_choices_in(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
        """Return the set's masks as of the last pruning."""
        keys = {name: f"choice.{name}" for name in self.targets}
        return {name: tensors[key].to(self.targets[name].device) for name, key in keys.items() if key in tensors}

    def _hold(self, masks: dict[str, Tensor]) -> None:
        self.held = HeldWeights(self.targets, masks, self.sets)  # until settled the masks have more entries
