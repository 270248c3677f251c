"""SR-STE as a Trainer callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nxm.methods.callback import SparsityCallback
from nxm.methods.sr_ste.algorithm import SRSTE
from nxm.methods.sr_ste.settings import SrSte
from nxm.sets.allocation import Allocation
from nxm.sets.base import ConstraintSet, SparseSet
from nxm.sets.nm import NM


def make(
    constraint: ConstraintSet | Allocation, settings: SrSte, include: tuple[str, ...], exclude: tuple[str, ...]
) -> SrSteCallback:
    """Return the callback as a study trains with it."""
    return SrSteCallback(constraint, settings.decay, include, exclude)


class SrSteCallback(SparsityCallback):
    """SR-STE into the constraint set (`nxm.methods.sr_ste.algorithm`): the mask is computed at every step, to the last.

    Example: `Trainer(..., callbacks=[SrSteCallback(NM(2, 4))])`.

    Args:
        constraint: a `SparseSet`, or an `Allocation` of such sets; default `NM(2, 4)`.
        decay: the pull of masked weights toward zero (the paper's lambda_W and its value for image models).
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
    """

    needs_mask = True
    sets: Mapping[str, SparseSet]

    def __init__(
        self,
        constraint: ConstraintSet | Allocation | None = None,
        decay: float = 2e-4,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)
        self.decay = decay

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        self.sr_ste = SRSTE(self.targets, self.sets, self.decay)

    def before_step(self, step: int) -> None:
        self.sr_ste.mask_()

    def before_update(self, step: int, optimizer: Any) -> None:
        self.sr_ste.restore_()

    def training_value(self, name: str) -> Tensor | None:
        return self.sr_ste.dense(name)

    def abandon(self) -> None:
        self.sr_ste.abandon_()

    @property
    def choice_is_final(self) -> bool:
        return False

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}  # the mask is a function of the weights

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        pass
