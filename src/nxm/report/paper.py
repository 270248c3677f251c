"""The paper's numbers (NxMTransformer, arXiv 2110.15766). No other module holds any.

Runs have this project's names: dense is BERT-base, distil is DistilBERT, distil_nxm is DistilBERT-NxMTransformer.
The paper's "4:2" (2 of 4 survive) is written 2:4, as hardware vendors do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Table 1 and Table 2: dev set, percent points. MNLI matched and mismatched are two columns.
COLUMNS = ("mnli_m", "mnli_mm", "sst2", "qnli", "cola", "stsb", "mrpc", "rte")
_ROWS = {
    "dense": (84.5, 84.8, 92.5, 91.6, 56.7, 89.6, 91.7, 70.7),
    "admm_unstructured": (84.0, 84.7, 92.5, 91.0, 57.5, 89.6, 90.5, 68.2),
    "asp": (83.3, 83.4, 91.9, 90.6, 51.7, 88.7, 88.1, 63.9),
    "nxm": (82.3, 83.4, 92.3, 90.4, 55.3, 89.3, 90.8, 68.6),
    "distil": (82.4, 82.5, 90.9, 89.1, 53.4, 86.6, 89.6, 63.5),
    "distil_nxm": (80.7, 81.2, 90.5, 87.5, 50.1, 87.1, 88.7, 59.2),
}
SCORES = {method: dict(zip(COLUMNS, row, strict=True)) for method, row in _ROWS.items()}
PRINTED_AVERAGE = {
    "dense": 81.8,
    "admm_unstructured": 81.3,
    "asp": 78.8,
    "nxm": 80.5,
    "distil": 78.5,
    "distil_nxm": 76.6,
}

# Table 2: non-zero parameters, in millions. BERT-base's own size is not in the table.
NONZERO_MILLIONS = {"nxm": 66.6, "distil": 66.6, "distil_nxm": 45.3}


@dataclass(frozen=True)
class Grid:
    """The values that the paper searched; it reports the best on dev."""

    learning_rate: tuple[float, ...]
    rho: tuple[float, ...]  # empty: the method has no rho
    batch_size: tuple[int, ...]
    epochs: int


_LARGE_TASKS = ("mnli", "qnli", "sst2")


def grid(method: str, task: str) -> Grid | None:
    """Return the paper's grid for a run and a task (ADMM: Table 3, others: section 4.1), or None if it gives none."""
    large = task in _LARGE_TASKS
    if method in ("nxm", "nxm_paper", "admm_unstructured", "distil_nxm"):
        if large:
            return Grid((1e-5, 3e-5, 5e-5), (4e-4, 1e-3, 3e-3), (16, 32), 5)
        return Grid((5e-5, 7e-5, 9e-5, 1e-4), (3e-3, 6e-3, 1e-2), (16, 32), 10)
    if method == "dense":
        return Grid((1e-5, 3e-5, 5e-5) if large else (1e-5, 3e-5, 5e-5, 7e-5, 9e-5), (), (16, 32), 5)
    if method == "asp":
        return Grid((1e-5, 3e-5, 5e-5, 7e-5, 9e-5), (), (16, 32), 5)
    return None


# Figure 2 (STS-B, section 4.2): NxM's pruned network overtakes ASP at about this epoch and ends above it.
OVERTAKES_AT_EPOCH = 6

# Figure 3 (CoLA, QNLI): the score rises with the mask's similarity up to about this, then falls.
BEST_SIMILARITY = 0.99

# Figure 4 (STS-B): mean |w| after / before fine-tuning, by ADMM iterations outside the mask, as the text states it.
MAGNITUDE_KEPT = {0: 1.00, 1: 0.85, 2: 0.75}

# Section 2: matrix multiplications of BERT's shapes on an A100, 2:4 over dense.
MATMUL_SPEEDUP = (1.3, 1.6)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the paper's average of one or more values. A value of 0 or less, possible for Matthews, makes it 0."""
    values = list(values)
    return math.prod(max(value, 0.0) for value in values) ** (1 / len(values))


def average(method: str, columns: Iterable[str]) -> float | None:
    """Return the paper's average of a run recomputed over some columns, or None if the paper has no such row."""
    if method not in SCORES:
        return None
    return geometric_mean(SCORES[method][column] for column in columns)
