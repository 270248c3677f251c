"""Scores of a model on held-out rows, and the paired bootstrap that compares two models.

Every row gives a few numbers (`outcomes`), and a score is a function of the rows' numbers. So a draw of the bootstrap
takes rows with replacement, the same ones for both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy import stats

from nxm.compress.answers import best_answers, score_answer
from nxm.compress.encode import Encoded
from nxm.compress.examples import Examples
from nxm.compress.settings import ANSWERS, IMAGES
from nxm.distillation.loss import IGNORED_LABEL
from nxm.errors import Diverged, UserError
from nxm.export.trained import Answer
from nxm.study.bootstrap import DRAWS, interval

METRICS = {  # the first is the one that is compared, unless the settings name another
    "classification": ("accuracy", "macro_f1"),
    "regression": ("spearman", "pearson"),
    "multi-label": ("micro_f1", "macro_f1", "exact_match"),
    "token-classification": ("entity_f1", "accuracy"),
    ANSWERS: ("f1", "exact_match"),
    IMAGES: ("accuracy", "macro_f1"),
}
TARGETS = ("labels", "start_positions", "end_positions")  # columns that a model's answer does not need
CLASSES = ("classification", IMAGES)  # tasks with one class per row
LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "f1": "F1",
    "exact_match": "exact match",
    "entity_f1": "entity F1",
    "spearman": "Spearman's correlation",
    "pearson": "Pearson's correlation",
}


@dataclass(frozen=True)
class Score:
    """A score in points (x 100) with the limits of its 95 % interval."""

    value: float
    low: float
    high: float


def metric_names(task: str, classes: Sequence[str], wanted: str | None = None) -> tuple[str, ...]:
    """Return the names of a task's metrics, the one to compare first.

    Entity F1 is for BIO tags (O, B-..., I-...); other tags have accuracy alone.

    Raises:
        UserError: the wanted metric is none of this task's.
    """
    names = METRICS[task]
    if task == "token-classification" and not is_bio(classes):
        names = ("accuracy",)
    if wanted is not None and wanted not in names:
        raise UserError(f"metric = {wanted!r}: {task} with these labels has {', '.join(names)}")
    return names if wanted is None else (wanted, *(name for name in names if name != wanted))


def is_bio(classes: Sequence[str]) -> bool:
    """Return whether tags mark entities: O, and B-X or I-X."""
    return "O" in classes and len(classes) > 1 and all(name == "O" or name[:2] in ("B-", "I-") for name in classes)


def predict(answer: Answer, data: Encoded, batch: int = 64) -> list[np.ndarray]:
    """Return a model's logits for each row, in the rows' order.

    Their shape is (labels,); for token classification (words, labels); for windows of contexts (tokens, 2), of an
    answer's first and last token. Batches have rows of similar lengths.

    Args:
        answer: a model's inputs by name -> its outputs by name.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    order = np.argsort(data.rows["length"], kind="stable")
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch].tolist()
        part = [data.rows[i] for i in chosen]
        answers = answer({name: tensor for name, tensor in data.collate(part).items() if name not in TARGETS})
        if data.windows:
            logits = np.stack([answers["start_logits"], answers["end_logits"]], axis=-1)
        else:
            logits = answers["logits"]
        if not np.isfinite(logits).all():
            raise Diverged("the model's answers are not finite: training diverged (lower the learning rate)")
        for i, row, own in zip(chosen, part, logits, strict=True):
            if data.windows:
                own = own[: row["length"]]
            elif own.ndim == 2:
                own = own[: len(row["labels"])][np.array(row["labels"]) != IGNORED_LABEL]
            found[i] = own
    return [found[i] for i in range(len(order))]


def outcomes(task: str, classes: Sequence[str], logits: Sequence[np.ndarray], rows: Dataset) -> np.ndarray:
    """Return for each row the numbers of which its scores are made, `(rows, numbers)`; see `metrics`."""
    labels = rows["labels"]
    if task == "token-classification":
        tags = [np.array([label for label in own if label != IGNORED_LABEL], dtype=int) for own in labels]
        return np.array([_row_of_words(classes, own.argmax(-1), true) for own, true in zip(logits, tags, strict=True)])
    answers, truth = np.stack(logits), np.asarray(labels)
    if task == "regression":
        return np.column_stack([answers[:, 0], truth]).astype(float)
    if task in CLASSES:
        named = np.eye(answers.shape[1])
        found, true = named[answers.argmax(1)], named[truth]
        return np.concatenate([found * true, found, true], axis=1)
    found, true = (answers > 0).astype(float), truth.astype(float)
    exact = (found == true).all(axis=1, keepdims=True)
    return np.concatenate([found * true, found, true, exact], axis=1)


