"""Unstructured sparsity: a share of non-zeros anywhere in each matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nxm.errors import UserError
from nxm.sets.base import SparseSet, reject_nan


@dataclass(frozen=True)
class Unstructured(SparseSet):
    """At most a share `density` of non-zeros in each matrix, anywhere (the paper's ADMM_unstructured: 0.5)."""

    notation: ClassVar[str] = 'the density in percent, such as "50 %"'
    examples: ClassVar[tuple[str, ...]] = ("50 %", "25 %")

    density: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.density < 1.0:
            raise UserError(f"density must lie between 0 and 1, got {self.density}")

    def __str__(self) -> str:
        return f"unstructured {100 * self.density:g} %"

    @classmethod
    def parse(cls, text: str) -> Unstructured | None:
        match = re.fullmatch(r"(?:unstructured )?(\d+(?:\.\d+)?) ?%", text)
        return cls(float(match[1]) / 100) if match else None

    def n_nonzero(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Return the largest number of non-zeros in a matrix of this shape."""
        return round(self.density * torch.Size(shape).numel())

    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        if self.n_nonzero(shape) < 1:
            raise UserError(f"{name}: density {self.density} leaves none of the {torch.Size(shape).numel()} entries")

    def mask(self, W: Tensor) -> Tensor:
        reject_nan(W)
        keep = self.n_nonzero(W.shape)
        magnitude = W.abs().reshape(-1)
        # The smallest surviving magnitude; entries equal to it survive from the front until the number is full.
        threshold = magnitude.kthvalue(magnitude.numel() - keep + 1).values
        mask = magnitude > threshold
        missing = keep - int(mask.sum())
        ties = (magnitude == threshold).nonzero().reshape(-1)
        mask[ties[:missing]] = True
        return mask.reshape(W.shape)

    def contains(self, W: Tensor) -> bool:
        return int((W != 0).sum()) <= self.n_nonzero(W.shape)
