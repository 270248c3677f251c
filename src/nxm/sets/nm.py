"""N:M sparsity: at most N non-zeros in each group of M consecutive inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nxm.errors import UserError
from nxm.sets.base import SparseSet, reject_nan


@dataclass(frozen=True)
class NM(SparseSet):
    """At most `n_nonzero` non-zeros in each group of `group_size` consecutive inputs ("2:4"; the paper's 4:2).

    The projection (eq. 4) retains the `n_nonzero` largest magnitudes of each group.
    """

    notation: ClassVar[str] = 'N:M, non-zeros and group size, such as "2:4"'
    examples: ClassVar[tuple[str, ...]] = ("2:4", "1:4", "3:4", "2:8")

    n_nonzero: int = 2
    group_size: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n_nonzero < self.group_size:
            raise UserError(
                f"N:M needs 1 <= n_nonzero < group_size, got n_nonzero={self.n_nonzero}, group_size={self.group_size}"
            )

    def __str__(self) -> str:
        return f"{self.n_nonzero}:{self.group_size}"

    @classmethod
    def parse(cls, text: str) -> NM | None:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        if len(shape) != 2:
            raise UserError(f"{name}: N:M sparsity is for matrices, this has shape {tuple(shape)}")
        if shape[1] % self.group_size:
            raise UserError(
                f"{name}: input width {shape[1]} is no multiple of the group size {self.group_size} of {self}; "
                "exclude this matrix or choose a group size that divides it"
            )

    def mask(self, W: Tensor) -> Tensor:
        self.validate(W.shape, "matrix")
        reject_nan(W)
        if self.group_size > _LARGEST_PAIRWISE_GROUP:
            return _nm_mask_by_sorting(W, self.n_nonzero, self.group_size)
        return _nm_mask_by_rank(W, self.n_nonzero, self.group_size)

    def contains(self, W: Tensor) -> bool:
        self.validate(W.shape, "matrix")
        nonzeros = (W.reshape(-1, self.group_size) != 0).sum(dim=1)
        return bool((nonzeros <= self.n_nonzero).all())


# Ranking by all pairs takes group_size^2 / 2 comparisons: cheaper than sorting up to this size (measured on a CPU).
_LARGEST_PAIRWISE_GROUP = 16


def _nm_mask_by_rank(W: Tensor, n_nonzero: int, group_size: int) -> Tensor:
    """Return the mask of the entries of which fewer than `n_nonzero` in their group are larger, or equal and earlier.

    One comparison for each pair of positions serves all groups at once. Without a sort or a transposition it streams
    through memory. (The bools are added as bytes, which saves a conversion.)
    """
    groups = W.detach().abs().reshape(-1, group_size)
    position = groups.unbind(dim=1)
    # rank[j] counts the entries that beat j. rank[i] starts as if all later ones beat i; a comparison corrects both.
    rank = [torch.full_like(position[i], group_size - 1 - i, dtype=torch.uint8) for i in range(group_size)]
    for i in range(group_size):
        for j in range(i + 1, group_size):
            earlier_wins = (position[i] >= position[j]).view(torch.uint8)
            rank[j] += earlier_wins
            rank[i] -= earlier_wins
    return torch.stack([r < n_nonzero for r in rank], dim=1).reshape(W.shape)


def _nm_mask_by_sorting(W: Tensor, n_nonzero: int, group_size: int) -> Tensor:
    """Return the same mask by a stable sort of each group: the reference in tests, and faster for large groups."""
    groups = W.detach().abs().reshape(-1, group_size)
    order = groups.sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=W.device)
    mask.scatter_(1, order[:, :n_nonzero], True)
    return mask.reshape(W.shape)
