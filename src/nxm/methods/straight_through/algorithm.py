"""Straight-through training (QAT): the network trains on integer weights from the start.

The zero pattern is that of the pretrained weights' own projection, as in one-shot pruning, and so are the scales. From
there `nxm.methods.held.StraightThrough` trains the codes: forward and backward passes run on the rounded weights
Z = Proj_G(W), for G the grid of this pattern and these scales, and

    W <- W - lr grad f(Z),

the straight-through estimator (Bengio et al., arXiv 1308.3432). Scales do not change: LSQ (arXiv 1902.08153), which
learns them, is not implemented. A set of zero patterns alone has no grid; this is then ASP.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nxm.sets.allocation import sets_by_name
from nxm.sets.base import ConstraintSet


@torch.no_grad()
def zero_patterns(
    weights: Mapping[str, nn.Parameter], constraint: ConstraintSet | Mapping[str, ConstraintSet]
) -> dict[str, Tensor]:
    """Return name -> the bool mask, of the weight's shape, that the weight's projection on the zero patterns retains.

    It is True everywhere for a set that allows any zero pattern.

    Args:
        constraint: the set, or name -> set.

    Raises:
        Diverged: a weight has NaN.
    """
    masks = {}
    for name, own in sets_by_name(constraint, weights).items():
        patterns, W = own.zero_patterns, weights[name]
        masks[name] = torch.ones_like(W, dtype=torch.bool) if patterns is None else patterns.mask(W)
    return masks
