r"""A constraint set for each matrix, chosen by measured sensitivity under a budget of stored bits.

For every target matrix i and every choice c the rise r_ic of the loss is measured when this matrix alone is projected
on the set c, and the stored bits b_ic are counted (`nxm.models.packed.stored_bits`: codes, positions and scales). With
x_ic = 1 where matrix i takes the choice c, the allocation is the exact solution of the multiple-choice knapsack problem

    minimise  sum_ic r_ic x_ic   subject to  sum_ic b_ic x_ic <= B,   sum_c x_ic = 1 for every i,   x_ic in {0, 1}

by the branch and bound of HiGHS (`scipy.optimize.milp`). The sum takes the rises as independent: what two projected
matrices do to each other is not measured, nor is what training can recover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn
from tqdm.auto import tqdm

from nxm.errors import UserError
from nxm.models.packed import stored_bits
from nxm.models.targets import find_targets
from nxm.sets import DENSE, parse_set
from nxm.sets.allocation import Allocation, text_of
from nxm.sets.base import ConstraintSet

Loss = Callable[[nn.Module], float]  # of a model in eval mode, over examples that are the same at every call


@dataclass(frozen=True)
class Sensitivity:
    """The measured cost of every choice for every matrix.

    choices: text -> set, in the order given; None: the matrix stays dense.
    loss: of the model before any projection.
    shapes: name -> (rows, columns).
    rises: name -> the rise of the loss by each choice, in the order of `choices`; negative where it falls.
    bits: name -> the stored bits by each choice.
    """

    choices: Mapping[str, ConstraintSet | None]
    loss: float
    shapes: Mapping[str, tuple[int, int]]
    rises: Mapping[str, tuple[float, ...]]
    bits: Mapping[str, tuple[int, ...]]

    @property
    def weights(self) -> int:
        """The number of weights of all matrices."""
        return sum(rows * columns for rows, columns in self.shapes.values())


@dataclass(frozen=True)
class MeasuredAllocation(Allocation):
    """An allocation with the measurement and the budget, in stored bits per weight, that it was chosen by."""

    sensitivity: Sensitivity
    budget: float

    @property
    def bits(self) -> float:
        """The stored bits per weight over all matrices, dense ones included; at most the budget."""
        return sum(self.bits_of(name) for name in self.sets) / self.sensitivity.weights

    @property
    def rise(self) -> float:
        """The sum of the rises of all matrices, each projected alone."""
        return math.fsum(self.rise_of(name) for name in self.sets)

    def text_of(self, name: str) -> str:
        """Return the text of a matrix's set; `dense` for none."""
        return text_of(self.sets[name])

    def bits_of(self, name: str) -> int:
        """Return the stored bits of a matrix."""
        return self.sensitivity.bits[name][self._place(name)]

    def rise_of(self, name: str) -> float:
        """Return the rise of the loss when this matrix alone is projected on its set."""
        return self.sensitivity.rises[name][self._place(name)]

    def _place(self, name: str) -> int:
        return list(self.sensitivity.choices).index(self.text_of(name))


