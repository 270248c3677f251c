"""Constraint sets S and their projections.

A constraint set says where weights must end (eq. 2 of the paper: g is 0 inside S and infinite outside). The algorithms
know a set only by the methods of `ConstraintSet`. A module of this package that defines one is found by
`nxm.sets.all_sets`; a set of zero patterns subclasses `SparseSet` and needs little more than its mask.

Conventions for all sets:

- Matrices are `nn.Linear` weights of shape `(out_features, in_features)`; groups run along the *input* dimension.
- Ties are broken by position: of equal magnitudes the earlier one (row-major) survives. A projection is thus a function
  of the values alone, the same on every device.
- No projection returns -0.0: a removed entry is +0.0, and a surviving -0.0 becomes +0.0.
- NaN has no projection: it raises `Diverged` (a ValueError), so that a diverged run stops. Infinities are the largest
  magnitudes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from nxm.errors import Diverged


@dataclass
class Projection:
    """A projection on a constraint set.

    Z: the nearest point of S, a new tensor of the projected matrix's shape and dtype, without -0.0.
    choice: the discrete part of Z: for a `SparseSet` the bool mask of the surviving entries, for other sets integer
        codes, 0 where Z is zero.
    """

    Z: Tensor
    choice: Tensor


@dataclass(frozen=True)
class Grid:
    """The points of a set of integers that are left once the zero pattern and the scales are fixed.

    mask: bool, the entries that may be other than zero.
    scale: (out_features, 1), of the weights' dtype; 0 for a row of zeros.
    largest: the largest code; the smallest is its negative.
    """

    mask: Tensor
    scale: Tensor
    largest: int

    def round(self, W: Tensor) -> Tensor:
        """Return the nearest point of the grid, without -0.0."""
        inverse = torch.where(self.scale > 0, 1.0 / self.scale, 0.0)
        codes = (W * inverse).round_().clamp_(-self.largest, self.largest).mul_(self.mask)
        return codes.mul_(self.scale).add_(0.0)


@dataclass(frozen=True)
class ConstraintSet(ABC):
    """A set S of matrices with an exact projection.

    A subclass is a frozen dataclass of plain values, since its fields are written into a saved model's config.json.

    notation: how the set is written in params.yaml, for messages.
    examples: texts in this notation, with which the common test suite runs.
    """

    notation: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Read a set from its text; `parse(str(S))` gives S again.

        Returns: the set, or None where the text is not in this set's notation.

        Raises:
            UserError: the text is in this notation, but no such set exists.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return the set's text, for tables and messages."""

    @abstractmethod
    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        """Raise UserError, naming the matrix `name`, if no matrix of this shape can lie in S."""

    @abstractmethod
    def project(self, V: Tensor, cost: Tensor | None = None) -> Projection:
        """Project on S: Z = argmin over S of sum v (Z - V)^2, for v = `cost`.

        Args:
            V: (out_features, in_features), floating.
            cost: the price v >= 0 of a squared change of each entry, of V's shape or one that broadcasts to it; None: 1
                everywhere, the Euclidean projection.

        Raises:
            Diverged: V has NaN.
        """

    @abstractmethod
    def hold_(self, W: Tensor, choice: Tensor) -> None:
        """Move W, in place, to the nearest point of S with this choice: `hold_(V, project(V).choice)` makes V its Z."""

    @abstractmethod
    def contains(self, W: Tensor) -> bool:
        """Return whether W lies in S."""

    @property
    def zero_patterns(self) -> SparseSet | None:
        """The set of zero patterns that S lies in, on which ADMM works before integers join; None: any pattern."""
        return None

    def grid(self, W: Tensor, choice: Tensor) -> Grid | None:
        """Return the grid on which W is trained with the zero pattern of a choice; None for a set without integers."""
        return None

    def similarity(self, choice: Tensor, before: Tensor) -> tuple[float, float]:
        """Compare a matrix's choice with the one before.

        Returns: the entries that are equal, and all entries. Over several matrices the similarity is the sum of the
            first by the sum of the second.
        """
        return float((choice == before).sum()), float(before.numel())


class SparseSet(ConstraintSet):
    """A set of zero patterns: the projection retains the entries of a mask and sets the rest to zero."""

    @abstractmethod
    def mask(self, W: Tensor) -> Tensor:
        """Return the bool mask, of W's shape, of the entries that the Euclidean projection retains.

        It always has the set's full number of entries, even where W has fewer non-zeros.

        Raises:
            Diverged: W has NaN.
        """

    def project(self, V: Tensor, cost: Tensor | None = None) -> Projection:
        mask = self.mask(V if cost is None else V * cost.sqrt())  # minimal cost: the largest sqrt(v) |V| survive
        return Projection(apply_mask(V, mask), mask)

    @property
    def zero_patterns(self) -> SparseSet:
        return self

    def hold_(self, W: Tensor, choice: Tensor) -> None:
        W.mul_(choice).add_(0.0)  # + 0.0 turns -0.0 into +0.0

    def similarity(self, choice: Tensor, before: Tensor) -> tuple[float, float]:
        """Return the entries in both masks, and those in the mask before (the paper's Figure 3)."""
        return float((choice & before).sum()), float(before.sum())


def support(choice: Tensor) -> Tensor:
    """Return the bool mask of the entries that may be non-zero under a choice: the choice itself if it is a mask."""
    return choice if choice.dtype == torch.bool else choice != 0


def apply_mask(W: Tensor, mask: Tensor) -> Tensor:
    """Return W where `mask`, +0.0 elsewhere; no -0.0 anywhere (packers for sparse hardware take -0.0 for a value).

    The *bits* are multiplied by one or zero: exact for infinities too, and several times faster than `torch.where`.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()]
    return (W.detach().view(bits) * mask).view(W.dtype).add_(0.0)


def reject_nan(W: Tensor) -> None:
    """Raise Diverged if W has NaN."""
    if bool(W.amax().isnan()):  # a maximum propagates NaN, and reads the matrix once
        raise Diverged("cannot project a matrix with NaN: training diverged (lower the learning rate or rho)")
