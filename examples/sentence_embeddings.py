"""Train a model of sentence embeddings into 2:4 with the Trainer of sentence-transformers and one callback.

    pip install sentence-transformers
    python examples/sentence_embeddings.py sentence-transformers/all-MiniLM-L6-v2 pairs.csv sparse-embeddings

The table has the columns sentence1, sentence2 and score, their similarity from 0 to 1. Afterwards `nxm check
sparse-embeddings` verifies the pattern matrix by matrix, and SentenceTransformer("sparse-embeddings") loads the model.
"""

from __future__ import annotations

import sys

import pandas as pd
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from nxm import NM, AdmmCallback


def main(model_name: str, table: str, out: str) -> None:
    """Train on the pairs of `table` and save a folder of sentence-transformers at `out`."""
    rows = pd.read_csv(table)[["sentence1", "sentence2", "score"]].astype({"score": float})
    model = SentenceTransformer(model_name)
    args = SentenceTransformerTrainingArguments(
        output_dir=f"{out}-checkpoints",
        num_train_epochs=5,
        learning_rate=1e-4,  # several times that of fine-tuning: weights must move to the pattern and recover
        warmup_steps=0.3,
        report_to="none",
    )
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset=Dataset.from_pandas(rows), loss=CoSENTLoss(model), callbacks=[AdmmCallback(NM(2, 4))]
    )
    trainer.train()
    trainer.save_model(out)
    print(f"saved: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
