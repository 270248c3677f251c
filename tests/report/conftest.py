"""Evidence that the tests of the report share."""

from __future__ import annotations

import numpy as np
import pytest

from nxm.report.evidence import Evidence, read_evidence
from synthetic_study import make_ablation, make_result, make_study


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study of one task and one seed."""
    folder = tmp_path_factory.mktemp("one")
    make_study(folder)
    return read_evidence(folder)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study of three tasks (MNLI among them) and two seeds."""
    folder = tmp_path_factory.mktemp("many")
    make_study(folder, "several", ("stsb", "mnli", "cola"), (1, 2))
    return read_evidence(folder)


@pytest.fixture(scope="session")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """NxM+, its rivals and three variants on two tasks with two seeds."""
    folder = tmp_path_factory.mktemp("ablation")
    make_ablation(folder, tasks=("stsb", "cola"))
    return read_evidence(folder)


@pytest.fixture(params=[0.0, -2.0])
def collapsed(request: pytest.FixtureRequest) -> Evidence:
    """NxM, and ASP with a score of 0 or less on CoLA, as after an hour of training, with bootstrap draws."""
    scores = {("cola", "nxm"): 9.0, ("cola", "asp"): request.param, ("stsb", "nxm"): 84.0, ("stsb", "asp"): 80.0}
    results = [make_result(task=task, run=run, score=score) for (task, run), score in scores.items()]
    draws = np.linspace(-3.0, 3.0, 101, dtype=np.float32)[:, None]
    bootstrap = {task: {run: scores[task, run] + draws for run in ("nxm", "asp")} for task in ("cola", "stsb")}
    return Evidence("embedded", results, None, bootstrap)
