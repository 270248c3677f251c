"""Images are found, decoded in one way, and named with file or row where they cannot be read."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from nxm.compress.encode import encode_images
from nxm.compress.examples import Examples, read_examples
from nxm.compress.model import find_model, fitting_classes, load_image_processor, load_start
from nxm.compress.prepare import Notes, read_rows
from nxm.compress.settings import IMAGES, make_settings
from nxm.compress.tables import read_held_out_split, read_table
from nxm.data import images
from nxm.data.images import decode, open_file
from nxm.errors import UserError
from nxm.export.images import image_size
from user_data import write_csv, write_lines
from user_images import picture, save_vision, write_folder

RED, BLUE = picture(True, 0), picture(False, 1)


def content(image: Image.Image, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def read(path: Path, **options: Any) -> Examples:
    return read_examples(read_table(path), make_settings({"model": "m", "train": path, **options}))


# --- layouts -------------------------------------------------------------------------------------------------------


def write_table(kind: str, folder: Path) -> Path:
    """Write six pictures, red and blue in turns, in a layout."""
    if kind == "folders":
        return write_folder(folder / "pets", rows=6)
    photos = folder / "photos"
    photos.mkdir()
    names = [f"{i}.png" for i in range(6)]
    pictures = [picture(i % 2 == 1, i) for i in range(6)]
    for name, image in zip(names, pictures, strict=True):
        image.save(photos / name)
    labels = ["blue", "red"] * 3
    frame = pd.DataFrame({"id": range(6), "image": [f"photos/{name}" for name in names], "label": labels})
    if kind == "csv":
        return write_csv(folder / "data.csv", frame)
    if kind == "jsonl":
        return write_lines(folder / "data.jsonl", frame.to_dict("records"))
    if kind == "metadata":
        write_csv(photos / "metadata.csv", pd.DataFrame({"file_name": names, "label": labels}))
        return photos
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["blue", "red"])})
    dataset = Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features)
    if kind == "parquet":
        dataset.to_parquet(folder / "data.parquet")
        return folder / "data.parquet"
    dataset.save_to_disk(folder / "data")
    return folder / "data"


@pytest.mark.situation("nxm compress", "images in a folder per class, or a column of their paths or of bytes", "works")
@pytest.mark.parametrize("kind", ["folders", "csv", "jsonl", "metadata", "parquet", "datasets"])
def test_every_layout_has_the_same_images_and_labels(kind, tmp_path):
    examples = read(write_table(kind, tmp_path))
    assert (examples.task, examples.classes) == (IMAGES, ("blue", "red"))
    expected = {(open_picture.digest, i % 2) for i, open_picture in enumerate(digests())}
    assert {(own.digest, label) for (own,), label in zip(examples.inputs, examples.targets(), strict=True)} == expected
    for (own,), label in zip(examples.inputs, examples.labels, strict=True):
        pixels = np.asarray(own.pixels()).mean(axis=(0, 1))
        assert (label == "red") == (pixels[0] > pixels[2])


def digests() -> list[images.Picture]:
    return [images.Picture("", lambda: b"", images.digest_of(picture(i % 2 == 1, i))) for i in range(6)]


def test_folders_named_like_splits_are_splits_and_else_classes(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / "data" / split, rows=4, seed=len(split))
    (tmp_path / "data" / "test").mkdir()
    picture(True, 9).save(tmp_path / "data" / "test" / "1.png")  # without a label
    table, held = read_table(tmp_path / "data"), read_held_out_split(tmp_path / "data")
    assert len(table) == 4
    assert held is not None
    assert held.place.endswith("val")
    assert table.remarks == (f"{tmp_path}/data/test is left out: it has no labels",)
    write_folder(tmp_path / "transport", classes=("train", "test"), rows=4)
    assert set(read_table(tmp_path / "transport").columns["label"]) == {"train", "test"}
    assert read_held_out_split(tmp_path / "transport") is None


def test_splits_of_a_dataset_are_read_from_the_disk(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["blue", "red"])})
    split = Dataset.from_dict({"image": [BLUE, RED], "label": [0, 1]}, features)
    DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "data")
    table = read_table(tmp_path / "data")
    assert not isinstance(table.columns["image"], list)
    held = read_held_out_split(tmp_path / "data")
    assert held is not None
    assert [cell["bytes"] for cell in held.columns["image"]] == [content(BLUE), content(RED)]


def test_other_files_in_a_class_are_counted_and_hidden_ones_are_not(tmp_path):
    folder = write_folder(tmp_path / "pets", rows=4)
    for name in (".DS_Store", "notes.txt"):
        (folder / "red" / name).write_text("x")
    (remark,) = read_table(folder).remarks
    assert remark == f"1 files are left out, since their names are none of images, first {folder}/red/notes.txt"


def test_texts_with_names_of_images_are_texts(tmp_path):
    frame = pd.DataFrame({"text": ["see a.png", "b"] * 4, "file": ["a.png", "b.png"] * 4, "label": ["x", "y"] * 4})
    examples = read(write_csv(tmp_path / "data.csv", frame))
    assert (examples.task, examples.columns.text) == ("classification", ("text",))


# --- pixels --------------------------------------------------------------------------------------------------------


def rgb(image: Image.Image, kind: str = "png") -> np.ndarray:
    return np.asarray(decode(lambda: content(image, kind), "a"))


@pytest.mark.situation("nxm compress", "greyscale, palette, CMYK, transparent, 16-bit and turned images: RGB", "works")
def test_every_mode_becomes_rgb():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(rgb(grey), np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    assert np.array_equal(rgb(deep), rgb(grey))
    solid = RED.copy()
    solid.putalpha(7)
    assert np.array_equal(rgb(solid), np.asarray(RED))
    assert np.array_equal(
        rgb(Image.fromarray(np.eye(8, dtype=bool))),
        255 * np.eye(8, dtype=np.uint8)[:, :, None] + 0 * rgb(Image.new("RGB", (8, 8))),
    )
    assert rgb(RED.convert("P")).shape == (36, 40, 3)
    cmyk = rgb(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "jpeg")
    assert cmyk.shape == (4, 4, 3)
    assert cmyk[..., 0].min() > 200 > 60 > cmyk[..., 1:].max()


def test_an_image_is_turned_upright_by_its_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stream = io.BytesIO()
    RED.save(stream, "png", exif=exif)
    found = decode(stream.getvalue, "a")
    assert found.size == (36, 40)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(RED), k=-1))


def test_images_are_equal_by_their_pixels_and_not_by_their_files(tmp_path):
    for name, image in (("a.png", RED), ("b.bmp", RED), ("c.png", BLUE)):
        image.save(tmp_path / name)
    one, same, other = (open_file(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert one == same != other
    assert len({one, same, other}) == 2
    BLUE.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: the image changed while nxm was running"):
        one.pixels()


# --- bad images ----------------------------------------------------------------------------------------------------


@pytest.mark.situation("nxm compress", "an image that is damaged, truncated, empty, huge or none", "refused")
def test_a_bad_image_is_named_with_its_file(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pets", rows=4)
    bad = folder / "red" / "x.png"
    jpeg = content(RED, "jpeg")
    for data, message in (
        (b"", r"the image is empty"),
        (b"no image at all", r"is no image that Pillow reads \(AVIF, BMP"),
        (content(RED)[:900], "the image is truncated or damaged"),
        (jpeg[: len(jpeg) // 2], "the image is truncated or damaged"),
        (content(Image.fromarray(np.ones((4, 4), np.float32)), "tiff"), r"has 32-bit numbers for pixels \(mode F\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that Pillow reads"),
    ):
        bad.write_bytes(data)
        with pytest.raises(UserError, match=rf"red/x\.png: {message}"):
            read(folder)
    RED.save(bad)
    for limit in (40 * 36, 40 * 36 - 1):
        monkeypatch.setattr(images, "MOST_PIXELS", limit)
        if limit == 40 * 36:
            assert len(read(folder)) == 5
        else:
            with pytest.raises(UserError, match=r"\.png: has more than 0 million pixels: make it smaller"):
                read(folder)


def test_pillows_own_refusal_of_a_bomb_is_named(tmp_path):
    big = tmp_path / "big.png"
    Image.new("1", (20_000, 20_000)).save(big)
    with pytest.raises(UserError, match=r"big\.png: has more than 89 million pixels"):
        open_file(big)


@pytest.mark.situation(
    "nxm compress", "a path to an image that is missing or leads out of the table's folder", "refused"
)
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("photos/none.png", "there is no file"),
        ("../outside.png", r"'\.\./outside\.png' leads out of the table's folder"),
        ("photos/../../outside.png", "leads out of the table's folder"),
        ("{outside}", "leads out of the table's folder"),
        ("https://example.org/a.png", "is an address: download the images into"),
        ("photos", "there is no file"),
        ("x" * 5000 + ".png", "there is no file"),
    ],
)
def test_a_path_that_cannot_be_read_is_named_with_its_row(cell, message, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    data = write_table("csv", inside)
    RED.save(tmp_path / "outside.png")
    frame = pd.read_csv(data)
    frame.loc[3, "image"] = cell.format(outside=tmp_path / "outside.png")
    with pytest.raises(UserError, match=rf"data\.csv: column 'image', row 4: .*{message}"):
        read(write_csv(data, frame))


def test_an_absolute_path_inside_and_a_link_of_the_user_are_read(tmp_path):
    (tmp_path / "inside").mkdir()
    data = write_table("csv", tmp_path / "inside")
    shutil.move(tmp_path / "inside" / "photos", tmp_path / "elsewhere")
    (tmp_path / "inside" / "photos").symlink_to(tmp_path / "elsewhere")
    frame = pd.read_csv(data)
    frame["image"] = [str(tmp_path / "inside" / name) for name in frame["image"]]
    assert len(read(write_csv(data, frame))) == 6


@pytest.mark.situation("nxm compress", "images of one class, or outside the folders of the classes", "refused")
def test_bad_folders_are_named(tmp_path):
    one = write_folder(tmp_path / "one", classes=("red", "red"), rows=4)
    with pytest.raises(UserError, match="every row is 'red'; classification needs at least two classes"):
        read(one)
    stray = write_folder(tmp_path / "stray", rows=4)
    RED.save(stray / "x.png")
    with pytest.raises(UserError, match=r"stray/x\.png: lies beside the folders of the classes"):
        read(stray)
    nested = write_folder(tmp_path / "nested", rows=4)
    (nested / "red" / "dark").mkdir()
    with pytest.raises(UserError, match="red/dark: is a folder in the folder of a class"):
        read(nested)
    hollow = write_folder(tmp_path / "hollow", rows=4)
    (hollow / "green").mkdir()
    with pytest.raises(UserError, match=r"hollow/green: has no image \(\.avif"):
        read(hollow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "photo"}, r"no column 'photo' \(--image\)"),
        ({"image": "image", "text": "id"}, "--image is for image-classification and does not go with --text"),
        ({"image": "image", "task": "regression"}, "does not go with --task regression"),
        ({"task": IMAGES, "text": "image"}, "has images, which --image names"),
        ({"label": "share"}, r"column 'share', row 1: 0\.5 is no class; images have classes"),
        ({"image": "id"}, "column 'id', row 1: there is no file"),
    ],
)
def test_columns_that_do_not_fit_are_named(options, message, tmp_path):
    data = write_table("csv", tmp_path)
    with pytest.raises(UserError, match=message):
        read(write_csv(data, pd.read_csv(data).assign(share=[0.5, 1.0] * 3)), **options)


def test_two_columns_of_images_need_a_name(tmp_path):
    data = write_table("csv", tmp_path)
    frame = pd.read_csv(data).rename(columns={"image": "left"})
    write_csv(data, frame.assign(right=frame.left))
    with pytest.raises(UserError, match="'left', 'right' may be the images; name it with --image"):
        read(data, task=IMAGES)
    assert read(data, image="right", label="label").columns.text == ("right",)


def test_the_same_image_is_never_on_both_sides(tmp_path):
    folder = write_folder(tmp_path / "pets", rows=20)
    for row in range(0, 20, 2):
        Image.open(folder / "blue" / f"{row}.png").save(folder / "blue" / f"copy{row}.bmp")
    RED.save(folder / "blue" / "a.png")
    RED.save(folder / "red" / "a.png")
    notes = Notes()
    train, test, _ = read_rows(make_settings({"model": "m", "train": folder}), notes)
    assert set(train.keys).isdisjoint(test.keys)
    assert {label: test.labels.count(label) for label in ("blue", "red")} == {"blue": 4, "red": 2}
    assert "1 images occur more than once with different labels" in notes.lines
    held = write_folder(tmp_path / "held", rows=4)  # the first pictures of `pets`
    rest, _, _ = read_rows(make_settings({"model": "m", "train": folder, "test": held}), notes)
    assert "6 training rows are left out: their images are held out too" in notes.lines
    assert len(rest) == 32 - 6


# --- the model -----------------------------------------------------------------------------------------------------


def test_batches_are_what_the_models_own_processor_makes(tmp_path):
    examples = read(write_folder(tmp_path / "pets", rows=4))
    origin = find_model(str(save_vision(tmp_path / "model")), IMAGES)
    processor = load_image_processor(origin)
    data = encode_images(examples, processor)
    batch = data.collate([data.rows[i] for i in (3, 0)])
    assert batch["labels"].tolist() == [examples.targets()[3], examples.targets()[0]]
    expected = processor(images=[examples.inputs[i][0].pixels() for i in (3, 0)], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    model = load_start(origin, examples, True, 0)
    assert image_size(model, processor, "m") == (3, 32, 32)
    assert model.config.id2label == {0: "blue", 1: "red"}


def test_a_head_of_images_fits_by_its_labels_and_deits_without_a_loss_is_made_anew(tmp_path):
    examples = read(write_folder(tmp_path / "pets", rows=4))
    own = find_model(str(save_vision(tmp_path / "own", ["red", "Blue"])), IMAGES)
    assert fitting_classes(own.config, examples) == ("red", "blue")
    folder = save_vision(tmp_path / "deit", ["red", "blue"], kind="deit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["DeiTForImageClassificationWithTeacher"]})
    )
    taught = find_model(str(folder), IMAGES)
    assert fitting_classes(taught.config, examples) is None
    assert type(load_start(taught, examples, True, 0)).__name__ == "DeiTForImageClassification"


@pytest.mark.situation("nxm compress", "a model of images without a processor, or with one of another size", "refused")
def test_a_processor_that_is_missing_or_does_not_fit_is_named(tmp_path):
    examples = read(write_folder(tmp_path / "pets", rows=4))
    folder = save_vision(tmp_path / "model", size=48)
    origin = find_model(str(folder), IMAGES)
    model = load_start(origin, examples, True, 0)
    with pytest.raises(UserError, match="makes images of 48 x 48 pixels, its model reads 32 x 32"):
        image_size(model, load_image_processor(origin), "m")
    model.config.num_channels = 1
    with pytest.raises(UserError, match=r"makes 3 channels \(RGB\), its model reads 1"):
        image_size(model, load_image_processor(origin), "m")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_resize": False}))
    with pytest.raises(UserError, match=r"makes images of different sizes \(31 x 47 and 480 x 640"):
        image_size(model, load_image_processor(origin), "m")
    path.unlink()
    with pytest.raises(UserError, match=r"there is no preprocessor_config\.json"):
        find_model(str(folder), IMAGES)
