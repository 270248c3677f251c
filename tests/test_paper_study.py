"""The paper's own study, cut down, with every stage, from a stand-in Hub under the real repository names."""

from __future__ import annotations

import sys
from itertools import product

import pytest
from ruamel.yaml import YAML

from copied import call, copy_repository
from hub_server import HubServer, make_glue, make_tiny_bert, make_tiny_distilbert
from nxm.data.tasks import TASKS
from nxm.report.facts import TASKS as TABLE_NAMES
from nxm.study.results import read_study

METHODS = {"dense", "asp", "admm_unstructured", "nxm", "distil", "distil_nxm"}


def cut_down(profile: dict, tasks: list[str]) -> dict:
    """One value of each that is searched but two of large tasks' rho; an ADMM iteration an epoch: 64 rows are few.

    Of the figures, the one that is drawn from the grid's cells.
    """
    for group, values_of_rho in (("large", 2), ("small", 1)):
        for searched in profile["grid"][group].values():
            for name, values in searched.items():
                searched[name] = values[:values_of_rho] if name == "rho" else values[-1:]
    for block in ("admm_unstructured", "nxm", "distil_nxm"):
        for task in tasks:
            profile[block][task] |= {"interval": "epoch", "rho": 0.5}  # a stand-in that the grid does not try
    return profile | {"tasks": tasks, "figures": ["figure3"]}


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param(["mnli", "stsb"], marks=[pytest.mark.pipeline, pytest.mark.timeout(1800)]),
        pytest.param(list(TASKS), marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
    ids=",".join,
)
def test_the_papers_study_runs_to_its_tables_from_the_hub(tmp_path, tasks):
    hub, folder = tmp_path / "hub", tmp_path / "repository"
    make_tiny_bert(hub / "models/google-bert/bert-base-uncased")
    make_tiny_distilbert(hub / "models/distilbert/distilbert-base-uncased")
    make_glue(hub / "datasets/nyu-mll/glue", [TASKS[task] for task in tasks], 64, hub=True)
    copy_repository(folder)
    yaml, path = YAML(), folder / "profiles/paper.yaml"
    profile = cut_down(yaml.load(path), tasks)
    yaml.dump(profile, path)

    with HubServer(hub) as server:
        variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        variables["HF_HUB_OFFLINE"] = "0"  # conftest forbids the network to all other tests
        done = call(folder, sys.executable, "-m", "nxm.launch.schedule", "--jobs", "2", "paper", **variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    results = read_study(folder / "results", "paper")
    final = {(run.task, run.method): run for run in results if run.cell is None}
    assert set(final) == set(product(tasks, METHODS))
    for (task, method), run in final.items():
        student = method.startswith("distil")
        weights = "distilbert/distilbert-base-uncased" if student else "google-bert/bert-base-uncased"
        assert run.provenance.weights == f"{weights} (hub)"
        assert run.metric.name == TASKS[task].metric
        if task == "mnli":
            assert set(run.metrics) == {"accuracy_m", "accuracy_mm"}
        if run.admm is not None:
            assert run.hyperparameters["recipe"] == "paper"
            assert run.admm.frozen_at_step is None
    for task, method in product(
        tasks, ("dense", "asp", "admm_unstructured", "nxm")
    ):  # chosen on dev, as the paper does
        cells = [run for run in results if (run.task, run.method) == (task, method) and run.cell]
        if method in ("dense", "asp"):
            assert len(cells) == 1
            continue
        tried = {run.hyperparameters["rho"]: run.metric.value for run in cells}
        assert set(tried) == ({4e-4, 1e-3} if TASKS[task].group == "large" else {3e-3})
        assert tried[final[task, method].hyperparameters["rho"]] == max(tried.values())
    table = (folder / "paper_tables/paper/table1.md").read_text()
    for task in tasks:
        for label in ("MNLI-m", "MNLI-mm") if task == "mnli" else (TABLE_NAMES[task],):
            assert label in table
