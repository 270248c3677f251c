"""Models with a head for a task, loaded from a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nxm.data.tasks import Task
from nxm.errors import UserError


def load_model(folder: Path, task: Task, fresh_head: bool, mean_label: float | None = None) -> PreTrainedModel:
    """Load an encoder in fp32 with a head for the task.

    Args:
        folder: a from_pretrained folder with safetensors (no pickle is ever read, no code from the folder is run).
        fresh_head: the folder has a pretrained encoder without a head for this task; the head is drawn from torch's
            generator, which the caller seeds.
        mean_label: for regression with a fresh head, where the last layer's bias starts.

    Raises:
        UserError: the folder is no model folder, or what is in it is damaged.
    """
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no model here (model.safetensors is missing); run the stage that makes it")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=task.num_labels,
            problem_type=task.problem_type,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: cannot be loaded; if it is damaged, remove it and run the stage that makes it: {error}"
        ) from None
    if fresh_head and mean_label is not None:
        heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
        nn.init.constant_(heads[-1].bias, mean_label)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
