"""The GLUE tasks: what each asks, how its tables look, how the paper scores it.

A task is one entry of `TASKS`; everything else (download, checks, tokenisation, the model's head, metrics, tables)
reads it from there. Schema, splits and label names are those of the Hub's `nyu-mll/glue`
(https://huggingface.co/datasets/nyu-mll/glue), the metrics those of the NxMTransformer paper, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nxm.errors import Diverged, UserError


@dataclass(frozen=True)
class Task:
    """One task of GLUE. `rows` holds the official number of rows of each split that carries labels, training first."""

    name: str
    sentences: tuple[str, ...]  # the one or two text columns, in the order the model reads them
    classes: tuple[str, ...]  # names of labels 0, 1, …; empty: the label is a float within `score_range`
    rows: Mapping[str, int]
    metric: Literal["spearman", "f1", "matthews", "accuracy"]  # the one the paper prints
    group: Literal["small", "large"]  # the paper's grids differ between the two
    score_range: tuple[float, float] | None = None

    @property
    def regression(self) -> bool:
        return not self.classes

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        return len(self.classes) or 1

    @property
    def problem_type(self) -> str:
        """As `transformers.PretrainedConfig.problem_type` spells it."""
        return "regression" if self.regression else "single_label_classification"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @property
    def evaluation(self) -> dict[str, str]:
        """Splits to evaluate on, each with what it adds to the names of its metrics (MNLI: `_m` and `_mm`)."""
        suffixes = {"validation": "", "validation_matched": "_m", "validation_mismatched": "_mm"}
        return {split: suffixes[split] for split in self.splits if split != "train"}

    @property
    def schema(self) -> pa.Schema:
        """Columns of the canonical table, in order: sentences (string), label (int64 or float32), idx (int32)."""
        label = pa.float32() if self.regression else pa.int64()
        return pa.schema([*((name, pa.string()) for name in self.sentences), ("label", label), ("idx", pa.int32())])


METRICS = ("spearman", "pearson", "matthews", "f1", "accuracy")  # all names that `compute_metrics` uses

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            {"train": 8551, "validation": 1043},
            "matthews",
            "small",
        ),
        Task("sst2", ("sentence",), ("negative", "positive"), {"train": 67349, "validation": 872}, "accuracy", "large"),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), {"train": 3668, "validation": 408}, "f1", "small"),
        Task("stsb", _PAIR, (), {"train": 5749, "validation": 1500}, "spearman", "small", score_range=(0.0, 5.0)),
        Task("rte", _PAIR, _ENTAILMENT, {"train": 2490, "validation": 277}, "accuracy", "small"),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, {"train": 104743, "validation": 5463}, "accuracy", "large"),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
            "accuracy",
            "large",
        ),
    )
}


def get_task(name: str) -> Task:
    """The entry of a task. Raises UserError that lists the known ones."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; known are {', '.join(TASKS)}")
    return TASKS[name]


