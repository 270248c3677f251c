"""A constraint set for each matrix: minimise f(W) subject to W_i in S_i, where every matrix i has an S_i of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nxm.errors import UserError
from nxm.sets import DENSE
from nxm.sets.base import ConstraintSet


@dataclass(frozen=True)
class Allocation:
    """The constraint set of each target matrix; methods take it in place of one set for all.

    Example: `AdmmCallback(Allocation({"encoder.layer.0.output.dense.weight": Integers(4), ...}))`. `nxm.allocate`
    makes one from measured sensitivities.

    Args:
        sets: full name of every target (`nxm.models.targets.find_targets`) -> its set; None: it stays dense, and so is
            no target.

    Raises:
        UserError: a value is neither a set nor None, or no matrix has a set.
    """

    sets: Mapping[str, ConstraintSet | None]

    def __post_init__(self) -> None:
        for name, own in self.sets.items():
            if own is not None and not isinstance(own, ConstraintSet):
                raise UserError(
                    f"{name}: {own!r} is not a constraint set; give one such as NM(2, 4), or None for a matrix that "
                    "stays dense"
                )
        if not self.sparse:
            raise UserError(
                f"the allocation leaves all of its {len(self.sets)} matrices dense, so there is nothing to train them "
                "into: give at least one a set, or train without this callback"
            )

    def __str__(self) -> str:
        """Return the sets with their numbers of matrices: `2:4 int4 (30), int8 (4), dense (2)`."""
        counts = Counter(map(text_of, self.sets.values()))
        ordered = sorted(counts.items(), key=lambda item: (item[0] == DENSE, -item[1], item[0]))
        return ", ".join(f"{text} ({count})" for text, count in ordered)

    @property
    def sparse(self) -> dict[str, ConstraintSet]:
        """Name -> set of the matrices that have one."""
        return {name: own for name, own in self.sets.items() if own is not None}

    @property
    def dense(self) -> tuple[str, ...]:
        """The names of the matrices that stay dense."""
        return tuple(name for name, own in self.sets.items() if own is None)

    def refuse_other_targets(self, names: Iterable[str]) -> None:
        """Raise UserError, naming one, unless the allocation's matrices are exactly those named."""
        names = set(names)
        if missing := sorted(names - self.sets.keys()):
            raise UserError(
                f"the allocation has no entry for {len(missing)} of {len(names)} matrices, first {missing[0]}: give "
                "each a set, None to keep it dense, or leave it out of the targets by `exclude`"
            )
        if strange := sorted(self.sets.keys() - names):
            raise UserError(
                f"the allocation names {len(strange)} matrices that are no targets of this model, first {strange[0]}: "
                "names are those of nxm.find_targets with the same `include` and `exclude`"
            )


def text_of(constraint: ConstraintSet | None) -> str:
    """Return a set's text; `dense` for None."""
    return DENSE if constraint is None else str(constraint)


def sets_by_name(
    constraint: ConstraintSet | Mapping[str, ConstraintSet], names: Iterable[str]
) -> dict[str, ConstraintSet]:
    """Return name -> set: one set for all, or each matrix's own."""
    return {name: constraint if isinstance(constraint, ConstraintSet) else constraint[name] for name in names}
