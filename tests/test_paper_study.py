"""The paper's own study, cut down, with every stage, from a stand-in Hub under the real repository names."""

from __future__ import annotations

import sys
from copy import deepcopy
from itertools import product

import pytest
from ruamel.yaml import YAML

from copied import ROOT, call, copy_repository
from hub_server import HubServer, make_glue, make_tiny_bert, make_tiny_distilbert
from nxm.data.tasks import TASKS
from nxm.report.statistics import TASKS as TABLE_NAMES
from nxm.study.results import read_study
from nxm.study.settings import parse_study
from nxm.study.studies import study_values

RUNS = {"dense", "asp", "admm_unstructured", "nxm", "distil", "distil_nxm"}


def cut_down(values: dict, tasks: list[str]) -> dict:
    """Return study.yaml with one value of each that is searched but two of large tasks' rho; 64 rows are few.

    An ADMM iteration per epoch, and of the figures the one that is drawn from the trials.
    """
    values = deepcopy(values)  # its anchors name one object in several places
    for tried in values["search"]["runs"].values():
        for group, values_of_rho in (("large", 2), ("values", 1)):
            for name, found in tried.get(group, {}).items():
                tried[group][name] = found[:values_of_rho] if name == "rho" else found[-1:]
    for run in ("admm_unstructured", "nxm", "distil_nxm"):
        values["runs"][run] |= {"interval": "epoch", "rho": 0.5}  # a stand-in that the search does not try
        values["runs"][run]["by_task"] = {}
    return values | {"tasks": tasks, "figures": ["figure3"]}


def test_the_papers_study_has_the_papers_runs():
    study = parse_study(study_values(ROOT, "paper"), "paper")
    assert set(study.runs) == RUNS
    assert (study.search.by, study.seeds, set(study.tasks)) == ("dev", [0], set(TASKS))
    assert set(study.search.runs) == {"dense", "asp", "admm_unstructured", "nxm"}
    for run, task in product(("admm_unstructured", "nxm", "distil_nxm"), study.tasks):
        assert study.run(run, task).recipe == "paper"
        assert study.run(run, task).freeze_at == 1.0


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
    path = folder / "studies/paper/study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML(typ="safe")
    yaml.dump(cut_down(yaml.load(ROOT / "studies/paper/study.yaml"), tasks), path)

    with HubServer(hub) as server:
        variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        variables["HF_HUB_OFFLINE"] = "0"  # conftest forbids the network to all other tests
        done = call(folder, sys.executable, "-m", "nxm", "repro", "paper", "--jobs", "2", **variables)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    results = read_study(folder / "studies/paper")
    final = {(result.task, result.name): result for result in results if result.whole}
    assert set(final) == set(product(tasks, RUNS))
    for (task, run), result in final.items():
        student = run.startswith("distil")
        weights = "distilbert/distilbert-base-uncased" if student else "google-bert/bert-base-uncased"
        assert result.provenance.weights == f"{weights} (hub)"
        assert result.metric.name == TASKS[task].metric
        if task == "mnli":
            assert set(result.metrics) == {"accuracy_m", "accuracy_mm"}
        assert (result.admm is None) == (run in ("dense", "asp", "distil"))
        if result.admm is not None:
            assert result.hyperparameters["recipe"] == "paper"
            assert result.admm.frozen_at_step is None
    for task, run in product(tasks, ("dense", "asp", "admm_unstructured", "nxm")):  # chosen on dev, as the paper does
        trials = [result for result in results if (result.task, result.name) == (task, run) and result.trial]
        if run in ("dense", "asp"):
            assert len(trials) == 1
            continue
        tried = {result.hyperparameters["rho"]: result.metric.value for result in trials}
        assert set(tried) == ({4e-4, 1e-3} if TASKS[task].group == "large" else {3e-3})
        assert tried[final[task, run].hyperparameters["rho"]] == max(tried.values())
    table = (folder / "studies/paper/paper_tables/table1.md").read_text(encoding="utf-8")
    for task in tasks:
        for label in ("MNLI-m", "MNLI-mm") if task == "mnli" else (TABLE_NAMES[task],):
            assert label in table
