"""ASP: one-shot magnitude pruning, then masked fine-tuning (Mishra et al., arXiv 2104.08378; the paper's baseline).

The mask is taken once, from the weights as they are; training then never leaves it. The same masked training is the
last phase of ADMM with a frozen mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxm.constraints import SparseSet


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
    def one_shot(cls, weights: dict[str, nn.Parameter], constraint: SparseSet) -> MaskedWeights:
        """ASP: the mask of the weights' own projection on the constraint set."""
        return cls(weights, {name: constraint.mask(weight) for name, weight in weights.items()})

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
