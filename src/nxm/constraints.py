"""Constraint sets S and their Euclidean projections.

A constraint set says where weights must end (eq. 2 of the paper: g is 0 inside S and infinite outside). The algorithms
(`nxm.admm`, `nxm.asp`) know a set only by the methods of `ConstraintSet`, so a new one is one class here: an integer
grid, N:M on an integer grid, heads, rows, blocks.

Conventions, for all sets:

- Matrices are `nn.Linear` weights, shape `(out_features, in_features)`; groups run along the *input* dimension.
- Ties are settled by position: of equal magnitudes the earlier one (row-major) survives. So every projection is a
  function of the values alone, the same on every device.
- No projection returns -0.0: what is removed is +0.0, and a surviving -0.0 becomes +0.0.
- NaN has no projection: it raises ValueError, so that a diverged run stops instead of being pruned to numbers.
  Infinities are the largest magnitudes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nxm.errors import Diverged, UserError


class ConstraintSet(ABC):
    """A set S of matrices with an exact Euclidean projection."""

    @abstractmethod
    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        """Raise ValueError, naming the matrix `name`, if no matrix of this shape can lie in S."""

    @abstractmethod
    def project(self, W: Tensor) -> Tensor:
        """Return argmin over Z in S of ||Z - W||_F, a new tensor of W's shape and dtype. Raises ValueError on NaN."""

    @abstractmethod
    def contains(self, W: Tensor) -> bool:
        """Whether W lies in S."""


class SparseSet(ConstraintSet):
    """A set defined by where zeros may stand: projecting is keeping the entries of a mask."""

    @abstractmethod
    def mask(self, W: Tensor) -> Tensor:
        """Return the bool mask, of W's shape, of the entries that the projection keeps. Raises ValueError on NaN.

        It always has the set's full number of entries, even where W has fewer non-zeros.
        """

    def project(self, W: Tensor) -> Tensor:
        return apply_mask(W, self.mask(W))


@dataclass(frozen=True)
class NM(SparseSet):
    """At most `n_nonzero` non-zeros in each group of `group_size` consecutive inputs ("2:4"; the paper's 4:2).

    Projection (eq. 4): keep the `n_nonzero` largest magnitudes of each group.
    """

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
    def parse(cls, text: str) -> NM:
        """Read "2:4". Raises ValueError on anything else."""
        n_nonzero, colon, group_size = text.partition(":")
        if not (colon and n_nonzero.isdigit() and group_size.isdigit()):
            raise UserError(f"'{text}' is no N:M pattern; write non-zeros and group size as in 2:4")
        return cls(int(n_nonzero), int(group_size))

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
        _reject_nan(W)
        if self.group_size > _LARGEST_PAIRWISE_GROUP:
            return _nm_mask_by_sorting(W, self.n_nonzero, self.group_size)
        return _nm_mask_by_rank(W, self.n_nonzero, self.group_size)

    def contains(self, W: Tensor) -> bool:
        self.validate(W.shape, "matrix")
        nonzeros = (W.reshape(-1, self.group_size) != 0).sum(dim=1)
        return bool((nonzeros <= self.n_nonzero).all())


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
        _reject_nan(W)
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


def apply_mask(W: Tensor, mask: Tensor) -> Tensor:
    """Return W where `mask`, +0.0 elsewhere; no -0.0 anywhere (packers for sparse hardware take -0.0 for a value).

    The *bits* are multiplied by one or zero: exact for infinities too, and several times faster than `torch.where`.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()]
    return (W.detach().view(bits) * mask).view(W.dtype).add_(0.0)


# Ranking by all pairs costs group_size^2 / 2 comparisons: cheaper than sorting up to here (measured on CPU).
_LARGEST_PAIRWISE_GROUP = 16


def _nm_mask_by_rank(W: Tensor, n_nonzero: int, group_size: int) -> Tensor:
    """Keep an entry when fewer than `n_nonzero` of its group are larger, or equal and earlier.

    All groups at once, one comparison for each pair of positions; no sort and no transposition, so it streams through
    memory (bools are added as the bytes that they are, which spares a conversion).
    """
    groups = W.detach().abs().reshape(-1, group_size)
    position = groups.unbind(dim=1)
    # rank[j] = how many beat j; a later one j beats i unless the earlier wins, so i starts with all later ones counted.
    rank = [torch.full_like(position[i], group_size - 1 - i, dtype=torch.uint8) for i in range(group_size)]
    for i in range(group_size):
        for j in range(i + 1, group_size):
            earlier_wins = (position[i] >= position[j]).view(torch.uint8)
            rank[j] += earlier_wins
            rank[i] -= earlier_wins
    return torch.stack([r < n_nonzero for r in rank], dim=1).reshape(W.shape)


def _nm_mask_by_sorting(W: Tensor, n_nonzero: int, group_size: int) -> Tensor:
    """The same mask by a stable sort of each group: the reference, and the way for large groups."""
    groups = W.detach().abs().reshape(-1, group_size)
    order = groups.sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=W.device)
    mask.scatter_(1, order[:, :n_nonzero], True)
    return mask.reshape(W.shape)


def _reject_nan(W: Tensor) -> None:
    if bool(W.amax().isnan()):  # a maximum passes NaN on, and reads the matrix once
        raise Diverged("cannot project a matrix with NaN: training diverged (lower the learning rate or rho)")
