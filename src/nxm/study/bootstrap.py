"""Confidence intervals of differences between methods: the paired bootstrap over dev examples and seeds.

A draw resamples the dev examples and the seeds with replacement, the same ones for every method, and scores each
method on them. Intervals of a difference, of a ratio or of a mean over tasks are percentiles over the draws (Efron &
Tibshirani 1993, chapter 13; for NLP: Berg-Kirkpatrick et al., EMNLP 2012). Tasks are independent, so draws of several
tasks combine one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tqdm.auto import tqdm

from nxm.data.tasks import Task, compute_metrics
from nxm.errors import UserError

DRAWS = 1000  # 25 of them then lie beyond each end of a 95 % interval

Labels = Mapping[str, np.ndarray]  # evaluation split -> (rows,)
Predictions = Mapping[str, np.ndarray]  # evaluation split -> (rows, labels) logits


def resampled_scores(
    task: Task, labels: Labels, predictions: Mapping[str, Mapping[int, Predictions]], draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Return the paper's metric in percent points of each method in each draw, a mean over the seeds drawn.

    Args:
        predictions: method -> seed -> split -> logits in the split's own order. A method that lacks a seed which
            another one has is left out: its scores would be of other seeds than those drawn.

    Returns: method -> (draws, evaluation splits) float32, splits as in `task.evaluation`; empty without predictions.

    Raises:
        UserError: a method's predictions do not fit the labels.
    """
    for method, by_seed in predictions.items():
        for seed, by_split in by_seed.items():
            found = {split: len(logits) for split, logits in by_split.items()}
            expected = {split: len(labels[split]) for split in task.evaluation}
            if found != expected:
                raise UserError(
                    f"{method} on {task.name}, seed {seed}: predictions for {found} rows; the dev set has {expected}"
                )
    seeds = sorted({seed for by_seed in predictions.values() for seed in by_seed})
    whole = {method: by_seed for method, by_seed in predictions.items() if set(by_seed) == set(seeds)}
    if not whole:
        return {}

    random = np.random.default_rng([0, *task.name.encode()])  # other draws for each task: tasks are independent
    scores = {method: np.empty((draws, len(task.evaluation)), np.float32) for method in whole}
    for draw in tqdm(range(draws), desc=f"bootstrap {task.name}", unit=" draws", mininterval=1.0):
        drawn, counts = np.unique(random.choice(seeds, size=len(seeds)), return_counts=True)
        for column, split in enumerate(task.evaluation):
            rows = random.integers(len(labels[split]), size=len(labels[split]))
            for method, by_seed in whole.items():
                values = [
                    compute_metrics(task, by_seed[int(seed)][split][rows], labels[split][rows])[task.metric]
                    for seed in drawn
                ]
                scores[method][draw, column] = np.average(values, weights=counts)
    return scores


def constant_scores(task: Task, labels: Labels) -> dict[str, float]:
    """Return the paper's metric in percent points of the best constant answer, by evaluation split.

    A model that has learnt anything is above it. F1 and accuracy have a floor far above 0, a correlation one of 0.
    """
    answers = np.eye(task.num_labels, dtype=np.float32)
    by_answer = [
        {
            split: compute_metrics(task, np.tile(answer, (len(labels[split]), 1)), labels[split])[task.metric]
            for split in task.evaluation
        }
        for answer in answers
    ]
    return max(by_answer, key=lambda scores: sum(scores.values()))


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a quantity from its value in each draw."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
