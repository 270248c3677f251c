"""A Hugging Face Trainer for reproducible fine-tuning on GLUE.

It adds four features: batches of similar length whose order depends on seed and epoch alone, so that a resumed run and
a run with more processes see the same batches; the run's dropout during training steps; an error at the first loss that
is not finite; and a mark in every complete checkpoint. Knowledge distillation is in `nxm.distillation.trainer`.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from nxm.data.tasks import METRICS, Task, compute_metrics, paper_metric
from nxm.distillation.trainer import DistillationTrainer
from nxm.errors import Diverged, UserError
from nxm.files import write_text
from nxm.models.student import dropout_at
from nxm.study.settings import Run
from nxm.study.settings import Trainer as TrainerSettings
from nxm.training.build import Parts

COMPLETE = "complete"  # the last file written into a checkpoint


@dataclass(frozen=True)
class Trained:
    """A trained model as it is to be saved, its metrics in percent points, and its course by epoch.

    `predictions` are the logits on each evaluation split: (rows, num_labels), fp32, in the split's order. `heldout` are
    the metrics on held-out training rows; None without such rows. `seconds_before` is the part of `seconds` before the
    checkpoint from which training resumed.
    """

    model: PreTrainedModel
    metrics: dict[str, float]
    predictions: dict[str, np.ndarray]
    heldout: dict[str, float] | None
    epochs: list[dict[str, Any]]
    seconds: float
    seconds_before: float
    rows: dict[str, int]


def train(
    parts: Parts, task: Task, data: DatasetDict, run: Run, common: TrainerSettings, seed: int, scratch: Path
) -> Trained:
    """Return the trained parts, evaluated every `common.evaluate_every` epochs and at the end.

    Args:
        data: `train`, the task's evaluation splits and perhaps `heldout`, which is evaluated once, at the end. Columns:
            `length` and the tokenizer's.
        scratch: the folder of checkpoints, from the last of which training resumes; the caller removes it at the end.

    Raises:
        UserError: the batch does not divide over the processes, or the data is smaller than a batch.
        Diverged: the loss is not finite.
    """
    steps_per_epoch = len(data["train"]) // run.batch_size
    args = _arguments(run, common, seed, scratch, len(data["train"]))
    order = {split: _by_length(data[split]) for split in data if split != "train"}  # for the least padding
    ordered = {split: data[split].select(rows) for split, rows in order.items()}
    evaluation = {suffix.removeprefix("_"): ordered[split] for split, suffix in task.evaluation.items()}
    checkpoint = _last_whole_checkpoint(scratch)
    seconds_before = float((checkpoint / COMPLETE).read_text(encoding="utf-8")) if checkpoint else 0.0
    options: dict[str, Any] = {
        "model": parts.model,
        "args": args,
        "processing_class": parts.tokenizer,
        "data_collator": DataCollatorWithPadding(parts.tokenizer),
        "train_dataset": data["train"],
        "eval_dataset": evaluation if len(evaluation) > 1 else evaluation[""],
        "compute_metrics": lambda prediction: compute_metrics(task, *_arrays(prediction)),
        "callbacks": [*parts.callbacks, _MarkComplete(seconds_before)],
    }
    if parts.teacher is None:
        trainer = _Trainer(dropout=run.dropout, **options)
    else:
        taught = {"distillation": run.distillation, "noise": run.noise, "dropout": run.dropout}
        trainer = _StudentTrainer(teacher=parts.teacher, **taught, **options)
    outcome = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if not trainer.predicted:  # resumed after the last evaluation
        trainer.evaluate()
    history = trainer.state.log_history
    model = parts.callback.to_save(parts.model) if parts.callback else parts.model
    if model is not parts.model:  # scores and predictions are those of what is saved, whose sums have another order
        trainer = _Trainer(**(options | {"model": model, "callbacks": []}))
        trainer.state.global_step = args.max_steps
        trainer.evaluate()
        history = [*history, *trainer.state.log_history]
    predictions = {}
    for split, suffix in task.evaluation.items():
        logits = trainer.predicted["eval" + suffix]
        predictions[split] = np.empty_like(logits, dtype=np.float32)
        predictions[split][order[split]] = logits
    heldout = trainer.evaluate(ordered["heldout"], metric_key_prefix="heldout") if "heldout" in ordered else None
    return Trained(
        model=model,
        metrics=_metrics_at(history, task, args.max_steps),
        predictions=predictions,
        heldout=heldout and {name: heldout[f"heldout_{name}"] for name in METRICS if f"heldout_{name}" in heldout},
        epochs=_by_epoch(history, task, run.epochs, steps_per_epoch),
        seconds=seconds_before + outcome.metrics["train_runtime"],
        seconds_before=seconds_before,
        rows={
            "train_examples": len(data["train"]),
            "dev_examples": sum(len(data[split]) for split in task.evaluation),
            "heldout_examples": len(data["heldout"]) if "heldout" in data else 0,
        },
    )


class LengthGroupedByEpoch(Sampler[int]):
    """Indices for batches of similar length, in another order each epoch.

    Examples that would make an incomplete last batch are left out, others each epoch, so that all steps have the same
    weight. (The Trainer's `dataloader_drop_last` would leave out dev examples too.)

    The order depends on `seed` and the epoch alone: not on random numbers drawn during training nor, since `batch_size`
    is the global one, on the number of processes.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)[: len(self)])


