"""Trained models of images as the exports take them, the images on which they are compared, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig, PreTrainedModel

from nxm.data.images import SUFFIXES, Picture, open_file
from nxm.errors import UserError, first_line
from nxm.export.score import judge_by
from nxm.export.trained import Answer, Judge, Trained, assert_claims, claimed_activations, outputs
from nxm.models.load import load
from nxm.sets.saved import load_config, model_class, read_patterns

FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8")  # that models of images can be exported to
MOST_EXAMPLES = 64  # images that outputs are compared on, all in one batch


@dataclass(frozen=True)
class TrainedOnImages(Trained):
    """A loaded folder of a model that reads `pixel_values`; its examples are images of Pillow.

    tokenizer: the image processor.
    """

    tokenizer: BaseImageProcessor

    def encode(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `pixel_values`, fp32 (images, channels, height, width)."""
        return process(self.tokenizer, examples)

    def dynamic_shapes(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
        """Return the dimension that an exported program leaves open: the batch."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in inputs}


def reads_images(config: PretrainedConfig) -> bool:
    """Return whether the class that a config names reads images alone."""
    architecture = model_class(config)
    return architecture is not None and architecture.main_input_name == "pixel_values"


def load_trained_on_images(folder: Path, processor: BaseImageProcessor) -> TrainedOnImages:
    """Load a folder that `save_pretrained` wrote, with the head its config names.

    Raises:
        UserError: it is no model folder, or a matrix violates its pattern in config.json.
    """
    claims = read_patterns(load_config(folder))
    model = load(folder, torch.float32)
    assert_claims(model, claims, folder)
    return TrainedOnImages(folder, model.eval(), processor, claims, claimed_activations(model, folder))


def load_with_processor(folder: Path) -> TrainedOnImages:
    """Load a folder with its image processor, as Pillow and numpy compute it on every machine.

    Raises:
        UserError: as `load_trained_on_images`, there is no processor, or it does not fit the model (`image_size`).
    """
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(
            f"{folder}: the image processor cannot be read, which says how images become numbers; save it into the "
            f"folder: {first_line(error)}"
        ) from None
    trained = load_trained_on_images(folder, processor)
    image_size(trained.model, processor, str(folder))
    return trained


def process(processor: BaseImageProcessor, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return `pixel_values`, fp32 (images, channels, height, width)."""
    return {"pixel_values": processor(images=list(images), return_tensors="pt")["pixel_values"]}


def image_size(model: PreTrainedModel, processor: BaseImageProcessor, place: str) -> tuple[int, int, int]:
    """Return channels, height and width of what the processor makes of any image.

    Raises:
        UserError: they depend on the image, or are not those that the model reads.
    """
    sizes = {
        tuple(process(processor, [Image.fromarray(np.zeros((height, width, 3), np.uint8))])["pixel_values"].shape[1:])
        for height, width in ((480, 640), (640, 480), (31, 47))
    }
    if len(sizes) > 1:
        found = " and ".join(sorted(" x ".join(map(str, size[1:])) for size in sizes))
        raise UserError(
            f"{place}: its image processor makes images of different sizes ({found}), which form no batch: set a fixed "
            "size in preprocessor_config.json"
        )
    ((channels, height, width),) = sizes
    read = getattr(model.config, "num_channels", channels)
    if read != channels:
        raise UserError(f"{place}: its image processor makes {channels} channels (RGB), its model reads {read}")
    wanted = getattr(model.config, "image_size", None)
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    if wanted is not None and tuple(wanted) != (height, width):
        raise UserError(
            f"{place}: its image processor makes images of {height} x {width} pixels, its model reads "
            f"{wanted[0]} x {wanted[1]}: set the size in preprocessor_config.json"
        )
    return channels, height, width


# --- images to compare outputs on, and to score ---------------------------------------------------------------------


def noise(count: int = 8) -> list[Image.Image]:
    """Return images of noise, the same each time, on which outputs can be compared, though no ranges measured."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, size=(64 + i, 96, 3), dtype=np.uint8)) for i in range(count)]


def read_images(path: Path, most: int = MOST_EXAMPLES) -> list[Image.Image]:
    """Return images below a folder, in the order of their paths: all, or `most` of them, evenly spread over it.

    Raises:
        UserError: there is no such folder, it has no image, or one is damaged (`nxm.data.images.decode`).
    """
    files = _files(path)
    count = min(most, len(files))
    return [open_file(files[i * len(files) // count]).pixels() for i in range(count)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder of images")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path}: has no image ({', '.join(SUFFIXES)})")
    return files


@dataclass(frozen=True)
class LabelledImages:
    """Images with the numbers of their classes, in the order of their paths."""

    path: Path
    pictures: tuple[Picture, ...]
    labels: np.ndarray


def read_labelled_images(path: Path, trained: TrainedOnImages) -> LabelledImages:
    """Read the images in a folder with one sub-folder for each class, named as in the model's config.

    Raises:
        UserError: as `read_images`, an image lies in no sub-folder of its own class, or a class is not the model's.
    """
    files, classes = _files(path), trained.model.config.label2id
    for file in files:
        if file.parent.parent != path or file.parent.name not in classes:
            raise UserError(
                f"{file}: --data for a model of images is a folder with one sub-folder of images for each class of the "
                f"model: {', '.join(sorted(classes, key=classes.__getitem__)[:8])}"
            )
    return LabelledImages(path, tuple(map(open_file, files)), np.array([classes[file.parent.name] for file in files]))


def make_image_judge(trained: TrainedOnImages, data: LabelledImages, max_drop: float | None) -> Judge:
    """Return a judge (`nxm.export.score.judge_by`) by the accuracy on labelled images.

    Raises:
        UserError: (at once) `max_drop` is given and all images are of one class, which a constant answer knows; or as
            `judge_by`.
    """
    if max_drop is not None and len(set(data.labels.tolist())) == 1:
        raise UserError(f"{data.path}: has images of one class alone; --max-drop needs different ones")
    what = f"accuracy on {len(data.labels)} images of {data.path}"
    return judge_by(partial(accuracy, trained, data), partial(outputs, trained.model), what, max_drop)


def accuracy(trained: TrainedOnImages, data: LabelledImages, answer: Answer, batch: int = 32) -> float:
    """Return the share of images whose largest logit is that of their class, in percent points.

    Raises:
        UserError: the model has no logits.
    """
    right = 0
    for first in range(0, len(data.labels), batch):
        images = [picture.pixels() for picture in data.pictures[first : first + batch]]
        answers = answer(trained.encode(images))
        if "logits" not in answers:
            raise UserError(
                f"{trained.folder}: has no logits but {', '.join(answers)}; scores are those of classifiers"
            )
        right += int((answers["logits"].argmax(-1) == data.labels[first : first + batch]).sum())
    return 100.0 * right / len(data.labels)