def held_out_outcomes(examples: Examples, data: Encoded, answer: Answer) -> np.ndarray:
    """Return the outcomes of a model, or of another form of it, on encoded examples: a row per example."""
    if examples.task == ANSWERS:
        contexts = [context for _, context in examples.inputs]
        found = best_answers(contexts, data.windows, predict(answer, data), examples.unanswerable)
        return np.array([score_answer(own, right) for own, right in zip(found, examples.labels, strict=True)])
    return outcomes(examples.task, examples.classes, predict(answer, data), data.rows)


def metrics(task: str, numbers: np.ndarray) -> dict[str, float]:
    """Return a task's metrics in points (x 100) from the outcomes of some rows.

    A correlation with a constant and F1 without anything to find count as 0.
    """
    if task == "regression":
        found, truth = numbers.T
        if np.ptp(found) == 0 or np.ptp(truth) == 0:
            return {"spearman": 0.0, "pearson": 0.0}
        values = {
            "spearman": stats.spearmanr(found, truth).statistic,
            "pearson": stats.pearsonr(found, truth).statistic,
        }
        return {name: 100 * float(value) for name, value in values.items()}
    if task == ANSWERS:
        exact_match, f1 = numbers.mean(axis=0)
        return {"f1": 100 * float(f1), "exact_match": 100 * float(exact_match)}
    total = numbers.sum(axis=0)
    if task == "token-classification":
        correct, words, *entities = total
        return {"entity_f1": 100 * _f1(*entities), "accuracy": 100 * float(correct / max(1, words))}
    exact = total[-1] / len(numbers) if task == "multi-label" else 0.0
    hits, found, true = (total[:-1] if task == "multi-label" else total).reshape(3, -1)
    occurring = (found + true) > 0
    macro = float(np.mean(2 * hits[occurring] / (found + true)[occurring])) if occurring.any() else 0.0
    if task in CLASSES:
        return {"accuracy": 100 * float(hits.sum() / len(numbers)), "macro_f1": 100 * macro}
    return {
        "micro_f1": 100 * _f1(hits.sum(), found.sum(), true.sum()),
        "macro_f1": 100 * macro,
        "exact_match": 100 * float(exact),
    }


def compare(
    task: str, metric: str, before: np.ndarray, after: np.ndarray, draws: int = DRAWS
) -> tuple[Score, Score, Score]:
    """Return the scores of two models and their difference (after - before), with intervals by the paired bootstrap.

    Args:
        before, after: `outcomes` of the same rows.
    """
    random = np.random.default_rng(0)
    scores = np.empty((draws, 2))
    for draw in range(draws):
        rows = random.integers(len(before), size=len(before))
        scores[draw] = [metrics(task, own[rows])[metric] for own in (before, after)]
    values = [metrics(task, own)[metric] for own in (before, after)]
    return (
        Score(values[0], *interval(scores[:, 0])),
        Score(values[1], *interval(scores[:, 1])),
        Score(values[1] - values[0], *interval(scores[:, 1] - scores[:, 0])),
    )


def constant_answer(task: str, numbers: np.ndarray) -> float | None:
    """Return the accuracy in points of always answering the most frequent class; None for tasks without classes."""
    if task not in CLASSES:
        return None
    return 100 * float(numbers.sum(axis=0).reshape(3, -1)[2].max() / len(numbers))


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the entities that BIO tags mark, as (first word, word behind the last, type).

    An I-X that continues no X begins an entity, as in the CoNLL evaluation.
    """
    found, start = set(), 0
    kind: str | None = None
    for i, tag in enumerate([*tags, "O"]):
        mark, _, own = tag.partition("-")
        if kind is not None and (mark != "I" or own != kind):
            found.add((start, i, kind))
            kind = None
        if mark in ("B", "I") and kind is None:
            start, kind = i, own
    return found


def _row_of_words(classes: Sequence[str], found: np.ndarray, true: np.ndarray) -> list[float]:
    row = [float((found == true).sum()), float(len(true))]
    if not is_bio(classes):
        return [*row, 0.0, 0.0, 0.0]
    ours, theirs = (entities([classes[i] for i in tags]) for tags in (found, true))
    return [*row, float(len(ours & theirs)), float(len(ours)), float(len(theirs))]


def _f1(hits: float, found: float, true: float) -> float:
    return float(2 * hits / (found + true)) if found + true > 0 else 0.0
