"""Fine-tuning on a fixed choice of the constraint set: the recovery phase that the methods share.

- `HeldWeights`: for a mask this is masked fine-tuning as in ASP (Mishra et al., arXiv 2104.08378): pruned weights stay
  zero, the others train.
- `StraightThrough`: for integers the zero pattern and the scales stay, and the codes train (quantisation-aware training
  with the straight-through estimator: Bengio et al., arXiv 1308.3432; Krishnamoorthi, arXiv 1806.08342).
- `HeldTogether`: both, where some matrices have integers and others zero patterns alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nxm.sets.allocation import sets_by_name
from nxm.sets.base import ConstraintSet, Grid, support


class HeldWeights:
    """Weights held on a fixed choice of their constraint set while an optimizer moves them.

    Args:
        weights: name -> parameter, any floating dtype; moved onto their choice at once.
        choices: name -> choice (`nxm.sets.base.Projection`), for a `SparseSet` a bool mask of the weight's shape.
        constraint: the set, or name -> set.
    """

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        choices: dict[str, Tensor],
        constraint: ConstraintSet | Mapping[str, ConstraintSet],
    ) -> None:
        self.weights = weights
        self.choices = choices
        self.sets = sets_by_name(constraint, weights)
        self._support = {name: support(choices[name]) for name in weights}
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
            self.sets[name].hold_(weight, self.choices[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return what weights and choices do not tell: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`, found among other tensors."""


class StraightThrough:
    """Weights whose network runs on integers while an optimizer moves the real numbers W behind them.

    The grid G of each matrix, its zero pattern and its scales, is fixed at the start. Forward and backward passes run
    on Z, and the gradient at Z moves W, as if rounding had the derivative 1:

        Z = argmin over G of ||Z - W||,      W <- W - lr grad f(Z)

    The parameters hold Z except during the optimizer's step, in which they hold W: evaluations, checkpoints and the
    saved model are those of the network that trains. W is in `state_dict`. An entry beyond the largest code trains on
    as well (its gradient is not clipped), and pruned entries stay zero.

    Args:
        weights: name -> parameter, fp32; holds Z from now on.
        grids: name -> `nxm.sets.base.Grid`.
    """

    def __init__(self, weights: dict[str, nn.Parameter], grids: dict[str, Grid]) -> None:
        self.weights = weights
        self.grids = grids
        self.W: dict[str, Tensor] = {}
        self.apply_to_weights_()

    @torch.no_grad()
    def apply_to_gradients_(self) -> None:
        """Put W in place of Z and mask the gradients, before the optimizer's step."""
        for name, weight in self.weights.items():
            weight.copy_(self.W[name])
            if weight.grad is not None:
                weight.grad.mul_(self.grids[name].mask)

    @torch.no_grad()
    def apply_to_weights_(self) -> None:
        """Take W from the parameters and put Z there, after the optimizer's step, even if it was skipped."""
        for name, weight in self.weights.items():
            self.W[name] = weight.detach() * self.grids[name].mask
            weight.copy_(self.grids[name].round(self.W[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """Return W, the scales and the zero patterns as 'W.<name>', 'scale.<name>' and 'mask.<name>'."""
        state = {f"W.{name}": W for name, W in self.W.items()}
        for name, grid in self.grids.items():
            # a copy, since safetensors refuses one tensor under two names, and the mask may be a method's choice
            state |= {f"scale.{name}": grid.scale, f"mask.{name}": grid.mask.clone()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`, found among other tensors, and put its Z into the parameters."""
        for name, weight in self.weights.items():
            W, scale, mask = (state[f"{part}.{name}"].to(weight.device) for part in ("W", "scale", "mask"))
            self.grids[name] = Grid(mask, scale, self.grids[name].largest)
            weight.copy_(W)
        self.apply_to_weights_()


class HeldTogether:
    """The recovery phase of different matrices, each in its own way."""

    def __init__(self, parts: Sequence[HeldWeights | StraightThrough]) -> None:
        self.parts = parts

    def apply_to_gradients_(self) -> None:
        """Call the same of every part, before the optimizer's step."""
        for part in self.parts:
            part.apply_to_gradients_()

    def apply_to_weights_(self) -> None:
        """Call the same of every part, after the optimizer's step."""
        for part in self.parts:
            part.apply_to_weights_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parts' states, whose names are of different matrices."""
        return {key: tensor for part in self.parts for key, tensor in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`, found among other tensors."""
        for part in self.parts:
            part.load_state_dict(state)


Held = HeldWeights | StraightThrough | HeldTogether


def hold(
    weights: dict[str, nn.Parameter],
    choices: dict[str, Tensor],
    constraint: ConstraintSet | Mapping[str, ConstraintSet],
) -> Held:
    """Return the recovery phase on fixed choices: straight-through for integers, `HeldWeights` for zero patterns.

    Args:
        constraint: the set, or name -> set.
    """
    sets = sets_by_name(constraint, weights)
    grids = {name: sets[name].grid(W, choices[name]) for name, W in weights.items()}
    found = {name: grid for name, grid in grids.items() if grid is not None}
    if not found:
        return HeldWeights(weights, choices, sets)
    rounded = StraightThrough({name: weights[name] for name in found}, found)
    if len(found) == len(weights):
        return rounded
    others = {name: W for name, W in weights.items() if name not in found}
    return HeldTogether([rounded, HeldWeights(others, {name: choices[name] for name in others}, sets)])
