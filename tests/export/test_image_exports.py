"""Exports of models of images: outputs, scores, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from typer.testing import CliRunner

from nxm import NM, UserError, find_targets, load
from nxm.cli import app
from nxm.export.formats import export
from nxm.export.images import load_with_processor, make_image_judge, read_images, read_labelled_images
from nxm.export.onnx import open_onnx
from nxm.sets.saved import write_pattern
from tiny_models import MODELS, NO_OPENVINO, save_model
from user_images import picture, save_vision, write_folder

TWO_OF_FOUR = NM(2, 4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "photos", rows=12)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A folder with a 2:4 ViT for the classes of the photos, and its processor."""
    folder = save_vision(tmp_path_factory.mktemp("models") / "vit", ["red", "blue"])
    model = load(folder)
    with torch.no_grad():
        for W in find_targets(model).values():
            W.copy_(TWO_OF_FOUR.project(W).Z)
    write_pattern(model.config, TWO_OF_FOUR, find_targets(model))
    model.save_pretrained(folder)
    return folder


@pytest.mark.situation("export", "a model of images (ViT) to onnx and onnx-int8, scored on images by class", "works")
@pytest.mark.parametrize(("to", "error"), [("onnx", 1e-4), ("onnx-int8", 0.1)])
def test_an_onnx_file_answers_like_the_model_for_any_number_of_images(to, error, vit, photos, tmp_path, capsys):
    out = tmp_path / "vit.onnx"
    export(vit, out, to, data=photos, max_drop=100.0)
    assert "accuracy on 12 images of" in capsys.readouterr().out
    program, model = open_onnx(out), load(vit)
    processor = AutoImageProcessor.from_pretrained(vit, backend="pil")
    for count in (1, 3):
        pixels = processor([picture(True, seed) for seed in range(count)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits.numpy()
        found = program({"pixel_values": pixels})["logits"]
        assert found.shape == (count, 2)
        assert np.linalg.norm(found - expected) <= error * np.linalg.norm(expected)


@pytest.mark.situation("export", "a model of images (ViT) to openvino and openvino-int8", "works")
@pytest.mark.skipif(NO_OPENVINO, reason="OpenVINO is not installed")
@pytest.mark.parametrize("to", ["openvino", "openvino-int8"])
def test_an_openvino_folder_answers_like_the_model(to, vit, photos, tmp_path):
    from nxm.export.openvino import open_openvino

    command = ["export", str(vit), str(tmp_path / "vit"), "--to", to, "--images", str(photos), "--data", str(photos)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "outputs agree with the model's on 12 examples" in done.output
    program, trained = open_openvino(tmp_path / "vit"), load_with_processor(vit)
    inputs = trained.encode([picture(True, 1)])
    with torch.no_grad():
        expected = trained.model(**inputs).logits.numpy()
    assert np.linalg.norm(program(inputs)["logits"] - expected) <= 0.1 * np.linalg.norm(expected)
    if to == "openvino-int8":
        assert program.integer_matrices == 13  # 12 of the blocks, and the head


def test_the_judge_counts_right_answers_and_refuses_a_loss(vit, photos):
    trained = load_with_processor(vit)
    data = read_labelled_images(photos, trained)
    assert [trained.model.config.id2label[label] for label in data.labels] == ["blue"] * 6 + ["red"] * 6

    def answer(right: int):
        """Answer all images rightly but for the last ones."""
        chosen = [label if i < right else 1 - label for i, label in enumerate(data.labels.tolist())]

        def logits(inputs):
            return {"logits": np.eye(2)[[chosen.pop(0) for _ in inputs["pixel_values"]]]}

        return logits

    flawless = answer(12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nxm.export.images.outputs", lambda model, inputs: flawless(inputs))
        judge = make_image_judge(trained, data, max_drop=10.0)
    judge(answer(11))  # 8.3 points lower
    with pytest.raises(UserError, match=r"accuracy on 12 images.* is 83\.33 for the export and 100\.00 for the model"):
        judge(answer(10))
    with pytest.raises(UserError, match="has no logits but pooled"):
        judge(lambda inputs: {"pooled": np.zeros(1)})


@pytest.mark.situation("export", "a model of images to torch-int8, torch-2of4 or onnx-weight-only", "refused")
@pytest.mark.situation("export", "openvino-int8 of a model of images without images to measure ranges on", "refused")
@pytest.mark.situation("export", "images that are damaged, of a class that the model lacks, or of one class", "refused")
def test_what_images_cannot_have_is_refused_before_anything_is_written(vit, photos, tmp_path):
    out = tmp_path / "out"
    stranger = write_folder(tmp_path / "stranger", rows=2, classes=("blue", "green"))
    lonely = write_folder(tmp_path / "lonely", rows=2, classes=("blue", "blue"))
    broken = write_folder(tmp_path / "broken", rows=2)
    (broken / "red" / "1.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for to in ("torch-int8", "torch-2of4", "onnx-weight-only"):
        with pytest.raises(UserError, match=f"--to {to} is for models of texts; models of images have onnx, onnx-int8"):
            export(vit, out, to)
    for options, message in (
        ({"texts": photos}, "--texts is for models of texts"),
        ({"data": photos, "task": "stsb"}, "--task is for texts"),
        ({"to": "openvino-int8"}, "give a folder of images like those that the model will see with --images"),
        ({"to": "packed", "images": photos}, "--images is for exports whose outputs are compared"),
        ({"images": tmp_path / "empty"}, "empty: has no image"),
        ({"images": tmp_path / "absent"}, "absent: there is no such folder of images"),
        ({"images": broken}, r"red/1\.png: is no image that Pillow reads"),
        ({"data": stranger}, r"green/1\.png: --data for a model of images .* each class of the model: red, blue"),
        ({"data": photos / "red"}, "--data for a model of images is a folder with one sub-folder"),
        ({"data": lonely, "max_drop": 1.0}, "has images of one class alone"),
    ):
        with pytest.raises(UserError, match=message):
            export(vit, out, **({"to": "onnx"} | options))
    bare = save_vision(tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="bare: the image processor cannot be read"):
        export(bare, out, "onnx")
    with pytest.raises(UserError, match="its image processor makes images of 16 x 16 pixels, its model reads 32 x 32"):
        export(save_vision(tmp_path / "small", size=16), out, "onnx")
    with pytest.raises(UserError, match="--images is for models that read images"):
        export(save_model(tmp_path / "bert", MODELS["bert"]()), out, "onnx", images=photos)
    assert not out.exists()


def test_images_are_read_in_the_order_of_their_paths(tmp_path):
    for name, value in (("b/1.png", 20), ("a/2.jpg", 10), ("c.txt", 0), ("b/3.png", 30)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (8, 8), (value, value, value)).save(path)
    assert [image.getpixel((0, 0))[0] for image in read_images(tmp_path)] == [10, 20, 30]
    assert [image.getpixel((0, 0))[0] for image in read_images(tmp_path, most=2)] == [10, 20]
