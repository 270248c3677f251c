"""Scores of a model and of its export on labelled data, by which `nxm export --max-drop` refuses an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import csv
from torch import Tensor

from nxm.data.prepare import load_prepared
from nxm.data.tables import check_table, read_parquet
from nxm.data.tasks import Task, compute_metrics, get_task
from nxm.errors import UserError
from nxm.export.trained import Answer, Judge, Trained, outputs
from nxm.files import check_manifest

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Labelled:
    """Tokenised examples of a task.

    Attributes:
        splits: tables with the columns of `nxm.data.prepare`; the score is the mean over them (MNLI has two).
    """

    path: Path
    task: Task
    splits: tuple[Dataset, ...]


def make_judge(trained: Trained, data: Labelled, max_drop: float | None) -> Judge:
    """Return a function that scores an export, prints its score and the model's, and refuses one that lost too much.

    Args:
        max_drop: the points (score x 100) by which the export's score may be lower; None: any number.

    Raises:
        UserError: (at once) the model does not answer the task, or `max_drop` could refuse no export on data whose
            labels are all the same; (at the call) the score is lower by more.
    """
    if max_drop is not None:
        for rows in data.splits:
            _assert_labels_differ(rows, data)
    what = f"{data.task.metric} on {sum(len(split) for split in data.splits)} rows of {data.path}"
    return judge_by(lambda answer: score(trained, answer, data), partial(outputs, trained.model), what, max_drop)


def judge_by(score_of: Callable[[Answer], float], model: Answer, what: str, max_drop: float | None) -> Judge:
    """Return a function that compares the scores of an export and of its model.

    Args:
        score_of: returns the score of a form of the model, in percent points.
        what: the metric and the data, for messages.
        max_drop: see `make_judge`.

    Raises:
        UserError: (at once) the model does not answer the task; (at the call) the score is lower by more.
    """
    own = score_of(model)

    def judge(answer: Answer) -> None:
        found = score_of(answer)
        if max_drop is not None and not own - found <= max_drop + 1e-9:
            raise UserError(
                f"not written: {what} is {found:.2f} for the export and {own:.2f} for the model, {own - found:.2f} "
                f"points lower; --max-drop allows {max_drop:g}"
            )
        print(f"{what}: {found:.2f} (the model's: {own:.2f})")

    return judge


def _assert_labels_differ(rows: Dataset, data: Labelled) -> None:
    """Raise UserError if all rows have one label: correlations are then 0.0, and a constant answer may be perfect."""
    labels = np.asarray(rows["labels"])
    if len(labels) and (labels == labels[0]).all():
        raise UserError(
            f"{data.path}: all {len(labels)} rows that count have the label {labels[0]:g}, so that {data.task.metric} "
            "shows no loss of an export; --max-drop needs rows with different labels"
        )


def score(trained: Trained, answer: Answer, data: Labelled) -> float:
    """Return the task's metric in percent points, averaged over the splits.

    Args:
        answer: the form of the model that is scored: takes the model's inputs, returns outputs by name.

    Raises:
        UserError: the outputs are not those of a model for the task.
    """
    task = data.task
    metrics = []
    for rows in data.splits:
        logits = predict(trained, answer, rows)
        if logits.ndim != 2 or logits.shape[1] != task.num_labels:
            raise UserError(
                f"{trained.folder}: has logits of shape {logits.shape[1:]} per example, task {task.name} needs "
                f"({task.num_labels},): is it a model for another task?"
            )
        metrics.append(compute_metrics(task, logits, np.asarray(rows["labels"]))[task.metric])
    return float(np.mean(metrics))


def predict(trained: Trained, answer: Answer, rows: Dataset, batch: int = 64) -> np.ndarray:
    """Return logits, `(rows, labels)`, in the order of `rows`; batches have similar lengths to reduce padding.

    Args:
        rows: with the columns of `nxm.data.prepare`.

    Raises:
        UserError: the model has no logits.
    """
    order = np.argsort(rows["length"], kind="stable")
    columns = [name for name in trained.inputs if name in rows.column_names]
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        features = rows.select(chosen).select_columns(columns).to_list()
        inputs: Mapping[str, Tensor] = trained.tokenizer.pad(features, return_tensors="pt")
        answers = answer({name: inputs[name] for name in columns})
        if "logits" not in answers:
            raise UserError(
                f"{trained.folder}: has no logits but {', '.join(answers)}; scores are those of classifiers"
            )
        found |= dict(zip(chosen.tolist(), answers["logits"], strict=True))
    return np.stack([found[i] for i in range(len(order))])


def read_labelled(path: Path, task_name: str | None, trained: Trained) -> Labelled:
    """Read the labelled examples at a path, tokenised for a model.

    Args:
        path: a folder that a study's stage `prepare` wrote, of which the splits for evaluation count; or a table, as
            .csv, .tsv or .parquet, with the task's columns, such as sentence1, sentence2 and label.
        task_name: the task; None: the folder's own.

    Raises:
        UserError: there is no such data, it does not fit the task or the model, or the task is not known.
    """
    if path.is_dir():
        prepared, own = load_prepared(path), check_manifest(path).get("task")
        if task_name and own and task_name != own:
            raise UserError(f"{path}: holds data of the task {own}, not {task_name} (--task)")
        task = _task(task_name or own, path)
        if missing := [split for split in task.evaluation if split not in prepared]:
            raise UserError(f"{path}: has no split '{missing[0]}', on which task {task.name} is evaluated")
        splits = tuple(prepared[split] for split in task.evaluation)
    else:
        task = _task(task_name, path)
        splits = (_tokenised(_read_table(path, task), task, trained),)
    words = trained.model.config.get_text_config().vocab_size
    largest = max(max(ids, default=0) for split in splits for ids in split["input_ids"])
    if largest >= words:
        raise UserError(f"{path}: has the token {largest}, {trained.folder} has {words}: they do not belong together")
    longest = max(max(split["length"]) for split in splits)
    if longest > trained.max_length:
        raise UserError(f"{path}: has an example of {longest} tokens, {trained.folder} reads {trained.max_length}")
    return Labelled(path, task, splits)


def _task(name: str | None, path: Path) -> Task:
    if name is None:
        raise UserError(f"{path}: does not name its task; give it with --task, such as --task stsb")
    return get_task(name)


def _read_table(path: Path, task: Task) -> pa.Table:
    if path.suffix == ".parquet":
        table = read_parquet(path, str(path))
    elif path.suffix in (".csv", ".tsv"):
        text = csv.ConvertOptions(column_types=dict.fromkeys(task.sentences, pa.string()))
        parsing = csv.ParseOptions(newlines_in_values=True)
        if path.suffix == ".tsv":
            parsing = csv.ParseOptions(delimiter="\t", quote_char=False)  # GLUE's sentences have quotes of their own
        try:
            table = csv.read_csv(path, parse_options=parsing, convert_options=text)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read as a table: {error}") from None
    else:
        raise UserError(f"{path}: --data is a folder that a study prepared, or a .csv, .tsv or .parquet file")
    if table.num_rows == 0:
        raise UserError(f"{path}: the table has no rows")
    if "idx" not in table.column_names:
        table = table.append_column("idx", pa.array(np.arange(table.num_rows, dtype=np.int32)))
    if task.regression and "label" in table.column_names and pa.types.is_integer(table.schema.field("label").type):
        label = table.schema.get_field_index("label")
        table = table.set_column(label, "label", table.column(label).cast(pa.float32()))
    return check_table(task, next(iter(task.evaluation)), table, official=False, where=str(path))


def _tokenised(table: pa.Table, task: Task, trained: Trained) -> Dataset:
    from datasets import Dataset

    sentences = [table[name].to_pylist() for name in task.sentences]
    encoded = dict(trained.tokenizer(*sentences, truncation=True, max_length=trained.max_length))
    encoded |= {"labels": table["label"].to_pylist(), "length": [len(ids) for ids in encoded["input_ids"]]}
    return Dataset.from_dict(encoded)