def allocate(
    model: nn.Module,
    loss: Loss,
    choices: Sequence[str | ConstraintSet],
    bits: float,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> MeasuredAllocation:
    """Return the allocation with the smallest sum of rises within a budget.

    Example: `AdmmCallback(allocate(model, loss_on(batches, dense), ["2:4 int4", "2:4 int3", "int4"], bits=2.5))`.

    It takes a projection and a pass over the loss's examples per matrix and choice. No random number is drawn.

    Args:
        model: a trained model, on any device. Its weights and modes are afterwards what they were, to the bit.
        loss: of the model in eval mode, such as `nxm.loss_on`.
        choices: two or more sets, or their texts; "dense" leaves a matrix dense, at 32 bits per weight.
        bits: the budget, in stored bits per weight over all targets, codes, positions and scales counted.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.

    Raises:
        UserError: a choice is no set, does not fit a matrix or is given twice; the budget is no positive number, is
            below what the smallest choices take, or leaves every matrix dense; or the loss is not finite.
    """
    sets = read_choices(choices)
    refuse_unreachable(bits, model, sets, include, exclude)  # before minutes of measuring
    return choose(measure(model, loss, sets, include, exclude), bits)


def read_choices(choices: Sequence[str | ConstraintSet]) -> dict[str, ConstraintSet | None]:
    """Return text -> set, None for "dense".

    Raises:
        UserError: there are fewer than two, one is no set, or one is given twice.
    """
    sets: dict[str, ConstraintSet | None] = {}
    for choice in choices:
        own = choice if isinstance(choice, ConstraintSet) else None if choice == DENSE else parse_set(choice)
        if text_of(own) in sets:
            raise UserError(f"the choice '{text_of(own)}' is given twice: give each once")
        sets[text_of(own)] = own
    if len(sets) < 2:
        raise UserError(f"an allocation chooses among two sets or more, got {', '.join(sets) or 'none'}")
    return sets


@torch.no_grad()
def measure(
    model: nn.Module,
    loss: Loss,
    choices: Mapping[str, ConstraintSet | None],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Return the rise of the loss for each matrix and choice when this matrix alone is projected.

    Args: as `allocate`; `choices` as `read_choices` returns them.

    Raises:
        UserError: a choice does not fit a matrix, or the loss is not finite.
    """
    shapes, bits = _count(model, choices, include, exclude)
    targets = find_targets(model, include, exclude)
    rises: dict[str, tuple[float, ...]] = {}
    n_measured = sum(own is not None for own in choices.values()) * len(targets)
    with _in_eval_mode(model), tqdm(total=n_measured, desc="sensitivity", unit=" losses") as bar:
        before = _finite(loss(model), "the loss of the model before any projection")
        for name, W in targets.items():
            original = W.detach().clone()
            own = []
            try:
                for text, constraint in choices.items():
                    if constraint is None:
                        own.append(0.0)
                        continue
                    W.copy_(constraint.project(original).Z)
                    own.append(_finite(loss(model), f"the loss with {name} projected on {text}") - before)
                    bar.update()
            finally:
                W.copy_(original)
            rises[name] = tuple(own)
    return Sensitivity(dict(choices), before, shapes, rises, bits)


def choose(sensitivity: Sensitivity, bits: float) -> MeasuredAllocation:
    """Return the allocation with the smallest sum of rises within a budget; of equally good ones one with few bits.

    Args:
        bits: the budget, in stored bits per weight.

    Raises:
        UserError: the budget is no positive number, is below what the smallest choices take, or leaves every matrix
            dense.
    """
    budget = _whole_budget(bits, sensitivity.shapes, sensitivity.bits)
    rises, sizes = (np.array(list(table.values())) for table in (sensitivity.rises, sensitivity.bits))
    places = solve(rises.astype(np.float64), sizes.astype(np.int64), budget)
    sets = list(sensitivity.choices.values())
    chosen = {name: sets[place] for name, place in zip(sensitivity.shapes, places, strict=True)}
    return MeasuredAllocation(chosen, sensitivity, bits)


def solve(rises: np.ndarray, bits: np.ndarray, budget: int) -> np.ndarray:
    """Solve the multiple-choice knapsack problem: the smallest sum of rises with at most `budget` bits in all.

    Of equally good solutions it prefers one with fewer bits, within the solver's tolerance. The solver is
    deterministic.

    Args:
        rises: (matrices, choices), float64.
        bits: (matrices, choices), int64, above 0.
        budget: at least the sum of each row's smallest bits.

    Returns: the place of each matrix's choice, (matrices,) int64.
    """
    n_matrices, n_choices = rises.shape
    unit = np.gcd.reduce(bits, axis=None)  # small whole numbers, so that the solver's tolerances decide nothing
    sizes = (bits // unit).reshape(-1).astype(np.float64)
    costs = (rises / (np.abs(rises).max() or 1.0)).reshape(-1)
    one_each = LinearConstraint(np.kron(np.eye(n_matrices), np.ones(n_choices)), 1, 1)
    within = LinearConstraint(sizes[None], -np.inf, budget // unit)

    def minimise(objective: np.ndarray, *constraints: LinearConstraint) -> np.ndarray:
        found = milp(
            objective,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=[one_each, within, *constraints],
            options={"mip_rel_gap": 0.0},
        )
        assert found.success, f"HiGHS found no allocation: {found.message}"
        return found.x.reshape(n_matrices, n_choices).argmax(axis=1)

    def total(places: np.ndarray, table: np.ndarray) -> float:
        return math.fsum(np.take_along_axis(table, places[:, None], axis=1)[:, 0])

    best = minimise(_GAP * costs)
    limit = total(best, costs.reshape(rises.shape)) * (1 + np.sign(total(best, rises)) * 1e-12) + 1e-12
    smallest = minimise(sizes, LinearConstraint(costs[None], -np.inf, limit))
    fits = total(smallest, bits) <= min(budget, total(best, bits))
    chosen = smallest if fits and total(smallest, rises) <= total(best, rises) else best
    assert total(chosen, bits) <= budget, "the solver's tolerance exceeded the budget: please report this"
    return chosen


_GAP = 1e6  # HiGHS stops at an absolute gap of 1e-6; the largest cost is scaled to this


def _count(
    model: nn.Module, choices: Mapping[str, ConstraintSet | None], include: Sequence[str], exclude: Sequence[str]
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, ...]]]:
    """Return the shape and the stored bits by choice of each matrix. Raises UserError where a choice does not fit."""
    shapes, bits = {}, {}
    for name, W in find_targets(model, include, exclude).items():
        for constraint in choices.values():
            if constraint is not None:
                constraint.validate(W.shape, name)
        shapes[name] = (W.shape[0], W.shape[1])
        bits[name] = tuple(stored_bits(constraint, W.shape) for constraint in choices.values())
    return shapes, bits


def refuse_unreachable(
    bits: float,
    model: nn.Module,
    choices: Mapping[str, ConstraintSet | None],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> None:
    """Raise UserError if no choice can meet a budget of stored bits per weight, or one does not fit a matrix."""
    _whole_budget(bits, *_count(model, choices, include, exclude))


def _whole_budget(bits: float, shapes: Mapping[str, tuple[int, int]], sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Return a budget per weight in bits of all matrices. Raises UserError where no choice can meet it."""
    if not (math.isfinite(bits) and bits > 0):
        raise UserError(f"bits = {bits!r} is no budget: give a positive number of stored bits per weight, such as 2.0")
    weights = sum(rows * columns for rows, columns in shapes.values())
    budget, smallest = math.floor(bits * weights), sum(map(min, sizes.values()))
    if budget < smallest:
        reachable = math.ceil(1e4 * smallest / weights) / 1e4
        raise UserError(
            f"a budget of {bits:g} bits per weight cannot be met: the smallest choice of every matrix takes "
            f"{reachable:.4f} in all, positions and scales counted: give at least that, or a smaller set among the "
            "choices"
        )
    return budget


def _finite(loss: float, what: str) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise UserError(f"{what} is {value}: sensitivities need finite losses; check the model and the batches")
    return value


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
