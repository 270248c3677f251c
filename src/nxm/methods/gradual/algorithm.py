"""Gradual magnitude pruning (GMP): the mask shrinks in steps while the weights train, then stays.

Zhu & Gupta, arXiv 1710.01878: sparsity follows a cubic curve, so that most is pruned early, while the network still
learns fast; what is pruned stays pruned. Tuned with care it is the hardest of the simple rivals (GMP*, arXiv
2210.06384).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxm.sets.base import SparseSet


def share_left(progress: float) -> float:
    """Of the weights that are to go, the share still there after `progress` (0 to 1) of the pruning: a falling cubic.

    The density is then d + (1 - d) share_left, for d the density at the end (Zhu & Gupta's eq. 1).
    """
    return (1.0 - min(1.0, max(0.0, progress))) ** 3


def gradual_mask(W: Tensor, constraint: SparseSet, share: float) -> Tensor:
    """The bool mask on the way into a sparse set: what the set keeps of W, and the largest of the rest.

    For N:M the rest are the losers of their groups: the mask loses them from the smallest magnitude on, over the whole
    matrix, until at last every group has its N. (Zhu & Gupta's global order of magnitudes, which ends in any pattern.)

    Args:
        W: the weights as they are, those pruned before being zero.
        share: of the rest, what is still kept, from 1 (all) to 0 (the set's own mask).
    """
    mask = constraint.mask(W)
    rest = (W != 0) & ~mask
    magnitude = torch.where(rest, W.abs(), W.new_zeros(())).reshape(-1)
    keep = min(int(rest.sum()), round(share * int((~mask).sum())))
    if keep:
        order = magnitude.argsort(descending=True, stable=True)  # ties: the earlier stays, as in all projections
        mask = mask.reshape(-1).clone()
        mask[order[:keep]] = True
    return mask.reshape(W.shape)
