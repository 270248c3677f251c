"""The paper's own study, cut down, with every stage, from a stand-in Hub under the real repository names."""

from __future__ import annotations

import sys

import pytest
from ruamel.yaml import YAML

from copied import call, copy_repository
from hub_server import HubServer, make_glue, make_tiny_bert, make_tiny_distilbert
from nxm.glue import TASKS
from nxm.results import read_study

pytestmark = pytest.mark.pipeline
METHODS = {"dense", "asp", "admm_unstructured", "nxm", "distil", "distil_nxm"}


def cut_down(profile: dict, task: str) -> dict:
    """One task, one value of each that is searched but two of rho, and an ADMM iteration an epoch: 64 rows are few."""
    for searched in profile["grid"]["large"].values():
        for name, values in searched.items():
            searched[name] = values[:2] if name == "rho" else values[-1:]
    for block in ("admm_unstructured", "nxm", "distil_nxm"):
        profile[block][task] |= {"interval": "epoch", "rho": 0.5}  # a stand-in that the grid does not try
    return profile | {"tasks": [task]}


def test_the_papers_study_runs_to_its_tables_from_the_hub(tmp_path):
    hub, folder = tmp_path / "hub", tmp_path / "repository"
    make_tiny_bert(hub / "models/google-bert/bert-base-uncased")
    make_tiny_distilbert(hub / "models/distilbert/distilbert-base-uncased")
    make_glue(hub / "datasets/nyu-mll/glue", [TASKS["mnli"]], 64, hub=True)
    copy_repository(folder)
    yaml, path = YAML(), folder / "profiles/paper.yaml"
    profile = cut_down(yaml.load(path), "mnli")
    yaml.dump(profile, path)

    with HubServer(hub) as server:
        variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        variables["HF_HUB_OFFLINE"] = "0"  # conftest forbids the network to all other tests
        done = call(folder, sys.executable, "-m", "nxm.launch", "--jobs", "2", "paper", **variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    results = read_study(folder / "results", "paper")
    final = {run.method: run for run in results if run.cell is None}
    assert set(final) == METHODS
    assert final["dense"].provenance.weights == "google-bert/bert-base-uncased (hub)"
    assert final["distil"].provenance.weights == "distilbert/distilbert-base-uncased (hub)"
    assert all(set(run.metrics) == {"accuracy_m", "accuracy_mm"} for run in results)
    assert len([run for run in results if run.cell is not None]) == 1 + 1 + 2 + 2
    for method in ("admm_unstructured", "nxm"):  # chosen on dev, as the paper does
        tried = {run.hyperparameters["rho"]: run.metric.value for run in results if run.method == method and run.cell}
        assert set(tried) == {4e-4, 1e-3}
        assert tried[final[method].hyperparameters["rho"]] == max(tried.values())
        assert final[method].hyperparameters["recipe"] == "paper"
        assert final[method].admm.frozen_at_step is None
    table = (folder / "paper_tables/paper/table1.md").read_text()
    assert "MNLI-m" in table
    assert "MNLI-mm" in table
