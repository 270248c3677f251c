"""Small trainings of the tiny BERT with a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from nxm.methods import METHODS, takes_set

VOCABULARY = 60
WITH_SET = tuple(filter(takes_set, METHODS))  # the methods that train into a constraint set


def tiny_config(**changes: object) -> BertConfig:
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 2,
    }
    return BertConfig(**(values | changes))


def parity_data() -> Dataset:
    """64 sequences of 6 to 9 tokens whose class is the parity of their first token."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(64):
        ids = torch.randint(2, VOCABULARY, (6 + i % 4,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[0] % 2, "length": len(ids)})
    return Dataset.from_list(rows)


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


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to the bit, tensor by tensor."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def assert_best_is_loaded_back_as_evaluated(
    model: torch.nn.Module, callback: TrainerCallback, best: int, folder: Path
) -> None:
    """Train with an evaluation every other step, of which number `best` counts as the best one, and evaluate again."""
    trainer = trainer_for(
        model,
        parity_data(),
        folder,
        [callback],
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
        **{"load_best_model_at_end": True, "metric_for_best_model": "distance", "greater_is_better": False},
    )
    losses: list[float] = []
    honest = trainer.evaluate

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = honest(*args, **kwargs)
        losses.append(metrics["eval_loss"])
        return metrics | {"eval_distance": abs(len(losses) - best)}

    trainer.evaluate = evaluate
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{2 * best}")
    assert honest()["eval_loss"] == losses[best - 1]
