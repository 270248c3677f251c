"""Train a text classifier into 2:4 with the Hugging Face Trainer and one callback.

    python examples/trainer_callback.py distilbert-base-uncased reviews.csv sparse-model

The table has the columns text and label, the label being 0, 1, ... . Afterwards `nxm check sparse-model` verifies the
pattern matrix by matrix.
"""

from __future__ import annotations

import sys

import pandas as pd
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from nxm import NM, AdmmCallback


def main(model_name: str, table: str, out: str) -> None:
    """Train on the rows of `table` and save a `from_pretrained` folder at `out`."""
    rows = pd.read_csv(table)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=rows["label"].nunique(), use_safetensors=True
    )
    data = Dataset.from_pandas(rows).map(lambda row: tokenizer(row["text"], truncation=True), remove_columns=["text"])
    args = TrainingArguments(
        output_dir=f"{out}-checkpoints",
        num_train_epochs=5,
        learning_rate=1e-4,  # several times that of fine-tuning: weights must move to the pattern and recover
        warmup_steps=0.3,
        report_to="none",
    )
    trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[AdmmCallback(NM(2, 4))])
    trainer.train()
    trainer.save_model(out)
    print(f"saved: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
