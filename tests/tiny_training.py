"""Small trainings of the tiny BERT with a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from conftest import tiny_config


class Pad:
    """Pads a batch by hand: these tests need no tokenizer."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
            ),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


class Stop(TrainerCallback):
    """Ends a training after a step, as if it was killed once that step was saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def new_model(**changes: object) -> BertForSequenceClassification:
    """The same tiny BERT each time."""
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config(**changes))


def trainer_for(
    model: BertForSequenceClassification, data: Dataset, folder: Path, callbacks: list[TrainerCallback], **changes: Any
) -> Trainer:
    """A Trainer for four epochs of four steps; `changes` are TrainingArguments."""
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 3e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = TrainingArguments(**(arguments | changes))
    return Trainer(model, args, train_dataset=data, eval_dataset=data, data_collator=Pad(), callbacks=callbacks)
