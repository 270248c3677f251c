"""One training: the Trainer as a user would call it, with the library's callback and teacher; it survives a kill."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nxm.compress.encode import Encoded, Processor
from nxm.distillation.trainer import DistillationTrainer
from nxm.errors import Diverged, UserError
from nxm.files import write_text
from nxm.methods.callback import MethodCallback
from nxm.sets.saved import load_config, load_model
from nxm.training.trainer import COMPLETE, LengthGroupedByEpoch

CHECKPOINTS = 10  # over a training


def device() -> torch.device:
    """Return the device on which models train, are scored and timed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Course:
    """The values of a training."""

    title: str
    epochs: int
    learning_rate: float
    warmup: float  # share of the steps
    batch_size: int
    seed: int

    def batch(self, rows: int) -> int:
        """Return the batch size for so many training rows: no larger than these."""
        return min(self.batch_size, rows)

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimizer steps of an epoch; rows that fill no batch are left out, others each epoch."""
        return rows // self.batch(rows)


def train(
    model: PreTrainedModel,
    processor: Processor,
    data: Encoded,
    course: Course,
    scratch: Path,
    *,
    callback: MethodCallback | None = None,
    teacher: PreTrainedModel | None = None,
    noise: float = 0.0,
) -> float:
    """Train a model in place and return the seconds that it took, those before an interruption included.

    It resumes from the last complete checkpoint in `scratch` and ends with the same weights as without the
    interruption.

    Args:
        processor: the tokenizer or the image processor, which checkpoints have too.
        teacher, noise: see `DistillationTrainer`; without a teacher it is plain training.

    Raises:
        UserError: the method cannot be applied to this model, or the loss is not finite (`Diverged`).
    """
    batch, steps = course.batch(len(data)), course.steps_per_epoch(len(data)) * course.epochs
    args = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=course.epochs,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=course.learning_rate,
        warmup_steps=course.warmup,
        weight_decay=0.0,
        save_strategy="steps",
        save_steps=max(1, steps // CHECKPOINTS),
        save_total_limit=2,  # while one is written, the one before is complete
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=course.seed,
        remove_unused_columns=False,  # `collate` knows what the model takes
    )
    checkpoint = last_complete_checkpoint(scratch)
    before = float((checkpoint / COMPLETE).read_text(encoding="utf-8")) if checkpoint else 0.0
    shown = ShowProgress(course.title)
    options: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": data.rows,
        "processing_class": processor,
        "data_collator": data.collate,
        "callbacks": [*([callback] if callback else []), shown, MarkComplete(before)],
    }
    if teacher is None:
        trainer: Trainer = _Plain(**options)
    else:
        trainer = _Taught(teacher=teacher, noise=noise, **options)
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        shown.stop()  # after Ctrl-C too, or the terminal would have no cursor
    return before + time.perf_counter() - started


def last_complete_checkpoint(scratch: Path) -> Path | None:
    """Return the last checkpoint whose every file was written; None if there is none."""
    whole = [mark.parent for mark in scratch.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2])) if whole else None


class _Reproducible(Trainer):
    """A Trainer that resumes with the weights of the checkpoint and with the same batches.

    Their order depends on seed and epoch alone.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers saves some architectures, such as ViT, under other names than they have in memory; the Trainer
        # (5.23) looks for the latter in the file, finds none and goes on with the initial weights
        folder, model = Path(resume_from_checkpoint), model or self.model
        model.load_state_dict(load_model(folder, load_config(folder), torch.float32).state_dict())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset
        return LengthGroupedByEpoch(list(rows["length"]), self.args.train_batch_size, self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise Diverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}: training diverged; lower the "
                f"learning rate (now {self.args.learning_rate:g})"
            )
        return loss


class _Plain(_Reproducible):
    """The Trainer."""


class _Taught(_Reproducible, DistillationTrainer):
    """The Trainer with a teacher."""


class MarkComplete(TrainerCallback):
    """Marks a checkpoint as complete, with the seconds so far, once every other callback has written its part."""

    def __init__(self, seconds_before: float) -> None:
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        mark = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / COMPLETE
        write_text(mark, f"{time.perf_counter() - self._started:.3f}")


class ShowProgress(TrainerCallback):
    """A line with the steps done and the time left, on a terminal."""

    def __init__(self, title: str) -> None:
        console = Console()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
        )
        self._title = title
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task(title)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step > 0:
            print(f"{self._title}: goes on after step {state.global_step} of {state.max_steps}", flush=True)
        self._progress.update(self._bar, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._bar, completed=state.global_step)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def require_steps(rows: int, course: Course, least: int) -> None:
    """Raise UserError if a training has fewer than `least` optimizer steps."""
    steps = course.steps_per_epoch(rows) * course.epochs
    if steps < least:
        raise UserError(
            f"{course.title}: {rows} training rows in batches of {course.batch(rows)} make {steps} optimizer steps in "
            f"{course.epochs} epochs; at least {least} are needed: give more epochs or a smaller batch_size"
        )
