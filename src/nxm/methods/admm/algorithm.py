"""ADMM for sparse fine-tuning: the algorithm of NxMTransformer, independent of a training loop.

The problem (eq. 1, 2), over the target matrices W_i of a pretrained network with fine-tuning loss f:

    minimise  f(W) + sum_i g_i(Z_i)   subject to  W_i = Z_i,      g_i(Z) = 0 if Z in S_i, infinity otherwise

The augmented Lagrangian in scaled form splits it into three updates, one *ADMM iteration*:

    W <- argmin f(W) + rho/2 ||W - Z + U||_F^2      (3)  some optimizer steps of fine-tuning
    Z <- Proj_S(W + U)                              (4)  exact, see nxm.sets
    U <- U + W - Z                                       the scaled dual variable

Where S_i is a set of integers, `share` says how far its grid has joined: at 0 the projection is on the zero patterns
alone, at 1 on S_i, and between them Z is the mean of both projections with these weights. By default the callback lets
it join after ADMM, in the frozen phase. A matrix whose set asks for no zero pattern is free until its grid joins: Z is
W itself, nothing pulls it and its U stays 0.

Update (3) is approximated in one of two ways:

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
from nxm.sets.allocation import sets_by_name
from nxm.sets.base import ConstraintSet, Projection

Weights = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Iteration:
    """The outcome of one ADMM iteration, over all target matrices together.

    similarity: the share of the choice that stays from the iteration before, for a mask of the surviving entries (the
        paper's Figure 3). Integers without a zero pattern choose nothing until their grid has joined and do not count
        before; 1 where nothing is chosen.
    primal_residual: ||W - Z||_F / ||W||_F, the distance of the weights from the constraint set.
    dual_residual: ||Z - Z_before||_F / ||W||_F, the movement of the projection.
    """

    similarity: float
    primal_residual: float
    dual_residual: float


class ADMM:
    """The variables Z and U of a set of weights W, and the three updates.

    Starts at Z = Proj_S(W), U = 0.

    Args:
        weights: name -> fp32 parameter W; updated in place by `proximal_step_`, read by the rest.
        constraint: the set S, or name -> set.
        share: how far the grid of a set of integers has joined; without effect on other sets.

    Attributes:
        W, Z, U: name -> fp32 tensor.
        sets: name -> set.
        choices: name -> the discrete part of Z (`nxm.sets.base.Projection`): a bool mask, or with the whole grid codes.

    Raises:
        TypeError: a weight is not fp32 (load the model in fp32 and train with bf16 autocast instead).
        UserError: a weight does not fit its constraint set, or has NaN.
    """

    def __init__(
        self, weights: Weights, constraint: ConstraintSet | Mapping[str, ConstraintSet], share: float = 1.0
    ) -> None:
        self.sets = sets_by_name(constraint, weights)
        for name, weight in weights.items():
            if weight.dtype != torch.float32:
                raise TypeError(
                    f"{name} is {weight.dtype}; ADMM needs its weights in float32: "
                    "load the model with dtype=torch.float32 and use autocast (bf16=True) for speed"
                )
            self.sets[name].validate(weight.shape, name)
        self.W = weights
        self.share = share if any(map(_has_grid, self.sets.values())) else 1.0
        with torch.no_grad():
            start = {name: self._project(name, W) for name, W in weights.items()}
            self.Z = {name: projection.Z for name, projection in start.items()}
            self.choices = {name: projection.choice for name, projection in start.items()}
            self.U = {name: torch.zeros_like(W) for name, W in weights.items()}
            self._target = {name: Z.clone() for name, Z in self.Z.items()}  # Z - U, toward which W is pulled

    # --- The three updates: of W at every optimizer step, of Z and U once per ADMM iteration -----------------------

    @torch.no_grad()
    def penalty_gradient_(self, rho: float) -> None:
        """Update W as the paper does, eq. (3): add the penalty's gradient rho (W - Z + U). Before optimizer.step()."""
        for name, W in self._constrained():
            if W.grad is None:
                W.grad = torch.zeros_like(W)
            W.grad.add_(W, alpha=rho).sub_(self._target[name], alpha=rho)

    @torch.no_grad()
    def proximal_step_(self, kappa: float) -> None:
        """Update W decoupled, eq. (3): W <- W - kappa (W - Z + U), kappa of `kappa_of_rho`. After optimizer.step()."""
        for name, W in self._constrained():
            W.lerp_(self._target[name], kappa)

    @torch.no_grad()
    def iterate_(
        self, dual_step: float = 1.0, relaxation: float = 1.0, importance: Mapping[str, Tensor] | None = None
    ) -> Iteration:
        """Update Z, eq. (4), and U: Z <- Proj_S(W + U), U <- U + dual_step (W - Z).

        The paper's dual step is 1.0, which is right where (3) is solved: W is then at Z - U, and U takes up the rest.
        Where W covers only a share of the distance, a full step runs ahead of it: U of the pruned entries grows by all
        of W each time, until W + U outweighs the surviving entries and the mask swaps. A step of the same share keeps
        the two together (on solving (3) inexactly see Boyd et al. 2011, section 3.4.4).

        Args:
            dual_step: the share of W - Z that U takes up.
            relaxation: both updates take `relaxation W + (1 - relaxation) Z` for W: over-relaxation above 1, to about
                1.8 (Boyd et al. 2011, section 3.4.3).
            importance: name -> the cost v >= 0 of a squared change of each weight, fp32, of W's shape or one that
                broadcasts to it (`nxm.methods.importance`); Z then minimises sum v (Z - W - U)^2 over S. None: the
                Euclidean projection, also of a weight that is left out.

        Raises:
            Diverged: W + U has NaN.
        """
        equal = total = primal = dual = norm = 0.0
        for name, W in self.W.items():
            Z_before, choice_before, U = self.Z[name], self.choices[name], self.U[name]
            relaxed = W if relaxation == 1.0 else torch.lerp(Z_before, W, relaxation)
            step = dual_step if self._constrains(name) else 0.0

            projection = self._project(name, relaxed + U, None if importance is None else importance.get(name))
            Z = projection.Z  # Z <- Proj_S(W + U)
            U.add_(relaxed, alpha=step).sub_(Z, alpha=step)  # U <- U + W - Z
            self.Z[name], self.choices[name], self._target[name] = Z, projection.choice, Z - U

            if self.share == 1.0 or self.sets[name].zero_patterns is not None:  # else nothing is chosen yet
                stayed, compared = self.sets[name].similarity(projection.choice, choice_before)
                equal += stayed
                total += compared
            primal += float(torch.linalg.vector_norm(W - Z)) ** 2
            dual += float(torch.linalg.vector_norm(Z - Z_before)) ** 2
            norm += float(torch.linalg.vector_norm(W)) ** 2
        return Iteration(
            similarity=equal / total if total else 1.0,
            primal_residual=math.sqrt(primal / norm) if norm else 0.0,
            dual_residual=math.sqrt(dual / norm) if norm else 0.0,
        )

    @torch.no_grad()
    def rescale_dual_(self, factor: float) -> None:
        """Rescale the dual: U <- factor U, with factor = rho_before / rho_after.

        The scaled dual is U = y / rho: when rho changes, the unscaled y must not (Boyd et al. 2011, section 3.4.1).
        Without it a rising rho multiplies the accumulated duals and breaks the mask.
        """
        for name, U in self.U.items():
            U.mul_(factor)
            self._target[name] = self.Z[name] - U

    # --- Integers that join --------------------------------------------------------------------------------------

    @property
    def constrains(self) -> bool:
        """False while every Z is W + U itself: there is no zero pattern, and no grid has joined."""
        return any(map(self._constrains, self.sets))

    def _constrains(self, name: str) -> bool:
        return self.share > 0.0 or self.sets[name].zero_patterns is not None

    def _constrained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, W) for name, W in self.W.items() if self._constrains(name))

    @torch.no_grad()
    def join_(self, share: float) -> None:
        """Change how far the grids have joined, from the next iteration on; with the whole grid, choices are codes."""
        with_grid = [name for name, own in self.sets.items() if _has_grid(own)]
        before, self.share = self.share, share if with_grid else 1.0
        if (before == 1.0) != (self.share == 1.0):
            self.choices |= {name: self._project(name, self.Z[name]).choice for name in with_grid}

    def _project(self, name: str, V: Tensor, cost: Tensor | None = None) -> Projection:
        """Project on a matrix's set as far as its grid has joined; the choice is a mask until it has wholly."""
        own = self.sets[name]
        if self.share == 1.0 or not _has_grid(own):
            return own.project(V, cost)
        patterns = own.zero_patterns
        if patterns is None:
            projection = Projection(V.clone(), torch.ones_like(V, dtype=torch.bool))
        else:
            projection = patterns.project(V, cost)
        if self.share > 0.0:
            projection.Z.lerp_(own.project(V, cost).Z, self.share)
        return projection

    # --- Checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return Z and U (fp32) and the choices as 'Z.<name>', 'U.<name>' and 'M.<name>'."""
        return dict(self._named_state())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`. Raises UserError when its names or shapes are not these weights'."""
        expected = dict(self._named_state())
        if state.keys() != expected.keys():
            different = sorted(state.keys() ^ expected.keys())[:3]
            raise UserError(f"ADMM state is not of this model: it differs at {', '.join(different)}")
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
            yield f"M.{name}", self.choices[name]


def _has_grid(constraint: ConstraintSet) -> bool:
    """Return whether a set asks for more than a zero pattern."""
    return constraint.zero_patterns != constraint


def kappa_of_rho(rho: float, steps: int) -> float:
    """Return the proximal step's kappa: `steps` undisturbed steps cover the share 1 - exp(-rho) of the distance."""
    return -math.expm1(-rho / steps)


def rho_at(rho: float, schedule: str, iteration: int, iterations: int) -> float:
    """Return the penalty's strength in ADMM iteration `iteration` (from 0) of `iterations`.

    Schedules `linear` and `cosine` ramp up to rho over all iterations. The first value is above zero, since U is
    rescaled by the ratio of neighbouring values.

    Raises:
        UserError: the schedule is neither `constant`, `linear` nor `cosine`.
    """
    progress = min(1.0, (iteration + 1) / max(1, iterations))
    if schedule == "constant":
        return rho
    if schedule == "linear":
        return rho * progress
    if schedule == "cosine":
        return rho * (1.0 - math.cos(math.pi * progress)) / 2.0
    raise UserError(f"unknown schedule '{schedule}'; known: constant, linear, cosine")


# (similarity, factor): rho grows by the factor after an iteration of a smaller similarity (ALPS, arXiv 2406.07831,
# whose shares count the entries that left and those that came, twice as many).
_GROWTH = ((0.95, 1.3), (0.9975, 1.2), (1.0, 1.1))
_LARGEST_RHO = 3.0  # 95 % of the distance in one iteration: beyond it W is only held in place and learns nothing


def rho_by_similarity(rho: float, similarities: Sequence[float]) -> float:
    """Return the penalty's strength after iterations with these mask similarities.

    After ALPS (arXiv 2406.07831, section 3.2): while the mask moves much, rho grows fast to settle it: x 1.3 after an
    iteration that swapped over 5 % of the mask, x 1.2 over 0.25 %, x 1.1 for less. When the mask no longer moves, ALPS
    ends; here the weights go on learning, so rho stays constant, as it does from 3 on (95 % of the distance in one
    iteration).

    Args:
        rho: the strength in the first iteration.
        similarities: `Iteration.similarity` of the iterations so far, in order.
    """
    for similarity in similarities:
        grown = rho * next((factor for below, factor in _GROWTH if similarity < below), 1.0)
        rho = max(rho, min(grown, _LARGEST_RHO))
    return rho
