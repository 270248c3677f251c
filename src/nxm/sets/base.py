"""Constraint sets S and their Euclidean projections.

A constraint set says where weights must end (eq. 2 of the paper: g is 0 inside S and infinite outside). The algorithms
(`nxm.methods.admm.algorithm`, `nxm.methods.masked`) know a set only by the methods of `ConstraintSet`, so a new one is
one class here: an integer
grid, N:M on an integer grid, heads, rows, blocks.

Conventions, for all sets:

- Matrices are `nn.Linear` weights, shape `(out_features, in_features)`; groups run along the *input* dimension.
- Ties are settled by position: of equal magnitudes the earlier one (row-major) survives. So every projection is a
  function of the values alone, the same on every device.
- No projection returns -0.0: what is removed is +0.0, and a surviving -0.0 becomes +0.0.
- NaN has no projection: it raises ValueError, so that a diverged run stops instead of being pruned to numbers.
  Infinities are the largest magnitudes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nxm.errors import Diverged


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


def apply_mask(W: Tensor, mask: Tensor) -> Tensor:
    """Return W where `mask`, +0.0 elsewhere; no -0.0 anywhere (packers for sparse hardware take -0.0 for a value).

    The *bits* are multiplied by one or zero: exact for infinities too, and several times faster than `torch.where`.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()]
    return (W.detach().view(bits) * mask).view(W.dtype).add_(0.0)


def reject_nan(W: Tensor) -> None:
    if bool(W.amax().isnan()):  # a maximum passes NaN on, and reads the matrix once
        raise Diverged("cannot project a matrix with NaN: training diverged (lower the learning rate or rho)")
