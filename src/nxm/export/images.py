"""Trained models of images as the exports take them: ONNX in fp32 and with integers (`nxm.export.onnx`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from nxm.export.trained import Trained, assert_claims
from nxm.models.load import load
from nxm.sets.saved import load_config, read_patterns


@dataclass(frozen=True)
class TrainedOnImages(Trained):
    """A loaded folder of a model that reads `pixel_values`; its examples are images of Pillow.

    tokenizer: the image processor.
    """

    tokenizer: BaseImageProcessor

    def encode(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `pixel_values`, fp32 (images, channels, height, width)."""
        return {"pixel_values": self.tokenizer(images=list(examples), return_tensors="pt")["pixel_values"]}

    def dynamic_shapes(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
        """Return the dimension that an exported program leaves open: the batch."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in inputs}


def load_trained_on_images(folder: Path, processor: BaseImageProcessor) -> TrainedOnImages:
    """Load a folder that `save_pretrained` wrote, with the head its config names.

    Raises:
        UserError: it is no model folder, or a matrix violates its pattern in config.json.
    """
    claims = read_patterns(load_config(folder))
    model = load(folder, torch.float32)
    assert_claims(model, claims, folder)
    return TrainedOnImages(folder, model.eval(), processor, claims)
