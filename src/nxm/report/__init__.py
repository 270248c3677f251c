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
from nxm.study.results import (
    Failure,
    Result,
    bootstrap_path,
    floor_path,
    read_benchmark,
    read_failures,
    read_floor,
    read_measurements,
    read_predictions,
    read_study,
)
from nxm.study.settings import Study, load_study

Kind = Literal["figures", "tables"]


@dataclass(frozen=True)
class Evidence:
    """All that tables and figures know: a study's name, its runs, its benchmark (None: not measured).

    `bootstrap` holds, by task and method, the scores of each draw of `nxm.study.bootstrap`; `failures` the grid's
    cells that
    could not be trained; `selection` says what the hyper-parameters were chosen by
    (`nxm.study.settings.Study.selection`);
    `matrices` and `deployment` are the files of the stages of these names, one a device; `variants` names the
    ablation's, as `nxm_plus/no-teacher`, in the order in which they are stated, each with what it is compared with;
    `floors` holds, by column, what the best constant answer scores; `variant_tasks` the tasks of those variants that do
    not run on all.
    """

    study: str
    results: list[Result]
    benchmark: dict[str, Any] | None
    bootstrap: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    selection: str = "params"
    matrices: list[dict[str, Any]] = field(default_factory=list)
    deployment: list[dict[str, Any]] = field(default_factory=list)
    variants: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    variant_tasks: dict[str, list[str]] = field(default_factory=dict)


def read_evidence(root: str | Path, study: str) -> Evidence:
    """Read a study's results below the repository's `root`: those that its params.yaml names, if it has one.

    (DVC leaves the files of a seed or cell in place that was taken out of params.yaml.)

    Raises:
        UserError: a file is no result, or params.yaml is none.
    """
    root = Path(root)
    results, failures = read_study(root / "results", study), read_failures(root / "results", study)
    settings = _settings(root, study)
    if settings is not None:
        results = [run for run in results if _belongs(settings, run)]
        failures = [run for run in failures if _belongs(settings, run)]
    tasks = sorted({result.task for result in results})
    paths = {task: bootstrap_path(root, study, task) for task in tasks}
    floors = [read_floor(path) for task in tasks if (path := floor_path(root, study, task)).exists()]
    return Evidence(
        study,
        results,
        read_benchmark(root / "results" / study / "benchmark.json"),
        {task: read_predictions(path) for task, path in paths.items() if path.exists()},
        failures,
        settings.selection if settings is not None else "params",
        read_measurements(root / "results" / study / "matrices"),
        read_measurements(root / "results" / study / "deployment"),
        _variants(settings) if settings is not None else {},
        {column: score for floor in floors for column, score in floor.items()},
        _variant_tasks(settings) if settings is not None else {},
    )


def _variants(settings: Study) -> dict[str, str]:
    names = {name: f"{variant.method}/{name}" for name, variant in settings.ablation.items()}
    return {
        names[name]: variant.method if variant.against is None else names.get(variant.against, variant.against)
        for name, variant in settings.ablation.items()
    }


def _variant_tasks(settings: Study) -> dict[str, list[str]]:
    return {f"{own.method}/{name}": own.tasks for name, own in settings.ablation.items() if own.tasks is not None}


def _settings(root: Path, study: str) -> Study | None:
    for path in (root / "studies" / study / "params.yaml", root / "params.yaml"):
        if path.is_file() and (settings := load_study(path)).study == study:
            return settings
    return None


def _belongs(settings: Study, run: Result | Failure) -> bool:
    if run.task not in settings.tasks:
        return False
    if run.cell is None:
        return run.seed in settings.seeds and run.method in settings.methods
    cells = {(cell.task, cell.method, cell.cell, cell.seed) for cell in (settings.cells | settings.plus_cells).values()}
    if (run.task, run.method, run.cell, run.seed) in cells:
        return True
    rhos = settings.sweep.paper_rho if run.method == "nxm_paper" else settings.sweep.rho
    swept = run.method in ("nxm", "nxm_paper") and run.cell in {f"rho{rho}" for rho in rhos}
    return swept and run.task in settings.sweep.tasks and run.seed in settings.sweep.seeds


def known(kind: Kind) -> list[str]:
    """The names of all figures or all tables."""
    package = importlib.import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(kind: Kind, name: str) -> ModuleType:
    """The module of a figure or table. Raises UserError for a name that there is not, listing those that there are."""
    if name not in known(kind):
        raise UserError(f"there is no '{name}' among the {kind}; known: {', '.join(known(kind))}")
    return importlib.import_module(f"{__name__}.{kind}.{name}")
