"""`compress_model` on questions end to end: windows, questions without an answer, an export, a kill."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering

import nxm
from nxm.compress import plan as planning
from nxm.compress import run, train
from user_data import questions, save_tiny, write_lines

FAST = {"dense_epochs": 1, "epochs": 2, "batch_size": 16, "dense_learning_rate": 3e-3, "learning_rate": 3e-3}


def timer(call, device) -> float:
    """Run the call and return a second, whatever the machine."""
    call()
    return 1.0


@pytest.fixture(scope="module", autouse=True)
def _steady_clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning.measure_speed, "__defaults__", (timer,))
        patch.setattr("nxm.compress.speed.measure.__defaults__", (timer,))
        patch.setattr("nxm.compress.speed.REPEATS", 2)
        yield


def compress(folder: Path, model: Path, data: Path, **options: Any) -> run.Outcome:
    return nxm.compress_model(model, data, **({"out": folder / "out", "max_length": 16} | FAST | options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> run.Outcome:
    """A run without a kill: a BERT without a head for answers; its model and data lie next to its output."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_lines(folder / "data.jsonl", questions(40, unanswerable=True))
    return compress(folder, save_tiny(folder / "model"), data, export="onnx")


def test_answers_are_fine_tuned_compressed_checked_and_exported(whole):
    report = whole.report
    assert (report["task"], report["metric"], report["metrics"]) == ("question-answering", "f1", ["f1", "exact_match"])
    assert report["rows"] == {"train": 33, "held_out": 7}  # a fifth of 27 with an answer, and of 13 without
    assert report["check"]["compared"]
    assert report["check"]["matrices"] == report["check"]["obeying"] == 12
    assert report["export"]["score"] == pytest.approx(report["scores"]["after"]["value"])
    assert any("contexts are read in windows of 16 tokens" in note for note in report["notes"])
    assert "AutoModelForQuestionAnswering" in (whole.model / "README.md").read_text()
    assert AutoModelForQuestionAnswering.from_pretrained(whole.model).config.num_labels == 2


def test_a_killed_run_goes_on_and_ends_with_the_same_weights_and_scores(whole, tmp_path, monkeypatch):
    model, data = (whole.folder.parent / name for name in ("model", "data.jsonl"))
    honest, count = train.MarkComplete.on_save, itertools.count(1)

    def dies(self, *args, **kwargs):
        if next(count) == 5:
            raise KeyboardInterrupt  # in the compression, before the checkpoint is marked complete
        honest(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train.MarkComplete, "on_save", dies)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path, model, data)
    again = compress(tmp_path, model, data)
    for part in ("dense", "model"):
        tensors, others = (load_file(folder / part / "model.safetensors") for folder in (whole.folder, again.folder))
        assert all(torch.equal(W, others[name]) for name, W in tensors.items())
    for part in ("scores", "check", "size"):
        assert whole.report[part] == again.report[part]


def test_a_model_with_a_head_for_answers_is_start_and_teacher(tmp_path):
    data = write_lines(tmp_path / "data.jsonl", questions(30))
    outcome = compress(tmp_path, save_tiny(tmp_path / "model", "bert-qa"), data, dry_run=True)
    assert (outcome.plan.dense_epochs, outcome.plan.epochs) == (0, 2)
