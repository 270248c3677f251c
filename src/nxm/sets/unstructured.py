"""A share of non-zeros anywhere in each matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm.errors import UserError
from nxm.sets.base import SparseSet, reject_nan


@dataclass(frozen=True)
class Unstructured(SparseSet):
    """At most a share `density` of non-zeros in each matrix, anywhere (the paper's ADMM_unstructured: 0.5)."""

    density: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.density < 1.0:
            raise UserError(f"density must lie between 0 and 1, got {self.density}")

    def __str__(self) -> str:
        return f"unstructured {100 * self.density:g} %"

    def n_nonzero(self, shape: torch.Size | tuple[int, ...]) -> int:
        """How many entries a matrix of this shape may keep."""
        return round(self.density * torch.Size(shape).numel())

    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        if self.n_nonzero(shape) < 1:
            raise UserError(f"{name}: density {self.density} keeps none of the {torch.Size(shape).numel()} entries")

    def mask(self, W: Tensor) -> Tensor:
        reject_nan(W)
        keep = self.n_nonzero(W.shape)
        magnitude = W.abs().reshape(-1)
        # The smallest magnitude that survives; the ties at it are then filled up from the front.
        threshold = magnitude.kthvalue(magnitude.numel() - keep + 1).values
        mask = magnitude > threshold
        missing = keep - int(mask.sum())
        ties = (magnitude == threshold).nonzero().reshape(-1)
        mask[ties[:missing]] = True
        return mask.reshape(W.shape)

    def contains(self, W: Tensor) -> bool:
        return int((W != 0).sum()) <= self.n_nonzero(W.shape)
