"""Straight-through training on integers (QAT) as a Trainer callback."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from nxm.methods.callback import SparsityCallback
from nxm.methods.held import Held, HeldWeights, hold
from nxm.methods.straight_through.algorithm import zero_patterns
from nxm.methods.straight_through.settings import DEFAULT_QAT, Qat
from nxm.sets.allocation import Allocation
from nxm.sets.base import ConstraintSet


def make(
    constraint: ConstraintSet | Allocation, settings: Qat, include: tuple[str, ...], exclude: tuple[str, ...]
) -> StraightThroughCallback:
    """Return the callback as a study trains with it."""
    return StraightThroughCallback(constraint, settings, include, exclude)


class StraightThroughCallback(SparsityCallback):
    """Quantisation-aware training on a fixed zero pattern (`nxm.methods.straight_through.algorithm`).

    Example: `Trainer(..., callbacks=[StraightThroughCallback(Integers(4, mask=NM(2, 4)))])`.

    Args:
        constraint: a set of integers, or an `Allocation` with each matrix's own; with other sets this is ASP.
        settings: see `nxm.methods.straight_through.settings.Qat`; default `DEFAULT_QAT`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
    """

    def __init__(
        self,
        constraint: ConstraintSet | Allocation,
        settings: Qat = DEFAULT_QAT,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> None:
        super().__init__(constraint, include, exclude)
        self.settings = settings

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        self.round_step = math.floor(steps * self.settings.round_from)
        self._hold(zero_patterns(self.targets, self.sets), rounded=self.round_step == 0)

    def before_update(self, step: int, optimizer: Any) -> None:
        if self.held is not None:
            self.held.apply_to_gradients_()

    def after_update(self, step: int, skipped: bool) -> None:
        if self.held is not None:
            self.held.apply_to_weights_()

    def after_step(self, step: int, optimizer: Any) -> None:
        if step == self.round_step:
            self._hold(self.masks, rounded=True)

    @property
    def choice_is_final(self) -> bool:
        return self.rounded

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"mask.{name}": mask for name, mask in self.masks.items()}
        if self.held is not None:
            tensors |= self.held.state_dict()
        return tensors, {"rounded": self.rounded}

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        masks = {name: tensors[f"mask.{name}"].to(W.device) for name, W in self.targets.items()}
        self._hold(masks, metadata["rounded"])
        if self.held is not None:
            self.held.load_state_dict(tensors)

    def _hold(self, masks: dict[str, Tensor], rounded: bool) -> None:
        """Hold the weights on zero patterns, and on integers if `rounded`."""
        self.masks, self.rounded = masks, rounded
        self.held: Held | None = None  # None: free weights, before they are rounded
        patterns = {name: own.zero_patterns for name, own in self.sets.items()}
        found = {name: pattern for name, pattern in patterns.items() if pattern is not None}
        if rounded:
            self.held = hold(self.targets, masks, self.sets)
        elif found:
            self.held = HeldWeights({name: self.targets[name] for name in found}, masks, found)
