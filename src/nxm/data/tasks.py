"""The GLUE tasks: their tables, their metrics and their names.

A task is one entry of `TASKS`; everything else (settings, download, checks, tokenisation, the model's head, metrics,
tables and figures) reads it from there. Schema, splits and label names are those of the Hub's `nyu-mll/glue`
(https://huggingface.co/datasets/nyu-mll/glue), the metrics those of the NxMTransformer paper, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nxm.errors import Diverged, UserError

if TYPE_CHECKING:  # the launcher and the settings read TASKS alone
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    Attributes:
        label: its name in tables and figures.
        sentences: the one or two text columns, in the order in which the model reads them.
        classes: names of labels 0, 1, ...; empty: the label is a float within `score_range`.
        rows: the official number of rows of each split that has labels, training first.
        metric: the metric that the paper reports.
        group: the paper searches different grids for small and large tasks.
        evaluation: splits to evaluate on, each with the suffix of its metrics' names.
    """

    name: str
    label: str
    sentences: tuple[str, ...]
    classes: tuple[str, ...]
    rows: Mapping[str, int]
    metric: Literal["spearman", "f1", "matthews", "accuracy"]
    group: Literal["small", "large"]
    score_range: tuple[float, float] | None = None
    evaluation: Mapping[str, str] = field(default_factory=lambda: {"validation": ""})

    @property
    def regression(self) -> bool:
        return not self.classes

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        return len(self.classes) or 1

    @property
    def problem_type(self) -> str:
        """The value of `transformers.PretrainedConfig.problem_type`."""
        return "regression" if self.regression else "single_label_classification"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @property
    def columns(self) -> dict[str, str]:
        """The task's columns in tables of scores, one per evaluation split: name -> label."""
        return {self.name + suffix: self.label + suffix.replace("_", "-") for suffix in self.evaluation.values()}

    @property
    def schema(self) -> pa.Schema:
        """Columns of the canonical table, in order: sentences (string), label (int64 or float32), idx (int32)."""
        import pyarrow as pa

        label = pa.float32() if self.regression else pa.int64()
        return pa.schema([*((name, pa.string()) for name in self.sentences), ("label", label), ("idx", pa.int32())])


METRICS = ("spearman", "pearson", "matthews", "f1", "accuracy")  # all names that `compute_metrics` uses

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, Task] = {  # in the order of the paper's tables
    task.name: task
    for task in (
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
            "accuracy",
            "large",
            evaluation={"validation_matched": "_m", "validation_mismatched": "_mm"},
        ),
        Task(
            "sst2",
            "SST-2",
            ("sentence",),
            ("negative", "positive"),
            {"train": 67349, "validation": 872},
            "accuracy",
            "large",
        ),
        Task(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILMENT,
            {"train": 104743, "validation": 5463},
            "accuracy",
            "large",
        ),
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            {"train": 8551, "validation": 1043},
            "matthews",
            "small",
        ),
        Task(
            "stsb", "STS-B", _PAIR, (), {"train": 5749, "validation": 1500}, "spearman", "small", score_range=(0.0, 5.0)
        ),
        Task(
            "mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), {"train": 3668, "validation": 408}, "f1", "small"
        ),
        Task("rte", "RTE", _PAIR, _ENTAILMENT, {"train": 2490, "validation": 277}, "accuracy", "small"),
    )
}


def get_task(name: str) -> Task:
    """Return the entry of a task. Raises UserError, which lists the known ones."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; known are {', '.join(TASKS)}")
    return TASKS[name]


def compute_metrics(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return all metrics of a task in percent points (score x 100), the paper's first.

    The correlation with a constant is undefined, since its variance is 0. It counts as 0.0, so that a collapsed model
    is the worst of a search and not a NaN in it. F1 without any positive prediction is 0.0 for the same reason.

    Args:
        predictions: a model's logits, (n, num_labels) floats; for classification also classes, (n,) integers; for
            regression scores, (n, 1) or (n,) floats.
        labels: (n,) classes or scores.

    Raises:
        UserError: the numbers of predictions and labels differ, or are 0.
        Diverged: a prediction is NaN or infinite.
    """
    import numpy as np
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
        # float64, so that moments of a bf16 model's scores do not depend on the rounding of sums
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
    """Return the score of a task: its metric, averaged over its evaluation splits (two for MNLI, else one)."""
    import numpy as np

    return float(np.mean([metrics[task.metric + suffix] for suffix in task.evaluation.values()]))
