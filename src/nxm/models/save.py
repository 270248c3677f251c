"""Models saved as a whole folder or not at all."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm.files import new_folder


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save as a plain from_pretrained folder (safetensors), which replaces one that exists at once.

    Raises UserError when the disk is full or must not be written.
    """
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
