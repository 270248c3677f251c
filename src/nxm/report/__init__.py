"""Tables and figures, one module each, made from results files alone.

A figure is a module of `nxm.report.figures` with `draw(evidence) -> matplotlib.figure.Figure`; a table is a module of
`nxm.report.tables` with `make(evidence) -> nxm.report.table.Table`. Adding one is adding a module: the names are found
by looking into the packages.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from nxm.errors import UserError
from nxm.results import (
    Failure,
    Result,
    bootstrap_path,
    read_benchmark,
    read_failures,
    read_predictions,
    read_study,
)

Kind = Literal["figures", "tables"]


@dataclass(frozen=True)
class Evidence:
    """All that tables and figures know: a study's name, its runs, its benchmark (None: not measured).

    `bootstrap` holds, by task and method, the score in each draw of `nxm.bootstrap`; `failures` the grid's cells that
    could not be trained.
    """

    study: str
    results: list[Result]
    benchmark: dict[str, Any] | None
    bootstrap: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def read_evidence(root: str | Path, study: str) -> Evidence:
    """Read a study's results below the repository's `root`. Raises UserError for a file that is no result."""
    results_dir = Path(root) / "results"
    results = read_study(results_dir, study)
    paths = {task: bootstrap_path(root, study, task) for task in sorted({result.task for result in results})}
    return Evidence(
        study,
        results,
        read_benchmark(results_dir / study / "benchmark.json"),
        {task: read_predictions(path) for task, path in paths.items() if path.exists()},
        read_failures(results_dir, study),
    )


def known(kind: Kind) -> list[str]:
    """The names of all figures or all tables."""
    package = importlib.import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(kind: Kind, name: str) -> ModuleType:
    """The module of a figure or table. Raises UserError for a name that there is not, listing those that there are."""
    if name not in known(kind):
        raise UserError(f"there is no '{name}' among the {kind}; known: {', '.join(known(kind))}")
    return importlib.import_module(f"{__name__}.{kind}.{name}")