class _Trainer(Trainer):
    def __init__(self, dropout: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.own_dropout = dropout  # None with a teacher: DistillationTrainer then sets it
        self.loss_is_scaled_for_ga = False  # it is the mean over a batch
        self.accepted = frozenset(inspect.signature(self.model.forward).parameters)
        self.predicted: dict[str, np.ndarray] = {}  # logits of the last evaluation by its metrics' prefix

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return LengthGroupedByEpoch(list(dataset["length"]), batch, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.predicted[prefix], _ = _arrays(EvalPrediction(output.predictions, output.label_ids))
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        # the data may have columns for the teacher alone: BERT needs token_type_ids, DistilBERT does not take them
        own = {name: tensor for name, tensor in inputs.items() if name in self.accepted}
        return super().compute_loss(model, own, return_outputs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with dropout_at(self.model, self.own_dropout):
            loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise Diverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} (epoch {self.state.epoch:.2f}, "
                f"learning rate {self.args.learning_rate:g}): training diverged; lower the learning rate or rho"
            )
        return loss


class _StudentTrainer(DistillationTrainer, _Trainer):
    """`_Trainer` with a teacher."""


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint as complete once every process and callback has written its part; the last of the callbacks.

    The mark has the seconds that the training has taken, so that those before an interruption count.
    """

    def __init__(self, seconds_before: float) -> None:
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()
        if args.should_save:
            mark = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / COMPLETE
            write_text(mark, f"{time.perf_counter() - self._started:.3f}")


def _arguments(run: Run, common: TrainerSettings, seed: int, scratch: Path, examples: int) -> TrainingArguments:
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch
    if run.batch_size % world:
        raise UserError(f"batch_size = {run.batch_size} does not divide over {world} processes")
    steps_per_epoch = examples // run.batch_size
    if steps_per_epoch == 0:
        raise UserError(f"{examples} training examples make no batch of {run.batch_size}: lower batch_size")
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=run.epochs,
        max_steps=steps_per_epoch * run.epochs,
        per_device_train_batch_size=run.batch_size // world,
        per_device_eval_batch_size=common.eval_batch_size,
        learning_rate=run.learning_rate,
        warmup_steps=common.warmup_ratio,
        weight_decay=common.weight_decay,
        max_grad_norm=common.max_grad_norm,
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=steps_per_epoch * common.evaluate_every,
        save_strategy="steps",
        save_steps=steps_per_epoch * common.evaluate_every,
        save_total_limit=2,  # while one is written, the one before is complete
        logging_strategy="steps",
        logging_steps=steps_per_epoch,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=seed,
        remove_unused_columns=False,  # see compute_loss
        length_column_name="length",
    )


def _by_length(dataset: Dataset) -> np.ndarray:
    return np.argsort(dataset["length"], kind="stable")


def _arrays(prediction: EvalPrediction) -> tuple[Any, Any]:
    logits = prediction.predictions
    return (logits[0] if isinstance(logits, tuple) else logits), prediction.label_ids


def _last_whole_checkpoint(scratch: Path) -> Path | None:
    whole = [folder.parent for folder in scratch.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2])) if whole else None


def _metrics_at(history: list[dict[str, Any]], task: Task, step: int) -> dict[str, float]:
    """Return the metrics at a step in percent points; those of MNLI's splits are `accuracy_m` and `accuracy_mm`."""
    found = {}
    for entry in history:
        if entry["step"] != step:
            continue
        for suffix in task.evaluation.values():
            prefix = f"eval{suffix}_"
            for name in METRICS:
                if prefix + name in entry:
                    found[name + suffix] = float(entry[prefix + name])
    return found


def _by_epoch(history: list[dict[str, Any]], task: Task, epochs: int, steps_per_epoch: int) -> list[dict[str, Any]]:
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    course = []
    for epoch in range(1, epochs + 1):
        step = epoch * steps_per_epoch
        metrics = _metrics_at(history, task, step)
        metric = paper_metric(task, metrics) if metrics else None
        course.append({"epoch": epoch, "step": step, "train_loss": losses.get(step), "metric": metric})
    return course
