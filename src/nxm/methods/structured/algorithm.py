"""Structured pruning: which heads, FFN rows or blocks stay, without any training loop.

MLPruning (Yao et al., arXiv 2105.14636; v2: LEAP) learns a score s for each unit and a threshold t for each vector of
scores. With sigma the sigmoid, the mask keeps the best share sigma(t), at least one unit:

    k = max(1, ceil(sigma(t) n)),    m = top-k(s)

The gradient of the mask passes straight through: dL/ds = dL/dm for all units, those that are pruned too, and
dL/dt = sum(dL/dm m), on t itself, without sigma'. A regulariser pulls the share R of the weights that is left, as a
function of sigma(t), down to tau:

    L + lambda reg,    reg = max(R - tau, 0)^2,
    lambda = 10 if reg < 3e-4, else max(Lambda reg / (1 - tau)^2, 50),    a number, without a gradient

For heads and rows a layer with shares a of its heads, f1 of FFN1's rows, o and f2 of the output rows of O and FFN2
costs 3a + a o + r f1 + r f1 f2 in units of hidden_size^2, where r is the width of the FFN over the hidden size; R is
the sum over layers divided by that of the dense model. Each share is clamped below at one unit. For blocks
R = sum sigma(t_i) n_i / sum n_i. R counts sigma(t) and not the ceil: report `share_left` of the masks.

`fit_thresholds` is ours in place of the regulariser: a common shift of all thresholds with which the hard count meets
the budget. So is `allocate`: with an importance for each unit instead of scores and thresholds, it finds the structure
within the budget that loses least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.models.cost import Cost
from nxm.models.structure import Structure

# --- Units and their masks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A tensor and its division into units.

    weight: (out_features, in_features), or a bias (out_features,).
    dim: the axis along which a unit is `width` consecutive slices; None: units are blocks of width x width.
    """

    weight: nn.Parameter
    dim: int | None
    width: int

    def expand(self, mask: Tensor) -> Tensor:
        """Return a mask of units, (n,), in a shape that broadcasts to the weight's."""
        if self.dim is None:
            blocks = mask.view(self._grid())
            return blocks.repeat_interleave(self.width, 0).repeat_interleave(self.width, 1)
        slices = mask.repeat_interleave(self.width)
        return slices[:, None] if self.dim == 0 and self.weight.dim() == 2 else slices

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over each unit, (n,), of values of the weight's shape."""
        if self.dim is None:
            rows, columns = self._grid()
            return values.view(rows, self.width, columns, self.width).sum(dim=(1, 3)).reshape(-1)
        slices = values.sum(dim=1 - self.dim) if values.dim() == 2 else values
        return slices.view(-1, self.width).sum(dim=1)

    def _grid(self) -> tuple[int, int]:
        return self.weight.shape[0] // self.width, self.weight.shape[1] // self.width


@dataclass(frozen=True)
class Gate:
    """A vector of units that share a threshold, such as the heads of a layer.

    kind: "heads", "rows", "o_outputs", "ffn2_outputs" or "blocks".
    layer: the layer's number.
    n: the number of units.
    gated: what the mask multiplies while it is learned. Where a head's or row's path through the network is cut once,
        by its input or by its output, its mask still has a gradient when it is pruned.
    members: all weights of the units, which end as zeros.
    """

    kind: str
    layer: int
    n: int
    gated: tuple[Part, ...]
    members: tuple[Part, ...]

    def mask_gradient(self, values: Sequence[Tensor]) -> Tensor:
        """Return dL/dm, (n,): the sum over each unit of dL/d(mW) W.

        Args:
            values: the unmasked W of each gated part, whose gradient is that of the masked weight.
        """
        return torch.stack(
            [
                part.sums(part.weight.grad.float() * W.float())
                for part, W in zip(self.gated, values, strict=True)
                if part.weight.grad is not None
            ]
        ).sum(dim=0)

    def energy(self) -> Tensor:
        """Return the sum of squares of each unit's weights, (n,): its magnitude."""
        return torch.stack([part.sums(part.weight.detach().float().square()) for part in self.members]).sum(dim=0)


