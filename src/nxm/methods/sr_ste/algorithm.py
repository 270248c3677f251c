"""SR-STE: N:M training with dense weights behind a mask that is computed from them at every step.

Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch (arXiv 2102.04010), eq. 9:
forward and backward run on W~ = Proj_S(W); the gradient at W~ is passed straight through to W, and masked weights are
pulled to zero, so that the mask settles:

    W <- W - lr (grad f(W~) + decay (1 - mask) * W)

With Adam the whole bracket is the gradient that Adam sees, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nxm.sets.base import SparseSet


class SRSTE:
    """Dense weights W and the masked ones that the network runs on.

    Args:
        weights: name -> parameter; holds W between `restore_` and `mask_`, W~ between `mask_` and `restore_`.
        constraint: the set S, or name -> set.
        decay: the pull of masked weights toward zero (the paper's lambda_W).
    """

    def __init__(
        self, weights: dict[str, nn.Parameter], constraint: SparseSet | Mapping[str, SparseSet], decay: float
    ) -> None:
        self.weights = weights
        self.sets = dict.fromkeys(weights, constraint) if isinstance(constraint, SparseSet) else constraint
        self.decay = decay
        self.masks: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}

    @torch.no_grad()
    def mask_(self) -> None:
        """Replace W by W~ in the network, before the forward pass; where W~ is there already, nothing changes.

        A step's gradient may be accumulated over several passes, each with its own call.
        """
        for name, W in self.weights.items():
            if name in self._dense:
                continue
            self._dense[name] = W.detach().clone()
            self.masks[name] = self.sets[name].mask(W)
            W.mul_(self.masks[name])

    @torch.no_grad()
    def restore_(self) -> None:
        """Restore W and add the decay to its gradient, after the backward pass and before the optimizer's step."""
        for name, W in self.weights.items():
            W.copy_(self._dense.pop(name))
            if W.grad is not None:
                W.grad.add_(W * ~self.masks[name], alpha=self.decay)

    @torch.no_grad()
    def abandon_(self) -> None:
        """Put W back where the network still has W~, after a step that an exception ended."""
        for name, dense in self._dense.items():
            if torch.equal(self.weights[name], dense * self.masks[name]):  # else somebody loaded other weights
                self.weights[name].copy_(dense)
        self._dense = {}

    def dense(self, name: str) -> Tensor | None:
        """Return W while the network has W~; None: the network has W."""
        return self._dense.get(name)
