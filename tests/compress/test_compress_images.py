"""`compress_model` on images end to end: ViT and DeiT, a folder and a table, exports, a kill, other images."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import nxm
from nxm.compress import plan as planning
from nxm.compress import run, train
from nxm.errors import UserError
from tiny_models import NO_OPENVINO
from user_data import save_tiny, write_csv
from user_images import picture, save_vision, write_folder

FAST = {"dense_epochs": 2, "epochs": 2, "batch_size": 8, "dense_learning_rate": 3e-3, "learning_rate": 3e-3}


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
    return nxm.compress_model(model, data, **({"out": folder / "out"} | FAST | options))


def write_table(folder: Path) -> Path:
    """Write pictures and a table that names them."""
    pictures = write_folder(folder / "photos")
    names = sorted(path.relative_to(folder).as_posix() for path in pictures.rglob("*.png"))
    return write_csv(folder / "data.csv", pd.DataFrame({"path": names, "label": [n.split("/")[1] for n in names]}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> run.Outcome:
    """A run without a kill: a ViT on a folder; its model and data lie next to its output."""
    folder = tmp_path_factory.mktemp("whole")
    return compress(folder, save_vision(folder / "model"), write_folder(folder / "pets"), export="onnx", max_drop=0.0)


@pytest.mark.situation("nxm compress", "images: ViT, DeiT, with ONNX and OpenVINO in fp32 and 8 bits", "works")
def test_a_vit_is_fine_tuned_compressed_checked_and_exported(whole):
    report = whole.report
    assert (report["task"], report["metric"], report["classes"]) == (
        "image-classification",
        "accuracy",
        ["blue", "red"],
    )
    assert report["rows"] == {"train": 32, "held_out": 8}
    assert report["check"]["compared"]
    assert report["check"]["matrices"] == report["check"]["obeying"] == 12
    assert report["scores"]["after"]["value"] == report["export"]["score"] == 100.0  # the colour is easily learned
    assert whole.passed
    forms = {"dense, PyTorch fp32", "compressed, PyTorch fp32", "exported, onnx"}
    assert {(row["form"], row["batch"]) for row in report["latency"]} == set(itertools.product(forms, (1, 8)))
    assert "images of 32 x 32 pixels" in (whole.folder / "report.md").read_text()


def test_the_saved_model_answers_like_the_exported_one_with_transformers_alone(whole):
    model = AutoModelForImageClassification.from_pretrained(whole.model)
    processor = AutoImageProcessor.from_pretrained(whole.model, backend="pil")
    pixels = processor(images=[picture(is_red, 99) for is_red in (True, False, True)], return_tensors="pt")
    with torch.no_grad():
        logits = model(**pixels).logits
    assert [model.config.id2label[i] for i in logits.argmax(1).tolist()] == ["red", "blue", "red"]
    session = onnxruntime.InferenceSession(whole.folder / "export.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixel_values": pixels["pixel_values"].numpy()})
    assert torch.allclose(torch.from_numpy(found), logits, atol=1e-4)


@pytest.mark.parametrize("saves", [3, 13])  # in the fine-tuning of 8 steps; in the compression
def test_a_killed_run_goes_on_and_ends_with_the_same_weights_and_scores(saves, whole, tmp_path, monkeypatch):
    model, data = (whole.folder.parent / name for name in ("model", "pets"))
    honest, count = train.MarkComplete.on_save, itertools.count(1)

    def dies(self, *args, **kwargs):
        if next(count) == saves:
            raise KeyboardInterrupt  # before the checkpoint is marked complete
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


def test_a_deit_with_its_head_is_compressed_on_a_table_and_knows_its_images(tmp_path, capsys):
    data = write_table(tmp_path)
    model = save_vision(tmp_path / "model", ["red", "blue"], kind="deit")
    outcome = compress(tmp_path, model, data, to="2:4 int8", export="onnx-int8")
    assert outcome.plan.dense_epochs == 0
    assert "has a head for these labels: start and teacher" in capsys.readouterr().out
    assert "score" in outcome.report["export"]
    assert outcome.report["size"]["packed_bytes"] is None
    assert outcome.report["check"]["obeying"] == 12
    if not NO_OPENVINO:
        again = compress(tmp_path, model, data, to="2:4 int8", export="openvino-int8").report
        assert again["scores"] == outcome.report["scores"]  # nothing was trained
        assert "score" in again["export"]
    picture(True, 77).save(tmp_path / "photos" / "red" / "1.png")
    with pytest.raises(UserError, match=r"was begun with sha256 of the images = \w{12}\.\.\., now"):
        compress(tmp_path, model, data, to="2:4 int8")


@pytest.mark.situation("nxm compress", "an export that models of images do not have", "refused")
def test_what_images_cannot_have_is_refused_before_anything_is_written(tmp_path):
    data, model = write_table(tmp_path), save_vision(tmp_path / "model")
    for options, message in (
        (
            {"export": "packed", "to": "int8"},
            "--export packed: is for models of texts; images have onnx, onnx-int8, openvino, openvino-int8",
        ),
        ({"export": "torch-int8"}, "--export torch-int8: is for models of texts"),
        ({"max_length": 64}, "max_length = 64: is for texts"),
        ({"metric": "spearman"}, "metric = 'spearman': image-classification"),
        ({"budget": "5s"}, "budget: 5 s are not enough"),
    ):
        with pytest.raises(UserError, match=message):
            compress(tmp_path, model, data, **options)
    with pytest.raises(UserError, match="reads input_ids, the data are images"):
        compress(tmp_path, save_tiny(tmp_path / "bert"), data)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_images_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", None)
    outcome = compress(tmp_path, save_vision(tmp_path / "model"), write_folder(tmp_path / "pets"), dry_run=True)
    assert (outcome.plan.dense_epochs, outcome.plan.epochs, outcome.report) == (2, 2, None)
    assert not (tmp_path / "out").exists()
