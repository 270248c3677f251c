"""Tables, figures and pages, made from results files alone.

A figure is a module of `nxm.report.figures` with `draw(evidence) -> matplotlib.figure.Figure`; a table is a module of
`nxm.report.tables` with `make(evidence) -> nxm.report.table.Table`. Adding one is adding a module: `known` lists the
modules of the packages. Pages are rendered by `nxm.report.page`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Literal

from nxm.errors import UserError

Kind = Literal["figures", "tables"]


def known(kind: Kind) -> list[str]:
    """Return the names of all figures or all tables."""
    package = importlib.import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(kind: Kind, name: str) -> ModuleType:
    """Return the module of a figure or table. Raises UserError for an unknown name, listing those that exist."""
    if name not in known(kind):
        raise UserError(f"there is no '{name}' among the {kind}; known: {', '.join(known(kind))}")
    return importlib.import_module(f"{__name__}.{kind}.{name}")
