"""Adding a task is one entry of TASKS: it is then fetched, prepared, scored and labelled."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hub_server import make_glue, make_tiny_bert
from nxm.data.fetch import fetch
from nxm.data.prepare import load_prepared, prepare
from nxm.data.settings import Prepare, Source
from nxm.data.tasks import TASKS, Task, compute_metrics, get_task, paper_metric


@pytest.fixture
def wnli(monkeypatch) -> Task:
    task = Task(
        "wnli",
        "WNLI",
        ("sentence1", "sentence2"),
        ("not_entailment", "entailment"),
        {"train": 635, "validation": 71},
        "accuracy",
        "small",
    )
    monkeypatch.setitem(TASKS, task.name, task)
    return task


def test_a_new_task_needs_its_entry_alone(wnli, tmp_path):
    make_tiny_bert(tmp_path / "weights")
    make_glue(tmp_path / "glue", [wnli], 20, hub=False)
    weights, data = (Source(source="local", name=name) for name in ("weights", "glue"))
    study = SimpleNamespace(tasks=["wnli"], weights=weights, student=Source(source="teacher"), data=data)
    fetch(study, tmp_path / "source", root=tmp_path)
    prepare("wnli", tmp_path / "source", Prepare(heldout_examples=5, max_length=32), tmp_path / "prepared")
    rows = {split: dataset.num_rows for split, dataset in load_prepared(tmp_path / "prepared").items()}
    assert rows == {"train": 15, "validation": 20, "heldout": 5}
    labels = np.array(load_prepared(tmp_path / "prepared")["validation"]["labels"])
    metrics = compute_metrics(get_task("wnli"), np.eye(2)[labels], labels)
    assert paper_metric(wnli, metrics) == pytest.approx(100.0)
    assert wnli.columns == {"wnli": "WNLI"}


def test_columns_are_those_of_the_papers_tables():
    columns = {name: label for task in TASKS.values() for name, label in task.columns.items()}
    assert list(columns) == ["mnli_m", "mnli_mm", "sst2", "qnli", "cola", "stsb", "mrpc", "rte"]
    assert columns["mnli_mm"] == "MNLI-mm"
    assert columns["stsb"] == "STS-B"
