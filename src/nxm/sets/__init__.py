"""Constraint sets, one module per set: the targets' weights end in one of them.

A new set is a new module here; nothing else is edited. Its kind, under which a saved model's config.json names it, is
the module's name.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from nxm.errors import UserError

DENSE = "dense"  # the text of no set, in allocations

if TYPE_CHECKING:
    from nxm.sets.base import ConstraintSet


@cache
def all_sets() -> dict[str, type[ConstraintSet]]:
    """Return every constraint set by its kind: the concrete `ConstraintSet` that a module of this package defines."""
    from nxm.sets.base import ConstraintSet  # loads torch

    sets: dict[str, type[ConstraintSet]] = {}
    for module in pkgutil.iter_modules(__path__):
        name = f"{__name__}.{module.name}"
        for cls in vars(importlib.import_module(name)).values():
            defined_here = inspect.isclass(cls) and cls.__module__ == name
            if defined_here and issubclass(cls, ConstraintSet) and not inspect.isabstract(cls):
                assert module.name not in sets, f"{name} defines two constraint sets: one module per set"
                sets[module.name] = cls
    return sets


def parse_set(text: str) -> ConstraintSet:
    """Read a constraint set from its text, such as "2:4" or "50 %".

    Raises:
        UserError: the text is in no set's notation, or no such set exists.
    """
    for cls in all_sets().values():
        constraint = cls.parse(text)
        if constraint is not None:
            return constraint
    notations = "; ".join(cls.notation for cls in all_sets().values())
    raise UserError(f"'{text}' is not a constraint set; known notations: {notations}")


def kind_of(constraint: ConstraintSet) -> str:
    """Return the kind of a set. Raises UserError for a class that is not in this package."""
    for kind, cls in all_sets().items():
        if type(constraint) is cls:
            return kind
    raise UserError(
        f"{type(constraint).__name__} is not a constraint set of nxm.sets, so config.json could not name it: "
        "put its module there"
    )
