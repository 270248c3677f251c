"""One-shot pruning: the choice of the pretrained weights' own projection, on which fine-tuning then holds them.

For N:M this is ASP (Mishra et al., arXiv 2104.08378; the paper's baseline): the mask of the largest magnitudes, then
masked fine-tuning (`nxm.methods.held`). With `nxm.methods.importance.ActivationNorms` the mask is Wanda's (arXiv
2306.11695).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nxm.sets.allocation import sets_by_name
from nxm.sets.base import ConstraintSet


@torch.no_grad()
def one_shot_choices(
    weights: Mapping[str, nn.Parameter],
    constraint: ConstraintSet | Mapping[str, ConstraintSet],
    importance: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return name -> the choice of the weight's projection on the constraint set, for N:M its bool mask.

    Args:
        weights: name -> parameter, any floating dtype.
        constraint: the set, or name -> set.
        importance: name -> the cost v >= 0 of a squared change of each weight, of the weight's shape or one that
            broadcasts to it (`nxm.methods.importance`), so that the largest sqrt(v) |W| survive; None: the Euclidean
            projection, also of a weight that is left out.

    Raises:
        Diverged: a weight has NaN.
    """
    sets = sets_by_name(constraint, weights)
    return {
        name: sets[name].project(W, None if importance is None else importance.get(name)).choice
        for name, W in weights.items()
    }
