"""Loading of models with a head for a task from a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nxm.data.tasks import Task
from nxm.errors import UserError
from nxm.models import shrink


def load_model(folder: Path, task: Task, fresh_head: bool, mean_label: float | None = None) -> PreTrainedModel:
    """Return an fp32 encoder with a head for the task.

    Args:
        folder: a folder of `save_pretrained` with safetensors, of a shrunk model too (`nxm.models.shrink`). No pickle
            is read and no code from the folder is run.
        fresh_head: the folder's encoder has no head for this task, which is then drawn from torch's generator; the
            caller seeds it.
        mean_label: for regression with a fresh head, the initial bias of its last layer.

    Raises:
        UserError: the folder has no model or a damaged one, or a shrunk one without a head for the task.
    """
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no model here (model.safetensors is missing); run the stage that makes it")
    if (shrunk := _shrunk(folder, task, fresh_head)) is not None:
        return shrunk
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


def _shrunk(folder: Path, task: Task, fresh_head: bool) -> PreTrainedModel | None:
    """Return a shrunk model, which `from_pretrained` cannot build; None for another model, or a damaged one."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None  # named where it is loaded
    if shrink.read_structure(config) is None:
        return None
    model = shrink.load(folder, torch.float32)
    if fresh_head or model.config.num_labels != task.num_labels:
        raise UserError(
            f"{folder}: a shrunk model has the head of its own task: start from a run on {task.name}, or from the "
            "dense weights"
        )
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
