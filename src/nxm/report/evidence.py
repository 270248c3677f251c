"""The evidence of a study: all that tables, figures and pages are made from, read once and checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    read_bench,
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
    """The results and measurements of one study.

    Attributes:
        benchmark: the file of the stage of this name; None: not measured.
        bootstrap: by task and full name, the scores of each draw of `nxm.study.bootstrap`, (draws, columns) fp32.
        failures: the trials and variants that could not be trained.
        selection: the score that chose hyper-parameters, "heldout" or "dev", or "params": nothing was chosen.
        bench, deployment: the files of the stages of these names, one per device.
        variants: the full names of variants (`nxm_plus/no-teacher`) in the order of params.yaml, each with the name of
            what it is compared with.
        floors: by column, the score of the best constant answer.
        variant_tasks: the tasks of those variants that do not run on all.
        sweep: the full names of variants that are compared with nothing.
        settings: the study's params.yaml; None without one.
    """

    study: str
    results: list[Result]
    benchmark: dict[str, Any] | None
    bootstrap: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    selection: str = "params"
    bench: list[dict[str, Any]] = field(default_factory=list)
    deployment: list[dict[str, Any]] = field(default_factory=list)
    variants: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    variant_tasks: dict[str, list[str]] = field(default_factory=dict)
    sweep: frozenset[str] = frozenset()
    settings: Study | None = None


def read_evidence(folder: str | Path) -> Evidence:
    """Read the evidence of the study in a folder; of its results those that params.yaml names, if it has one.

    (DVC leaves the files of a seed or variant in place that was taken out of params.yaml.)

    Raises:
        UserError: a file is not a valid result, or params.yaml is not valid.
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
    evidence = Evidence(
        study=folder.absolute().name,
        results=results,
        benchmark=read_benchmark(folder / "results/benchmark.json"),
        bootstrap={task: read_predictions(path) for task, path in paths.items() if path.exists()},
        failures=failures,
        bench=read_bench(folder / "results/bench"),
        deployment=read_measurements(folder / "results/deployment"),
        floors={column: score for floor in floors for column, score in floor.items()},
    )
    if settings is None:
        return evidence
    return replace(
        evidence,
        study=settings.study,
        selection=settings.search.by or "params",
        variants=_variants(settings),
        variant_tasks=_variant_tasks(settings),
        sweep=frozenset(_sweep(settings)),
        settings=settings,
    )


def _variants(settings: Study) -> dict[str, str]:
    rivals = {name: settings.against(name) for name in settings.variants}
    return {name: rival for name, rival in rivals.items() if rival is not None}


def _variant_tasks(settings: Study) -> dict[str, list[str]]:
    return {name: own.tasks for name, own in settings.variants.items() if own.tasks is not None and own.against}


def _sweep(settings: Study) -> list[str]:
    return [name for name in settings.variants if settings.against(name) is None]
