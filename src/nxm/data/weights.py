"""Pretrained models as sources have them: which files are taken, and whether they can be used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nxm.errors import UserError

REQUIRED_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",  # BERT, DistilBERT, ELECTRA, MPNet
    "vocab.json",  # RoBERTa, with merges.txt
    "merges.txt",
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")


def choose_files(available: Iterable[str], place: str) -> list[str]:
    """Return the names of a model folder's files that are taken. Raises UserError if it has no safetensors model."""
    available = set(available)
    if "model.safetensors" not in available:
        other = sorted(name for name in available if re.fullmatch(r"[^/]*\.(bin|pt|pth|ckpt|h5|msgpack)", name))
        if "model.safetensors.index.json" in available:
            found = "its weights are split over several files"
        else:
            found = f"it has {', '.join(other)}" if other else "it has no weights"
        raise UserError(
            f"{place}: there is no model.safetensors; {found}. nxm reads a single model.safetensors and never a pickle "
            "(.bin, .pt): convert the model with save_pretrained and use source 'local'"
        )
    if "config.json" not in available:
        raise UserError(f"{place}: there is no config.json; a model folder as save_pretrained writes it has one")
    check_tokenizer(available, place)
    return [name for name in (*REQUIRED_FILES, *TOKENIZER_FILES, *LICENCE_FILES) if name in available]


def check_tokenizer(available: Iterable[str], place: str) -> None:
    """Raise UserError if no file of a folder holds a vocabulary; transformers would make an empty tokenizer of it."""
    if not {"tokenizer.json", "vocab.txt", "vocab.json"} & set(available):
        raise UserError(f"{place}: there is no tokenizer; expected tokenizer.json, vocab.txt or vocab.json")


def check_weights(folder: Path, place: str) -> None:
    """Raise UserError if a model folder's files are damaged, before hours of training depend on it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}: config.json is not JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{place}: config.json has no 'model_type'; expected a Hugging Face model's configuration")
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as tensors:  # compares header and length
            if not tensors.keys():
                raise UserError(f"{place}: model.safetensors holds no tensors")
    except SafetensorError as error:
        raise UserError(f"{place}: model.safetensors is damaged: {error}") from None
