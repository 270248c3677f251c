"""The state of callbacks in a Trainer's checkpoints: its folders, and files of tensors with JSON metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nxm.errors import UserError
from nxm.files import new_file


def checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint at the step of `state`."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def saved_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder into which the Trainer has just saved: a hyper-parameter search has one for each run."""
    folder = checkpoint(args, state)
    if not state.is_hyper_param_search:
        return folder
    runs = folder.parent.glob(f"*/{folder.name}")
    return max(runs, key=lambda run: run.stat().st_mtime_ns, default=folder)


def write_state(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state into a checkpoint, whole or not at all."""
    contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    with new_file(path) as partial:
        save_file(contiguous, partial, metadata={"nxm": json.dumps(metadata)})


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state from a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["nxm"])
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: this checkpoint was not saved with this callback, or lies in another output_dir"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from None
