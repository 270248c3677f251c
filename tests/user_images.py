"""Images and models of images as users of `nxm compress` bring them: small pictures whose class is their colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from nxm.models.targets import find_targets

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
KINDS = {"vit": (ViTConfig, ViTForImageClassification), "deit": (DeiTConfig, DeiTForImageClassification)}


def picture(is_red: bool, seed: int) -> Image.Image:
    """Return a noisy picture, 40 wide and 36 high, that is red or blue."""
    pixels = np.random.default_rng(seed).integers(0, 120, size=(36, 40, 3), dtype=np.uint8)
    pixels[:, :, 0 if is_red else 2] += 120
    return Image.fromarray(pixels)


def write_folder(folder: Path, rows: int = 40, classes: Sequence[str] = ("blue", "red"), seed: int = 0) -> Path:
    """Write pictures into a sub-folder for each class."""
    for row in range(rows):
        place = folder / classes[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(row % 2 == 1, 1000 * seed + row).save(place / f"{row}.png")
    return folder


def save_vision(folder: Path, classes: Sequence[str] = (), kind: str = "vit", size: int = 32) -> Path:
    """Save a small model of images with its processor; `classes` are those of its head, of size two without names."""
    torch.manual_seed(0)
    config, head = KINDS[kind]
    labels = {"id2label": dict(enumerate(classes)), "label2id": {n: i for i, n in enumerate(classes)}}
    model = head(config(**SIZES, **(labels if classes else {})))
    with torch.no_grad():
        for W in find_targets(model).values():
            W.mul_(2.0)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder
