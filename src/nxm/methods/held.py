"""Fine-tuning on a fixed choice of the constraint set: the recovery phase that the methods share.

For a mask this is masked fine-tuning as in ASP (Mishra et al., arXiv 2104.08378): pruned weights stay zero, the others
train.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxm.sets.base import ConstraintSet, support


class HeldWeights:
    """Weights held on a fixed choice of their constraint set while an optimizer moves them.

    Args:
        weights: name -> parameter, any floating dtype; moved onto their choice at once.
        choices: name -> choice (`nxm.sets.base.Projection`), for a `SparseSet` a bool mask of the weight's shape.
        constraint: the set.
    """

    def __init__(self, weights: dict[str, nn.Parameter], choices: dict[str, Tensor], constraint: ConstraintSet) -> None:
        self.weights = weights
        self.choices = choices
        self.constraint = constraint
        self._support = {name: support(choice) for name, choice in choices.items()}
        self.apply_to_weights_()

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Mask the gradients, before the optimizer's step: the moments of a pruned weight stay zero or decay."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self._support[name])

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Hold the weights, after the optimizer's step: momentum and weight decay cannot revive a pruned weight."""
        for name, weight in self.weights.items():
            self.constraint.hold_(weight, self.choices[name])
