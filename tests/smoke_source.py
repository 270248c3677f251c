"""The smoke study's sources: a tiny random BERT and made-up GLUE rows, in the Hub's schema."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from nxm.data.tasks import TASKS

CLUES = ["cat", "dog", "bird"]  # one of them in each first sentence decides its label
OTHERS = ["sits", "runs", "red", "blue", "not", "very", "old", "new"]


def write(folder: Path, tasks: tuple[str, ...] = ("mnli", "stsb"), train_rows: int = 256, dev_rows: int = 64) -> None:
    """Write `folder`/weights and `folder`/glue/<task>/<split>.parquet."""
    _write_weights(folder / "weights")
    for name in tasks:
        for split in TASKS[name].splits:
            path = folder / "glue" / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(_table(name, train_rows if split == "train" else dev_rows, len(split)), path)


def _write_weights(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLUES, *OTHERS]) + "\n")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(CLUES) + len(OTHERS),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.15,  # BERT's 0.02 is for its width: so narrow a network would pass on next to nothing
    )
    BertModel(config).save_pretrained(folder)


def _table(task: str, rows: int, seed: int) -> pa.Table:
    """Return rows whose label one word decides: CLUES[label] is among the words of the first sentence."""
    entry = TASKS[task]
    random = np.random.default_rng(seed)
    classes = random.permutation(np.arange(rows) % len(CLUES))
    sentences = [
        [random.choice(OTHERS, size=random.integers(2, 6)).tolist() for _ in range(rows)] for _ in entry.sentences
    ]
    for words, clue in zip(sentences[0], classes, strict=True):
        words[random.integers(len(words))] = CLUES[clue]
    label = 2.5 * classes if entry.regression else classes % entry.num_labels
    texts = [[" ".join(words) for words in column] for column in sentences]
    columns = dict(zip(entry.sentences, texts, strict=True)) | {"label": label, "idx": range(rows)}
    return pa.table({name: pa.array(columns[name], entry.schema.field(name).type) for name in entry.schema.names})
