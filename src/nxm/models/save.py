"""Models saved as a whole folder or not at all."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm.files import new_folder, stray_files

# what save_pretrained writes for models and tokenizers
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save as a plain from_pretrained folder (safetensors); an existing folder is replaced if it is a saved model.

    Raises:
        UserError: `folder` holds anything but a saved model, or the disk is full or not writable.
    """
    with new_folder(folder, no_saved_model) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def no_saved_model(folder: Path) -> str | None:
    """Return why a folder is not a model and its tokenizer and nothing else (see `nxm.files.Refusal`); None: it is."""
    if not (folder / "config.json").is_file():
        return "is no saved model (it has no config.json)"
    strays = stray_files(folder, lambda name: any(fnmatchcase(name, known) for known in MODEL_FILES))
    return f"holds {strays[0]}, which is no file of a saved model" if strays else None
