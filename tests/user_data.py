"""Data and models as users of `nxm compress` bring them: small tables whose labels follow from the texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from tiny_models import MODELS, SIZES, save_model

TINY = SIZES | {"hidden_size": 32, "intermediate_size": 64}


def save_tiny(folder: Path, name: str = "bert", **config: Any) -> Path:
    """Save a small dense model with a tokenizer of single letters; `config` changes its config."""
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]()
    if config:
        model = type(model)(type(model.config)(**(model.config.to_dict() | config)))
    return save_model(folder, model, pattern=None, spread=2.0)


def save_tagger(folder: Path, names: Sequence[str]) -> Path:
    """Save a small BERT that tags words."""
    torch.manual_seed(0)
    config = BertConfig(**TINY, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return save_model(folder, BertForTokenClassification(config), pattern=None)


def distilbert_of(names: Sequence[str]) -> DistilBertForSequenceClassification:
    """A small DistilBERT whose head is for these classes."""
    model = MODELS["distilbert"]()
    config = type(model.config)(
        **(
            model.config.to_dict()
            | {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        )
    )
    return DistilBertForSequenceClassification(config)


def reviews(rows: int = 80, seed: int = 0) -> pd.DataFrame:
    """Different texts of single letters; a review with an "y" is good, one with a "z" is bad."""
    random = np.random.default_rng(seed)
    good = np.arange(rows) % 2 == 0
    texts = []
    for row, is_good in enumerate(good):
        words = [*random.choice(list("abcdefgh"), size=random.integers(2, 6)), "y" if is_good else "z"]
        letters = [chr(ord("i") + int(digit)) for digit in f"{row:03d}"]  # no two texts are equal
        texts.append(" ".join([*random.permutation(words), *letters]))
    return pd.DataFrame({"text": texts, "label": np.where(good, "good", "bad")})


QUESTION = "y ?"


def questions(rows: int = 40, seed: int = 0, *, unanswerable: bool = False) -> list[dict[str, Any]]:
    """Different contexts of single letters in SQuAD's layout; the answer is the "y" and the letter behind it.

    unanswerable: every third context has no "y", and its question no answer.
    """
    random = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        letters = [chr(ord("i") + int(digit)) for digit in f"{row:03d}"]  # no two contexts are equal
        words = [*random.choice(list("abcdefgh"), size=random.integers(4, 9)), *letters]
        place = int(random.integers(0, len(words) - 1))
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if not (unanswerable and row % 3 == 2):
            words.insert(place, "y")
            answers = {"text": [f"y {words[place + 1]}"], "answer_start": [2 * place]}
        found.append({"question": QUESTION, "context": " ".join(words), "answers": answers})
    return found


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV."""
    frame.to_csv(path, index=False)
    return path


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
