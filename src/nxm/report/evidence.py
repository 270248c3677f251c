"""All that tables and figures know: a study's results, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nxm.study.plan import trainings
from nxm.study.results import (
    Failure,
    Result,
    bootstrap_path,
    floor_path,
    place_of,
    read_benchmark,
    read_failures,
    read_floor,
    read_measurements,
    read_predictions,
    read_study,
)
from nxm.study.settings import Study, load_study


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
    sweep: frozenset[str] = frozenset()
    settings: Study | None = None


def read_evidence(folder: str | Path) -> Evidence:
    """Read the results of the study in a folder: those that its params.yaml names, if it has one.

    (DVC leaves the files of a seed or variant in place that was taken out of params.yaml.)

    Raises:
        UserError: a file is no result, or params.yaml is none.
    """
    folder = Path(folder)
    settings = load_study(folder / "params.yaml") if (folder / "params.yaml").is_file() else None
    results, failures = read_study(folder), read_failures(folder)
    if settings is not None:
        planned = set(trainings(settings))
        results = [record for record in results if place_of(record) in planned]
        failures = [record for record in failures if place_of(record) in planned]
    tasks = sorted({result.task for result in results})
    paths = {task: bootstrap_path(folder, task) for task in tasks}
    floors = [read_floor(path) for task in tasks if (path := floor_path(folder, task)).exists()]
    return Evidence(
        settings.study if settings is not None else folder.absolute().name,
        results,
        read_benchmark(folder / "results/benchmark.json"),
        {task: read_predictions(path) for task, path in paths.items() if path.exists()},
        failures,
        (settings.search.by if settings is not None else None) or "params",
        read_measurements(folder / "results/matrices"),
        read_measurements(folder / "results/deployment"),
        _variants(settings) if settings is not None else {},
        {column: score for floor in floors for column, score in floor.items()},
        _variant_tasks(settings) if settings is not None else {},
        frozenset(_sweep(settings)) if settings is not None else frozenset(),
        settings,
    )


def _variants(settings: Study) -> dict[str, str]:
    against = {name: settings.against(name) for name in settings.variants}
    return {name: rival for name, rival in against.items() if rival is not None}


def _variant_tasks(settings: Study) -> dict[str, list[str]]:
    return {name: own.tasks for name, own in settings.variants.items() if own.tasks is not None and own.against}


def _sweep(settings: Study) -> list[str]:
    return [name for name in settings.variants if settings.against(name) is None]
