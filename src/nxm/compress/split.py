"""Rows held out of the training rows: seeded, with the classes' shares, and no text on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from nxm.errors import UserError

MOST_HELD_OUT = 2000  # rows: more make the interval hardly narrower, and every score slower


def hold_out(
    keys: Sequence[Hashable], strata: Sequence[Hashable], share: float, seed: int, most: int = MOST_HELD_OUT
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those held out, as rising indices.

    Rows with the same key are one group and go to one side. In each stratum, that of a group's first row, groups are
    taken in random order as long as they fit into the share; one group at least remains for training.

    Args:
        keys: one per row; equal for rows that must not be separated.
        strata: one per row, such as its class.
        share: of the rows, between 0 and 1.
        most: rows held out at most.

    Raises:
        UserError: so few rows that none can be held out.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    by_stratum: dict[Hashable, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        by_stratum[strata[rows[0]]].append(rows)
    share = min(share, most / max(1, len(keys)))
    random = np.random.default_rng(seed)
    held: list[int] = []
    for members in by_stratum.values():
        held += _draw(members, int(share * sum(map(len, members))), random)
    if not held:  # so few rows of each class that no share of them is one row
        divisible = [members for members in by_stratum.values() if len(members) > 1]
        if not divisible:
            raise UserError(
                f"{len(keys)} rows with {len(groups)} different inputs: none can be held out to score the model; give "
                "more rows, or a file with held-out ones (--test)"
            )
        largest = max(divisible, key=lambda members: len(members))
        held = min(largest, key=lambda rows: len(rows))
    test = np.array(sorted(held))
    return np.setdiff1d(np.arange(len(keys)), test), test


def _draw(members: list[list[int]], wanted: int, random: np.random.Generator) -> list[int]:
    drawn: list[int] = []
    left = len(members)
    for i in random.permutation(len(members)):
        if len(drawn) + len(members[i]) <= wanted and left > 1:
            drawn += members[i]
            left -= 1
    return drawn


def without(keys: Sequence[Hashable], others: Sequence[Hashable]) -> np.ndarray:
    """Return the rows whose key is none of the others, as rising indices."""
    known = set(others)
    return np.array([row for row, key in enumerate(keys) if key not in known], dtype=int)


def contradictions(keys: Sequence[Hashable], labels: Sequence[object]) -> int:
    """Return the number of different texts that occur with different labels."""
    seen: dict[Hashable, set[str]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        seen[key].add(str(label))
    return sum(len(own) > 1 for own in seen.values())
