"""ADMM for sparse fine-tuning: the algorithm of NxMTransformer, without any training loop.

The problem (eq. 1, 2), over the target matrices W_i of a pretrained network with fine-tuning loss f:

    minimise  f(W) + sum_i g_i(Z_i)   subject to  W_i = Z_i,      g_i(Z) = 0 if Z in S_i, infinity otherwise

The augmented Lagrangian in scaled form splits it into three updates, one *ADMM iteration*:

    W <- argmin f(W) + rho/2 ||W - Z + U||_F^2      (3)  some optimizer steps of fine-tuning
    Z <- Proj_S(W + U)                              (4)  exact, see nxm.sets.nm
    U <- U + W - Z                                       the scaled dual variable

Two ways to take (3):

- `penalty_gradient_`, the paper's: the penalty is part of the loss, so rho (W - Z + U) is added to the gradient that
  Adam sees. Adam divides by the gradient's size, so the pull per step is about lr x rho whatever the distance, and
  needs many steps x a high learning rate (the paper's appendix A.1).
- `proximal_step_`: after the optimizer's step on f alone, W <- W - kappa (W - Z + U), the decoupled proximal step
  (compare AdamW's decoupled weight decay; SAFE, arXiv 2506.06866, algorithm 1). Of the distance to Z - U, the share
  1 - exp(-rho) is covered between two projections, whatever the optimizer, its rate, or the number of steps.

The objective's weights are fp32, and so are Z and U, whatever autocast does around the matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.sets.base import SparseSet, apply_mask

Weights = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Iteration:
    """What one ADMM iteration did, over all target matrices together.

    similarity: share of the mask's kept entries that were kept in the iteration before (the paper's Figure 3).
    primal_residual: ||W - Z||_F / ||W||_F: how far the weights still are from the constraint set.
    dual_residual: ||Z - Z_before||_F / ||W||_F: how far the projection moved.
    """

    similarity: float
    primal_residual: float
    dual_residual: float


class ADMM:
    """The variables Z and U of a set of weights W, and the three updates.

    Starts at Z = Proj_S(W), U = 0.

    Args:
        weights: name -> fp32 parameter W; updated in place by `proximal_step_`, read by the rest.
        constraint: the set S.

    Raises:
        TypeError: a weight is not fp32 (load the model in fp32 and train with bf16 autocast instead).
        ValueError: a weight does not fit the constraint set, or is NaN.
    """

    def __init__(self, weights: Weights, constraint: SparseSet) -> None:
        for name, weight in weights.items():
            if weight.dtype != torch.float32:
                raise TypeError(
                    f"{name} is {weight.dtype}; ADMM needs its weights in float32: "
                    "load the model with dtype=torch.float32 and use autocast (bf16=True) for speed"
                )
            constraint.validate(weight.shape, name)
        self.W = weights
        self.constraint = constraint
        with torch.no_grad():
            self.masks = {name: constraint.mask(W) for name, W in weights.items()}  # where Z may be non-zero
            self.Z = {name: apply_mask(W, self.masks[name]) for name, W in weights.items()}
            self.U = {name: torch.zeros_like(W) for name, W in weights.items()}
            self._target = {name: Z.clone() for name, Z in self.Z.items()}  # Z - U, what each step pulls toward

    # --- W: what is done at every optimizer step -------------------------------------------------------------------

    @torch.no_grad()
    def penalty_gradient_(self, rho: float) -> None:
        """Eq. (3) as the paper takes it: add the penalty's gradient rho (W - Z + U) to W's. Before optimizer.step()."""
        for name, W in self.W.items():
            if W.grad is None:
                W.grad = torch.zeros_like(W)
            W.grad.add_(W, alpha=rho).sub_(self._target[name], alpha=rho)

    @torch.no_grad()
    def proximal_step_(self, kappa: float) -> None:
        """Eq. (3) decoupled: W <- W - kappa (W - Z + U). After optimizer.step(). `kappa_of_rho` gives kappa."""
        for name, W in self.W.items():
            W.lerp_(self._target[name], kappa)

    # --- Z and U: once an ADMM iteration ---------------------------------------------------------------------------

    @torch.no_grad()
    def iterate_(
        self, dual_step: float = 1.0, relaxation: float = 1.0, importance: Mapping[str, Tensor] | None = None
    ) -> Iteration:
        """Eq. (4) and the dual update: Z <- Proj_S(W + U), U <- U + dual_step (W - Z).

        The paper's dual step is 1.0, right where (3) is solved: W is then at Z - U, and U takes up what is left. Where
        W covers but a share of the distance, a full step runs ahead of it: U of what is pruned grows by all of W each
        time, until W + U outweighs what is kept and the mask swaps. A step of that same share keeps the two together
        (on solving (3) inexactly see Boyd et al. 2011, section 3.4.4).

        Args:
            dual_step: the share of W - Z that U takes up.
            relaxation: both updates take `relaxation W + (1 - relaxation) Z` for W: over-relaxation above 1, to about
                1.8 (Boyd et al. 2011, section 3.4.3).
            importance: name -> what a squared change of each weight costs, v >= 0, fp32, of W's shape or one that
                broadcasts to it (`nxm.methods.importance`). Z is then the nearest in that measure: it minimises
                sum v (Z - W - U)^2 over S, so S keeps its entries by the size of sqrt(v) |W + U|. None: all alike.
        """
        stayed = kept = primal = dual = norm = 0.0
        for name, W in self.W.items():
            Z_before, mask_before, U = self.Z[name], self.masks[name], self.U[name]
            relaxed = W if relaxation == 1.0 else torch.lerp(Z_before, W, relaxation)
            V = relaxed + U
            mask = self.constraint.mask(V if importance is None else V * importance[name].sqrt())
            Z = apply_mask(V, mask)
            U.add_(relaxed, alpha=dual_step).sub_(Z, alpha=dual_step)
            self.Z[name], self.masks[name] = Z, mask
            self._target[name] = Z - U

            stayed += float((mask & mask_before).sum())
            kept += float(mask_before.sum())
            primal += float(torch.linalg.vector_norm(W - Z)) ** 2
            dual += float(torch.linalg.vector_norm(Z - Z_before)) ** 2
            norm += float(torch.linalg.vector_norm(W)) ** 2
        return Iteration(
            similarity=stayed / kept,
            primal_residual=math.sqrt(primal / norm) if norm else 0.0,
            dual_residual=math.sqrt(dual / norm) if norm else 0.0,
        )

    @torch.no_grad()
    def rescale_dual_(self, factor: float) -> None:
        """U <- factor U, with factor = rho_before / rho_after.

        The scaled dual is U = y / rho: when rho changes, the unscaled y must not (Boyd et al. 2011, section 3.4.1).
        Without it a rising rho multiplies the piled-up duals and breaks the mask.
        """
        for name, U in self.U.items():
            U.mul_(factor)
            self._target[name] = self.Z[name] - U

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Z and U (fp32) and the masks (bool) under 'Z.<name>', 'U.<name>' and 'M.<name>'."""
        return dict(self._named_state())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises ValueError when names or shapes are not these weights'."""
        expected = dict(self._named_state())
        if state.keys() != expected.keys():
            odd = sorted(state.keys() ^ expected.keys())[:3]
            raise UserError(f"ADMM state is not of this model: it differs at {', '.join(odd)}")
        for key, tensor in expected.items():
            if state[key].shape != tensor.shape:
                raise UserError(f"ADMM state {key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(state[key])
        for name in self.W:
            self._target[name] = self.Z[name] - self.U[name]

    def _named_state(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.W:
            yield f"Z.{name}", self.Z[name]
            yield f"U.{name}", self.U[name]
            yield f"M.{name}", self.masks[name]


def kappa_of_rho(rho: float, steps: int) -> float:
    """The proximal step's kappa: `steps` of them, undisturbed, cover the share 1 - exp(-rho) of the distance."""
    return -math.expm1(-rho / steps)


def rho_at(rho: float, schedule: str, iteration: int, iterations: int) -> float:
    """The penalty's strength in ADMM iteration `iteration` (from 0) of `iterations`.

    `constant`; `linear` and `cosine` ramp up to rho over all iterations. The first value is above zero, since U must
    be rescaled by the ratio of neighbouring values.
    """
    progress = min(1.0, (iteration + 1) / max(1, iterations))
    if schedule == "constant":
        return rho
    if schedule == "linear":
        return rho * progress
    if schedule == "cosine":
        return rho * (1.0 - math.cos(math.pi * progress)) / 2.0
    raise UserError(f"unknown schedule '{schedule}'; known: constant, linear, cosine")


# How much rho grows after an iteration that kept less than this share of the mask's entries (ALPS, arXiv 2406.07831;
# its own shares count entries that left and that came, twice as many).
_GROWTH = ((0.95, 1.3), (0.9975, 1.2), (1.0, 1.1))
_LARGEST_RHO = 3.0  # 95 % of the distance in one iteration: beyond it W is only held, and learns nothing


def rho_by_similarity(rho: float, similarities: Sequence[float]) -> float:
    """The strength after iterations with these mask similarities, driven by how much the mask still moves.

    After ALPS (arXiv 2406.07831, section 3.2): while the mask moves much, rho grows fast to settle it. x 1.3 after an
    iteration that swapped over 5 % of the mask, x 1.2 over 0.25 %, x 1.1 for less. Where the mask stood still ALPS is
    done; here the weights go on learning, so rho stays, as it does from 3 on (95 % of the distance in one iteration).

    Args:
        rho: the first iteration's.
        similarities: of the iterations done, in order, each a share (`Iteration.similarity`).
    """
    for similarity in similarities:
        grown = rho * next((factor for below, factor in _GROWTH if similarity < below), 1.0)
        rho = max(rho, min(grown, _LARGEST_RHO))
    return rho
