"""What the smoke study is made of: a tiny random BERT and made-up GLUE rows, in the Hub's schema."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from nxm.data.tasks import TASKS

WORDS = ["cat", "dog", "sits", "runs", "red", "blue", "not", "very", "old", "new"]


def write(folder: Path, tasks: tuple[str, ...] = ("mnli", "stsb"), train_rows: int = 128, dev_rows: int = 32) -> None:
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
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)


def _table(task: str, rows: int, seed: int) -> pa.Table:
    """Rows whose label the words decide, so that there is something to learn."""
    entry = TASKS[task]
    random = np.random.default_rng(seed)
    sentences = [
        [" ".join(random.choice(WORDS, size=random.integers(2, 6))) for _ in range(rows)] for _ in entry.sentences
    ]
    shared = [len(set(a.split()) & set(b.split())) for a, b in zip(sentences[0], sentences[-1], strict=True)]
    label: list[float] | list[int]
    label = [min(5.0, 1.25 * n) for n in shared] if entry.regression else [min(n, entry.num_labels - 1) for n in shared]
    columns = dict(zip(entry.sentences, sentences, strict=True)) | {"label": label, "idx": list(range(rows))}
    return pa.table({name: pa.array(columns[name], entry.schema.field(name).type) for name in entry.schema.names})
