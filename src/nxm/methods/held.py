"""ASP: one-shot magnitude pruning, then masked fine-tuning (Mishra et al., arXiv 2104.08378; the paper's baseline).

The mask is taken once, from the weights as they are; training then never leaves it. The same masked training is the
last phase of ADMM with a frozen mask.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nxm.sets.base import SparseSet


class MaskedWeights:
    """Weights held on a fixed mask while an optimizer moves them.

    Args:
        weights: name -> parameter, any floating dtype.
        masks: name -> bool tensor of the same shape.
    """

    def __init__(self, weights: dict[str, nn.Parameter], masks: dict[str, Tensor]) -> None:
        self.weights = weights
        self.masks = masks
        self.apply_to_weights_()

    @classmethod
    def one_shot(
        cls,
        weights: dict[str, nn.Parameter],
        constraint: SparseSet,
        importance: Mapping[str, Tensor] | None = None,
    ) -> MaskedWeights:
        """ASP: the mask of the weights' own projection on the constraint set.

        Args:
            importance: name -> what a squared change of each weight costs
            (`nxm.methods.admm.algorithm.ADMM.iterate_`): the mask is then
                that of sqrt(v) |W|, with `nxm.methods.importance.ActivationNorms` Wanda's (arXiv 2306.11695).
        """
        scores = {name: weight.detach() for name, weight in weights.items()}
        if importance is not None:
            scores = {name: score * importance[name].sqrt() for name, score in scores.items()}
        return cls(weights, {name: constraint.mask(score) for name, score in scores.items()})

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Before the optimizer's step: no gradient reaches a pruned weight, so its moments stay zero or decay."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """After the optimizer's step: momentum and weight decay cannot revive a pruned weight."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name]).add_(0.0)  # + 0.0 turns -0.0 into +0.0
