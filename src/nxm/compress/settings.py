"""Settings of `nxm compress`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from nxm.config import NonNegative, Positive, PositiveInt, Seed, Settings, explain_all
from nxm.errors import UserError

TaskName = Literal[
    "classification",
    "regression",
    "multi-label",
    "token-classification",
    "question-answering",
    "image-classification",
]
Metric = Literal["accuracy", "macro_f1", "micro_f1", "f1", "exact_match", "entity_f1", "spearman", "pearson"]
Format = Literal[
    "onnx", "onnx-int8", "onnx-weight-only", "openvino", "openvino-int8", "torch-int8", "torch-2of4", "packed"
]
TASKS: tuple[str, ...] = get_args(TaskName)
IMAGES, ANSWERS = "image-classification", "question-answering"

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:h|m|s|min)\s*)+")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as "2h", "90m", "45s" or "1h 30m".

    Raises:
        UserError: the text is no such duration, or the duration is 0.
    """
    import pandas as pd

    if not _DURATION.fullmatch(text.strip()):
        raise UserError(f"budget = {text!r}: give hours, minutes and seconds with their units: 2h, 90m, 1h 30m or 45s")
    seconds = pd.Timedelta(text.strip()).total_seconds()
    if seconds <= 0:
        raise UserError(f"budget = {text!r}: must be longer than 0 seconds")
    return seconds


def _is_duration(text: str) -> str:
    parse_duration(text)
    return text


def _several(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


class Compression(Settings):
    """Settings of one compression. `nxm compress --help` has the same names.

    Attributes:
        model: a folder saved by `save_pretrained`, or the name of a model on the Hub.
        train: labelled rows: a .csv, .tsv, .parquet, .jsonl or .json (lines) file, a folder of `datasets`, or a folder
            with a sub-folder of images per class.
        to: the constraint set in which the weights of the Transformer blocks end: "2:4", "1:4", "2:4 int8", "int4".
        out: the output folder; None: the model's name and the set.
        test: held-out rows like `train`; None: rows of `train` are held out.
        text, text2, image, label: names of columns; None and (): found by their names. Several labels: one 0/1 column
            each. `image`: paths of images, relative to the table's folder, or images of `datasets`.
        task: None: inferred from the label column.
        metric: the score that is compared and gated; None: accuracy, Spearman's correlation, micro-F1, for answers F1,
            or for tags entity F1 (accuracy where the tags are not BIO).
        recipe: "best": NxM+ (a dense teacher, ADMM with `BEST_ADMM`); "paper": NxMTransformer's own, without a teacher.
        fine_tune: fine-tune first even if the model has a head for these labels.
        dense_epochs, epochs: passes over the training rows to fine-tune the dense model, and to compress it.
        dense_learning_rate, learning_rate: peaks of the two schedules; None: by the model's width, as in the studies.
        batch_size: examples per optimizer step.
        max_length: tokens after which a text is cut, or a context goes on in another window; None: as many as the model
            reads, at most 512.
        held_out: the share of rows held out where there is no `test`, at most 2,000 rows.
        seed: of the split, the new head, the order of the batches and dropout.
        encoding: of text files.
        export: the format in which the compressed model is also written; see docs/export.md.
        max_drop: the largest loss of score, in points (score x 100), with which the run passes; None: any.
        budget: the time that the whole run may take, such as "2h" or "90m"; None: any.
    """

    model: str
    train: Path
    to: str = "2:4"
    out: Path | None = None
    test: Path | None = None
    text: str | None = None
    text2: str | None = None
    image: str | None = None
    label: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    task: TaskName | None = None
    metric: Metric | None = None
    recipe: Literal["best", "paper"] = "best"
    fine_tune: bool = False
    dense_epochs: PositiveInt = 4
    epochs: PositiveInt = 5
    dense_learning_rate: Positive | None = None
    learning_rate: Positive | None = None
    batch_size: PositiveInt = 32
    max_length: Annotated[int, Field(strict=True, ge=8)] | None = None
    held_out: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.2
    seed: Seed = 0
    encoding: str = "utf-8"
    export: Format | None = None
    max_drop: NonNegative | None = None
    budget: Annotated[str, AfterValidator(_is_duration)] | None = None

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.out is not None:
            return self.out
        # a colon in a path is a nuisance to shells and Windows
        name = Path(os.path.abspath(self.model)).name  # of "." and ".." as well
        return Path(f"{name}-{self.to.replace(':', 'of').replace(' %', '').replace(' ', '-')}")

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None without one."""
        return None if self.budget is None else parse_duration(self.budget)

    def deciding(self) -> dict[str, Any]:
        """Return, as JSON, the settings that decide which model comes out: no places, export or gate."""
        return self.model_dump(mode="json", exclude={"model", "train", "test", "out", "export", "max_drop"})


def make_settings(values: Mapping[str, Any]) -> Compression:
    """Return settings from values by name.

    Raises:
        UserError: a name is unknown, a value impossible, or one that is needed is missing; all problems at once.
    """
    unsupported = {"embeddings": "sentence embeddings"}
    task = values.get("task")
    if task is not None and task not in TASKS:
        raise UserError(
            f"task = {task!r}: {unsupported.get(task, task)} is not supported by nxm compress; {supported()}"
        )
    try:
        return Compression.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(explain_all("nxm compress", error, Compression)) from None


def supported() -> str:
    """Return the supported tasks for a message."""
    return f"supported are {', '.join(TASKS)}; for other models use the Trainer's callback (examples/)"
