"""Tokenised rows, as the Trainer takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm.compress.examples import Examples
from nxm.distillation.loss import IGNORED_LABEL
from nxm.distillation.trainer import accepted
from nxm.errors import UserError
from nxm.export.trained import Trained

LONGEST = 512  # tokens by default, however many the model reads


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows in the order of the examples.

    Attributes:
        rows: columns `input_ids` and the tokenizer's others, `labels`, and `length` in tokens.
        cut: the number of rows that were longer than `max_length` and lost their end.
    """

    rows: Dataset
    cut: int
    max_length: int


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
    return Encoded(Dataset.from_dict(columns), cut, max_length)


def _by_token(words: list[int | None], labels: list[int]) -> list[int]:
    """Return a label per token: a word's at its first token, `IGNORED_LABEL` at the others and at special tokens."""
    own, before = [], None
    for word in words:
        own.append(IGNORED_LABEL if word is None or word == before else labels[word])
        before = word
    return own