def n_kept(threshold: float, n: int, multiple: int = 1) -> int:
    """Return how many of n units a threshold keeps: ceil(sigma(t) n), rounded up to a multiple, from 1 to n."""
    kept = max(1, math.ceil(_sigmoid(threshold) * n))
    return min(n, -(-kept // multiple) * multiple)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the bool mask of the k largest scores, (n,); ties: the earlier stays."""
    order = scores.detach().sort(descending=True, stable=True).indices
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(0, order[:k], True)


def straight_through(mask_gradient: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the scores, (n,), and of the threshold, (), from that of the mask."""
    return mask_gradient, (mask_gradient * mask).sum()


# --- The regulariser ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The numbers of layers, of heads and rows of a layer, and the hidden size."""

    layers: int
    heads: int
    rows: int
    hidden: int


def share_of_layers(
    heads: Sequence[Tensor | float],
    rows: Sequence[Tensor | float],
    o_outputs: Sequence[Tensor | float],
    ffn2_outputs: Sequence[Tensor | float],
    sizes: Sizes,
) -> Tensor | float:
    """Return the share of the weights that is left, from the shares a, f1, o and f2 of each layer (soft or hard)."""
    r = sizes.rows / sizes.hidden
    left = [
        3 * a + a * o + r * f1 + r * f1 * f2 for a, f1, o, f2 in zip(heads, rows, o_outputs, ffn2_outputs, strict=True)
    ]
    return sum(left) / (sizes.layers * (4 + 2 * r))


def clamped(threshold: Tensor, n: int) -> Tensor:
    """Return sigma(t), clamped below at one of n units."""
    return threshold.sigmoid().clamp(min=1 / n)


def share_of_blocks(thresholds: Sequence[Tensor], n: Sequence[int]) -> Tensor:
    """Return the share of the blocks that is left, sum sigma(t_i) n_i / sum n_i."""
    return sum(t.sigmoid() * size for t, size in zip(thresholds, n, strict=True)) / sum(n)


def regulariser(share: Tensor, tau: float, strength: float = 20000.0) -> Tensor:
    """Return lambda reg for a share R of weights left; lambda has no gradient. `strength` is the paper's Lambda."""
    reg = (share - tau).clamp(min=0.0).square()
    value = float(reg.detach())
    weight = 10.0 if value < 3e-4 else max(strength * value / (1 - tau) ** 2, 50.0)
    return weight * reg


# --- The budget, met by hard counts ------------------------------------------------------------------------------


def budget_at(progress: float, budget: float) -> float:
    """Return the budget after `progress` (0 to 1) of its ramp: from 1 it falls along a cubic, early and fast."""
    return budget + (1.0 - budget) * (1.0 - min(1.0, max(0.0, progress))) ** 3


def fit_thresholds(
    thresholds: Mapping[str, float], cost: Callable[[Mapping[str, float]], float], budget: float
) -> float:
    """Return the shift c <= 0 with the smallest |c| for which the thresholds t + c cost no more than a budget.

    Args:
        thresholds: gate -> t.
        cost: of thresholds, by the hard counts that they keep; it must not fall when a threshold rises.
        budget: in the unit of `cost`.

    Raises:
        UserError: one unit in each gate costs more than the budget.
    """

    def fits(shift: float) -> bool:
        return cost({name: t + shift for name, t in thresholds.items()}) <= budget

    if fits(0.0):
        return 0.0
    low, high = -50.0 - max(thresholds.values()), 0.0  # low fits, high does not
    if not fits(low):
        least = cost({name: t + low for name, t in thresholds.items()})
        raise UserError(f"a budget of {budget:.4g} cannot be met: one unit in each gate costs {least:.4g} already")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def allocate(
    heads: Sequence[Tensor], rows: Sequence[Tensor], cost: Cost, budget: float, multiple: int = 1
) -> Structure:
    """Return the structure within a budget that loses the least importance.

    How many heads and rows each layer retains is a knapsack with one choice per attention and per FFN, solved by
    dynamic programming over the cost; within each the most important are retained. With Fisher information this is the
    mask search of Kwon et al. (arXiv 2204.09656) for any table of costs, and exact where it is linear.

    Args:
        heads: layer -> importance of each head, (heads,); a negative entry is dead already and is not retained.
        rows: layer -> importance of each row, (rows,); likewise.
        cost: of heads and rows.
        budget: in the unit of `cost`.
        multiple: numbers of rows are multiples of it, or all living rows of the layer.

    Raises:
        UserError: one head and one row (or `multiple`) in each layer cost more than the budget.
    """
    modules = []  # each: order of the units, numbers that may stay, the loss and the cost of each number
    for layers, table, step in ((heads, cost.heads, 1), (rows, cost.rows, multiple)):
        for importance in layers:
            values = importance.detach().double().cpu().numpy()
            order = np.argsort(-values, kind="stable")  # ties: the earlier stays
            n_living = int((values >= 0).sum())
            numbers = [n_living, *reversed(range(step, n_living, step))]  # of equal losses the larger number stays
            retained = np.cumsum(values[order[:n_living]])
            losses = [float(retained[-1] - retained[n - 1]) for n in numbers]
            modules.append((order, numbers, losses, [table[n] for n in numbers]))
    chosen = _knapsack([losses for _, _, losses, _ in modules], [costs for *_, costs in modules], budget, cost.unit)
    living = [
        tuple(sorted(order[: numbers[choice]].tolist()))
        for (order, numbers, _, _), choice in zip(modules, chosen, strict=True)
    ]
    return Structure(tuple(living[: len(heads)]), tuple(living[len(heads) :]))


_MOST_BINS = 50_000  # up to here the knapsack is exact for whole costs
_BINS = 10_000  # otherwise: each cost is rounded up to a share 1e-4 of the budget


def _knapsack(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, unit: str
) -> list[int]:
    """Return for each module the index of its choice: least total loss with a total cost within the budget."""
    least = sum(map(min, costs))
    if least > budget:
        raise UserError(f"a budget of {budget:.6g} {unit} cannot be met: the smallest structure costs {least:.6g}")
    flat = [cost for options in costs for cost in options]
    divisor = math.gcd(*map(int, flat)) if all(cost == int(cost) for cost in flat) else 0
    bin_size = divisor if divisor and budget / divisor <= _MOST_BINS else budget / _BINS
    bins = math.floor(budget / bin_size + 1e-9)
    best, choices = np.zeros(bins + 1), []  # best: the least loss within so many bins
    for module_losses, module_costs in zip(losses, costs, strict=True):
        new, choice = np.full(bins + 1, np.inf), np.zeros(bins + 1, dtype=np.int32)
        for i, (loss, cost) in enumerate(zip(module_losses, module_costs, strict=True)):
            size = math.ceil(cost / bin_size - 1e-9)
            candidate = best[: max(0, bins + 1 - size)] + loss
            better = candidate < new[size:]
            new[size:][better] = candidate[better]
            choice[size:][better] = i
        best = new
        choices.append(choice)
    if not np.isfinite(best[bins]):
        raise UserError(f"a budget of {budget:.6g} {unit} is too near the smallest structure's {least:.6g}: raise it")
    chosen, left = [], bins
    for choice, module_costs in zip(reversed(choices), reversed(costs), strict=True):
        chosen.append(int(choice[left]))
        left -= math.ceil(module_costs[chosen[-1]] / bin_size - 1e-9)
    return chosen[::-1]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
