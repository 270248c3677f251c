"""Rows as the Trainer takes them, and batches of them: tokens, or images that are read when their batch is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nxm.compress.answers import Window, windows_of
from nxm.compress.examples import Examples
from nxm.data.images import Picture
from nxm.distillation.loss import IGNORED_LABEL
from nxm.distillation.trainer import accepted
from nxm.errors import UserError
from nxm.export.images import process
from nxm.export.trained import Trained

LONGEST = 512  # tokens by default, however many the model reads
Processor = PreTrainedTokenizerBase | BaseImageProcessor  # of texts, of images


@dataclass(frozen=True)
class Encoded:
    """Rows in the order of the examples; for questions a row per window.

    Attributes:
        rows: columns `input_ids` and the tokenizer's others, or `image`, the image's number; `labels`, or
            `start_positions` and `end_positions`; and `length` in tokens, by which batches are formed (of images 1).
        collate: takes rows as dicts and returns the model's inputs with labels, each (batch, ...): texts padded to the
            longest, images as the processor makes them.
        cut: the number of texts that were longer than `max_length` and lost their end, or have several windows.
        windows: one per row for questions.
    """

    rows: Dataset
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
    cut: int = 0
    windows: Sequence[Window] = ()

    def __len__(self) -> int:
        return len(self.rows)


def readable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Return the tokens after which texts are cut: `wanted`, or what the model reads up to `LONGEST`.

    Raises:
        UserError: the model does not read as many as are wanted.
    """
    limit = Trained(Path(str(model.name_or_path)), model, tokenizer, []).max_length
    if wanted is not None and wanted > limit:
        raise UserError(f"max_length = {wanted}: the model reads at most {limit} tokens")
    return wanted or min(limit, LONGEST)


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int) -> Encoded:
    """Tokenise examples into the columns that the model takes.

    Texts longer than `max_length` lose their end; of a pair, the longer text does.
    """
    words = examples.task == "token-classification"
    if words:
        texts: list = [[list(own) for own in examples.inputs]]
    else:
        texts = [list(column) for column in zip(*examples.inputs, strict=True)]
    whole = tokenizer(*texts, is_split_into_words=words, truncation=False, verbose=False)
    cut = sum(len(ids) > max_length for ids in whole["input_ids"])
    found = tokenizer(*texts, is_split_into_words=words, truncation=True, max_length=max_length)
    labels = examples.targets()
    if words:
        labels = [_by_token(found.word_ids(i), own) for i, own in enumerate(labels)]
    columns = accepted(model, found) | {"labels": labels, "length": [len(ids) for ids in found["input_ids"]]}
    pad = DataCollatorForTokenClassification(tokenizer) if words else DataCollatorWithPadding(tokenizer)
    return Encoded(Dataset.from_dict(columns), partial(_pad, pad), cut)


def encode_questions(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int
) -> Encoded:
    """Tokenise questions with windows of their contexts; a window is trained on the first of the right answers.

    Raises:
        UserError: a question leaves no room for its context.
    """
    questions, contexts = zip(*examples.inputs, strict=True)
    found, windows = windows_of(questions, contexts, tokenizer, max_length, examples.place)
    spans = [window.span(next(iter(examples.labels[window.row]), None)) for window in windows]
    columns: dict[str, Any] = accepted(model, found)
    columns |= {"start_positions": [first for first, _ in spans], "end_positions": [last for _, last in spans]}
    columns["length"] = [len(ids) for ids in found["input_ids"]]
    several = sum(count > 1 for count in Counter(window.row for window in windows).values())
    return Encoded(Dataset.from_dict(columns), partial(_pad, DataCollatorWithPadding(tokenizer)), several, windows)


def _pad(pad: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]], rows: Sequence[Mapping[str, Any]]) -> Any:
    return pad([{name: value for name, value in row.items() if name != "length"} for row in rows])


def _by_token(words: list[int | None], labels: list[int]) -> list[int]:
    """Return a label per token: a word's at its first token, `IGNORED_LABEL` at the others and at special tokens."""
    own, before = [], None
    for word in words:
        own.append(IGNORED_LABEL if word is None or word == before else labels[word])
        before = word
    return own


def encode_images(examples: Examples, processor: BaseImageProcessor) -> Encoded:
    """Return images as rows; each is read and processed, always in the same way, when its batch is made."""
    pictures = [picture for (picture,) in examples.inputs]
    columns = {"image": range(len(pictures)), "labels": examples.targets(), "length": [1] * len(pictures)}
    return Encoded(Dataset.from_dict(columns), partial(_read_batch, pictures, processor))


def _read_batch(
    pictures: Sequence[Picture], processor: BaseImageProcessor, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    images = [pictures[row["image"]].pixels() for row in rows]
    return process(processor, images) | {"labels": torch.tensor([row["labels"] for row in rows])}
