"""One-shot pruning (ASP) as a Trainer callback."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nxm.errors import UserError
from nxm.methods.callback import SparsityCallback
from nxm.methods.held import HeldWeights
from nxm.methods.importance import Importance
from nxm.methods.one_shot.algorithm import one_shot_choices
from nxm.methods.one_shot.settings import OneShot
from nxm.sets.allocation import Allocation
from nxm.sets.base import ConstraintSet
from nxm.sets.nm import NM


def make(
    constraint: ConstraintSet | Allocation, settings: OneShot, include: tuple[str, ...], exclude: tuple[str, ...]
) -> AspCallback:
    """Return the callback as a study trains with it."""
    return AspCallback(constraint, include, exclude, importance=settings.importance)


class AspCallback(SparsityCallback):
    """ASP: one-shot magnitude mask at the start, masked fine-tuning from there (`nxm.methods.one_shot.algorithm`).

    Example: `Trainer(..., callbacks=[AspCallback(NM(2, 4))])`.

    Args:
        constraint: a set, or an `Allocation` with each matrix's own; default `NM(2, 4)`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: the measure of the projection, by name or an object (`nxm.methods.importance`). The mask is then
            taken between the first forward pass and the first step; with "none", as published, before training.
    """

    def __init__(
        self,
        constraint: ConstraintSet | Allocation | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str = "none",
    ) -> None:
        super().__init__(constraint or NM(), include, exclude, importance)
        self.held: HeldWeights | None = None

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        self.held = None
        if self.importance is None:
            self.held = self._hold(one_shot_choices(self.targets, self.sets))

    def before_update(self, step: int, optimizer: Any) -> None:
        if self.held is None:
            importance = self.measure_importance(optimizer)
            if importance is None:
                raise UserError(
                    f"{type(self.importance).__name__} knows nothing before the first step, when ASP prunes: use "
                    "importance='activations'"
                )
            self.held = self._hold(one_shot_choices(self.targets, self.sets, importance))
        self.held.apply_to_gradients_()

    def after_update(self, step: int, skipped: bool) -> None:
        if self.held is not None:
            self.held.apply_to_weights_()

    @property
    def choice_is_final(self) -> bool:
        return self.held is not None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        choices = self.held.choices if self.held is not None else {}
        return {f"mask.{name}": choice for name, choice in choices.items()}, {}

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        keys = {name: f"mask.{name}" for name in self.targets}
        if tensors.keys() >= set(keys.values()):
            self.held = self._hold({name: tensors[key].to(self.targets[name].device) for name, key in keys.items()})

    def _hold(self, choices: dict[str, Tensor]) -> HeldWeights:
        return HeldWeights(self.targets, choices, self.sets)