def compute_metrics(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All metrics of a task in percent points (score x 100), the paper's first.

    Args:
        predictions: a model's logits, (n, num_labels) floats; for classes also the chosen classes, (n,) integers;
            for regression the scores, (n, 1) or (n,) floats.
        labels: (n,) classes or scores.

    A correlation with a constant has no value (its variance is 0): it counts as 0.0, no correlation found, so that a
    collapsed model is the worst of a grid and not a NaN in it. F1 without any positive is 0.0 for the same reason.

    Raises:
        UserError: the numbers of predictions and labels differ.
        Diverged: a prediction is NaN or infinite.
    """
    from scipy import stats
    from sklearn import metrics

    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if task.regression or predictions.ndim == 1:
        predictions = predictions.reshape(-1)
    if len(predictions) != len(labels) or len(labels) == 0:
        raise UserError(f"task {task.name}: {len(predictions)} predictions for {len(labels)} labels")
    if not np.isfinite(predictions).all():
        row = int(np.argmin(np.isfinite(predictions.reshape(len(labels), -1)).all(axis=1)))
        raise Diverged(
            f"task {task.name}: the prediction for row {row} is {predictions[row]}, not a finite number: "
            "the training has diverged (a lower learning rate or gradient clipping helps)"
        )

    if task.regression:
        # float64: the ranks and moments of a bf16 model's scores must not depend on its rounding of sums
        scores, truth = predictions.astype(np.float64), labels.astype(np.float64)
        if np.ptp(scores) == 0 or np.ptp(truth) == 0:
            values = {"spearman": 0.0, "pearson": 0.0}
        else:
            values = {
                "spearman": stats.spearmanr(scores, truth).statistic,
                "pearson": stats.pearsonr(scores, truth).statistic,
            }
    else:
        classes = predictions.argmax(axis=1) if predictions.ndim == 2 else predictions
        values = {}
        if task.metric == "matthews":
            values["matthews"] = metrics.matthews_corrcoef(labels, classes)
        if task.metric == "f1":
            values["f1"] = metrics.f1_score(labels, classes, zero_division=0.0)
        values["accuracy"] = metrics.accuracy_score(labels, classes)
    return {name: 100.0 * float(np.nan_to_num(value)) for name, value in values.items()}


def paper_metric(task: Task, metrics: Mapping[str, float]) -> float:
    """The number that stands for a task: its metric, averaged over its evaluation splits (two for MNLI alone)."""
    return float(np.mean([metrics[task.metric + suffix] for suffix in task.evaluation.values()]))


def check_table(task: Task, split: str, table: pa.Table, *, official: bool, where: str = "") -> pa.Table:
    """Check a table as a split of a task and bring it to `task.schema`: same columns, order and types, one chunk.

    Columns beyond the schema's are dropped. `official` also demands GLUE's own number of rows; stand-ins may be cut
    down. `where` names the origin in messages.

    Raises:
        UserError: naming task, split, column, row and value, and what would be right.
    """
    place = f"task {task.name}, split {split}" + (f" ({where})" if where else "")
    if split not in task.rows:
        raise UserError(f"{place}: no such split; known are {', '.join(task.splits)}")
    columns = []
    for field in task.schema:
        indices = table.schema.get_all_field_indices(field.name)
        if len(indices) != 1:
            problem = "is missing" if not indices else f"stands {len(indices)} times"
            raise UserError(
                f"{place}: column '{field.name}' {problem}; expected are {', '.join(task.schema.names)}, "
                f"found {', '.join(table.column_names) or 'none'}"
            )
        column = table.column(indices[0])
        if not _castable(column.type, field.type):
            raise UserError(f"{place}: column '{field.name}' is of type {column.type}, expected {field.type}")
        missing = column.is_null()
        if pc.any(missing).as_py():
            raise UserError(f"{place}: column '{field.name}', row {pc.index(missing, True).as_py()}: no value")
        try:
            columns.append(column.cast(field.type, safe=not pa.types.is_floating(field.type)))
        except pa.ArrowInvalid as error:
            raise UserError(f"{place}: column '{field.name}': {error}") from None
    checked = pa.table(columns, schema=task.schema).combine_chunks()

    low, high = task.score_range if task.score_range is not None else (0, task.num_labels - 1)
    labels = checked["label"]
    # "not inside" rather than "outside": a NaN is neither below nor above
    bad = pc.invert(pc.and_(pc.greater_equal(labels, low), pc.less_equal(labels, high)))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise UserError(f"{place}: column 'label', row {row}: {labels[row].as_py()} is not within {low} … {high}")
    if checked.num_rows == 0:
        raise UserError(f"{place}: the table has no rows")
    if official and checked.num_rows != task.rows[split]:
        raise UserError(f"{place}: {checked.num_rows} rows, GLUE has {task.rows[split]}")
    return checked


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of one type can stand for another without changing what it says."""
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(found)
    return pa.types.is_integer(found)
