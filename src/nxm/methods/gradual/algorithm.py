"""Gradual magnitude pruning (GMP): the mask shrinks in steps while the weights train, then stays.

Zhu & Gupta, arXiv 1710.01878: sparsity follows a cubic curve, so that most weights are pruned early, while the network
still learns fast; pruned weights stay pruned. Tuned with care it is the strongest of the simple baselines (GMP*, arXiv
2210.06384).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxm.sets.base import SparseSet


def share_left(progress: float) -> float:
    """Return the share of the weights to be pruned that is left after `progress` (0 to 1): a falling cubic.

    The density is then d + (1 - d) share_left, for d the density at the end (Zhu & Gupta's eq. 1).
    """
    return (1.0 - min(1.0, max(0.0, progress))) ** 3


def gradual_mask(W: Tensor, constraint: SparseSet, share: float) -> Tensor:
    """Return the bool mask on the way into a sparse set: the entries of the set's own mask, and the largest others.

    For N:M the others are the losers of their groups: the mask drops them from the smallest magnitude on, over the
    whole matrix, until every group has its N. (Zhu & Gupta's global order of magnitudes, which ends in any pattern.)

    Args:
        W: the current weights, those pruned before being zero.
        share: the share of the others that is retained, from 1 (all) to 0 (the set's own mask).

    Raises:
        Diverged: W has NaN.
    """
    mask = constraint.mask(W)
    rest = (W != 0) & ~mask
    magnitude = torch.where(rest, W.abs(), W.new_zeros(())).reshape(-1)
    n_retained = min(int(rest.sum()), round(share * int((~mask).sum())))
    if n_retained:
        order = magnitude.argsort(descending=True, stable=True)  # ties: the earlier stays, as in all projections
        mask = mask.reshape(-1).clone()
        mask[order[:n_retained]] = True
    return mask.reshape(W.shape)
