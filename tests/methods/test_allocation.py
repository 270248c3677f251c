"""Allocations by measured sensitivity: the knapsack, compared with brute force; the measurement; what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from nxm import NM, Allocation, Integers, UserError, allocate, find_targets, loss_on
from nxm.methods.allocation import choose, measure, read_choices, solve
from nxm.models.packed import stored_bits
from tiny_training import Pad, new_model, parity_data, weights_of

CHOICES = ["2:4 int8", "2:4 int3", "int4", "dense"]


def brute_force(rises: np.ndarray, bits: np.ndarray, budget: int) -> tuple[float, int]:
    """The smallest sum of rises within the budget, and the fewest bits with which it is reached."""
    found = []
    for places in itertools.product(range(rises.shape[1]), repeat=len(rises)):
        size = sum(int(bits[i, place]) for i, place in enumerate(places))
        if size <= budget:
            found.append((math.fsum(rises[i, place] for i, place in enumerate(places)), size))
    return min(found)


@pytest.mark.parametrize("seed", range(12))
def test_the_solution_is_that_of_brute_force(seed):
    random = np.random.default_rng(seed)
    n_matrices, n_choices = int(random.integers(1, 7)), int(random.integers(2, 5))
    rises = random.normal(size=(n_matrices, n_choices)) * 10.0 ** random.integers(-6, 3, size=(n_matrices, 1))
    bits = random.integers(1, 40, size=(n_matrices, n_choices)) * 16 * 384
    least, most = int(bits.min(axis=1).sum()), int(bits.max(axis=1).sum())
    for budget in {least, (least + most) // 2, int(random.integers(least, most + 1)), most}:
        places = solve(rises, bits, budget)
        chosen = np.arange(n_matrices), places
        assert int(bits[chosen].sum()) <= budget
        assert math.fsum(rises[chosen]) == pytest.approx(brute_force(rises, bits, budget)[0], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("seed", range(6))
def test_of_equally_good_solutions_one_with_the_fewest_bits_is_taken_every_time(seed):
    random = np.random.default_rng(seed)
    rises = random.integers(-2, 3, size=(5, 3)).astype(float)  # many ties
    bits = random.integers(1, 6, size=(5, 3))
    budget = int(bits.min(axis=1).sum()) + 4
    places = [solve(rises, bits, budget) for _ in range(2)]
    assert np.array_equal(*places)
    chosen = np.arange(5), places[0]
    assert (math.fsum(rises[chosen]), int(bits[chosen].sum())) == brute_force(rises, bits, budget)


def test_without_any_difference_the_smallest_choices_are_taken():
    assert solve(np.zeros((3, 2)), np.array([[2, 1], [1, 2], [3, 3]]), 9)[:2].tolist() == [1, 0]


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    rows = list(parity_data())
    return [Pad()(rows[first : first + 16]) for first in range(0, 64, 16)]


def spread_model():
    """A model whose answers depend on its matrices."""
    model = new_model(hidden_dropout_prob=0.3)
    with torch.no_grad():
        for W in find_targets(model).values():
            W.mul_(30.0)
    return model


def test_rises_are_those_of_one_projected_matrix_and_the_model_is_afterwards_as_before(batches):
    model, loss = spread_model(), loss_on(batches)
    model.train()
    model.bert.embeddings.eval()
    before, random = weights_of(model), torch.get_rng_state()
    found = measure(model, loss, read_choices(CHOICES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.bert.embeddings.training
    model.eval()
    assert found.loss == loss(model)
    assert list(found.rises) == list(find_targets(model))
    for name in list(found.rises)[::5]:
        for place, constraint in enumerate(found.choices.values()):
            other = spread_model().eval()
            W = find_targets(other)[name]
            if constraint is not None:
                with torch.no_grad():
                    W.copy_(constraint.project(W).Z)
            assert found.rises[name][place] == loss(other) - found.loss
            assert found.bits[name][place] == stored_bits(constraint, W.shape)
    assert any(rise != 0 for rises in found.rises.values() for rise in rises)
    assert all(rises[-1] == 0.0 for rises in found.rises.values())


def test_a_model_that_raises_in_the_middle_has_its_weights_back(batches):
    model, calls = spread_model(), []
    before = weights_of(model)

    def loss(model):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        allocate(model, loss, CHOICES, 4.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_an_allocation_meets_its_budget_and_is_the_best_that_does(batches):
    model = spread_model()
    found = measure(model, loss_on(batches), read_choices(["2:4 int8", "int3"]), include=("query",))
    rises, bits = (np.array(list(table.values())) for table in (found.rises, found.bits))
    for budget in (4.2, 4.6, 5.2, 6.0):
        allocation = choose(found, budget)
        assert allocation.bits <= budget
        best = brute_force(rises, bits, math.floor(budget * found.weights))
        assert allocation.rise == pytest.approx(best[0], rel=1e-9)
        assert sum(map(allocation.bits_of, allocation.sets)) == allocation.bits * found.weights
        assert list(allocation.sets) == list(find_targets(model, include=("query",)))
    assert choose(found, 32.0).budget == 32.0


def test_the_distance_to_a_teacher_is_zero_for_itself_and_grows(batches):
    teacher, model = spread_model(), spread_model()
    loss = loss_on([{key: value for key, value in batch.items() if key != "labels"} for batch in batches], teacher)
    assert loss(model.eval()) == 0.0
    with torch.no_grad():
        for W in find_targets(model).values():
            W.copy_(NM(1, 4).project(W).Z)
    assert loss(model) > 0.0


def test_a_loss_is_the_mean_over_examples_of_batches_of_any_size(batches):
    model, rows = spread_model().eval(), list(parity_data())
    whole = loss_on([Pad()(rows)])(model)
    parts = loss_on([Pad()(rows[:10]), Pad()(rows[10:])])(model)
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.situation("training", "a budget for an allocation that no choice can meet", "refused")
def test_an_unreachable_budget_names_the_smallest_reachable_one_before_it_measures():
    def loss(model):
        raise AssertionError("measured")

    model = new_model()
    with pytest.raises(
        UserError, match=r"a budget of 2 bits per weight cannot be met: .* takes (\d+\.\d+) in all"
    ) as no:
        allocate(model, loss, CHOICES, 2.0)
    smallest = float(str(no.value).partition(" takes ")[2].split()[0])
    found = allocate(model, lambda model: 1.0, CHOICES, smallest)
    assert found.bits == pytest.approx(smallest, abs=1e-4)


@pytest.mark.parametrize("bits", [0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_no_positive_number_is_refused(bits):
    with pytest.raises(UserError, match=r"is no budget: give a positive number"):
        allocate(new_model(), lambda model: 1.0, CHOICES, bits)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["2:4 int4"], r"chooses among two sets or more, got 2:4 int4"),
        ([], r"chooses among two sets or more, got none"),
        (["2:4 int4", "int9"], r"integers have 2 to 8 bits"),
        (["2:4 int4", "magic"], r"'magic' is not a constraint set"),
        (["50 %", "unstructured 50 %"], r"'unstructured 50 %' is given twice"),
        (["2:4", "2:32"], r"query\.weight: input width 16 is no multiple of the group size 32"),
    ],
)
def test_choices_that_cannot_be_are_named(choices, message):
    with pytest.raises(UserError, match=message):
        allocate(new_model(), lambda model: 1.0, choices, 4.0)


def test_a_budget_that_leaves_all_dense_is_refused():
    losses = itertools.chain([0.0], itertools.repeat(1.0))
    with pytest.raises(UserError, match=r"leaves all of its 12 matrices dense"):
        allocate(new_model(), lambda model: next(losses), CHOICES, 40.0)


def test_a_loss_that_is_not_finite_names_the_matrix():
    losses = iter([0.5, 0.6, math.nan])
    with pytest.raises(UserError, match=r"loss with bert.*query\.weight projected on 2:4 int3 is nan"):
        allocate(new_model(), lambda model: next(losses), CHOICES, 4.0)


def test_a_loss_without_batches_or_labels_is_refused(batches):
    with pytest.raises(UserError, match="at least one batch"):
        loss_on([])
    without = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    with pytest.raises(UserError, match="gives no loss on these batches: add their labels, or give a teacher"):
        loss_on(without)(new_model().eval())


def test_an_allocation_is_of_sets_and_has_one():
    with pytest.raises(UserError, match="a: 'int4' is not a constraint set"):
        Allocation({"a": "int4"})
    with pytest.raises(UserError, match="leaves all of its 2 matrices dense"):
        Allocation({"a": None, "b": None})
    found = Allocation({"a": Integers(4), "b": None, "c": NM(2, 4), "d": Integers(4)})
    assert str(found) == "int4 (2), 2:4 (1), dense (1)"
