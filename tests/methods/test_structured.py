"""The algorithm of structured pruning, compared with hand computations, autograd and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.func import functional_call

from nxm import UserError, find_targets
from nxm.methods.structured.algorithm import (
    Sizes,
    allocate,
    budget_at,
    clamped,
    fit_thresholds,
    n_kept,
    regulariser,
    share_of_blocks,
    share_of_layers,
    straight_through,
    top_k,
)
from nxm.methods.structured.callback import _block_gates, _layer_gates
from nxm.methods.structured.settings import Structured
from nxm.models.cost import Cost
from nxm.models.structure import Structure
from tiny_models import MODELS

BERT_BASE = Sizes(layers=12, heads=12, rows=3072, hidden=768)
ALL = [1.0] * 12


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# --- Masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "n", "kept"),
    [(10.0, 12, 12), (0.0, 12, 6), (logit(0.51), 12, 7), (-30.0, 12, 1), (-1000.0, 3072, 1), (1000.0, 3072, 3072)],
)
def test_a_threshold_keeps_the_ceil_of_its_share_and_at_least_one(threshold, n, kept):
    assert n_kept(threshold, n) == kept


def test_widths_are_rounded_up_to_a_multiple_and_no_further_than_all():
    assert [n_kept(logit(p), 40, 16) for p in (0.01, 0.4, 0.41, 0.9)] == [16, 16, 32, 40]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_the_k_largest_scores_survive_and_of_ties_the_earlier(values, data):
    k = data.draw(st.integers(1, len(values)))
    by_hand = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_k(torch.tensor(values, dtype=torch.float), k).nonzero()[:, 0].tolist() == sorted(by_hand)


def test_the_gradient_passes_straight_to_all_scores_and_its_kept_part_to_the_threshold():
    gradient, mask = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([True, False, True])
    of_scores, of_threshold = straight_through(gradient, mask)
    assert of_scores.tolist() == [1.0, -2.0, 4.0]
    assert of_threshold.item() == 5.0


@pytest.mark.parametrize("gate_inputs", [True, False], ids=["paper", "outputs"])
@pytest.mark.parametrize("family", [name for name in MODELS if name != "bert-qa"])
def test_the_masks_gradients_are_read_off_the_weights(family, gate_inputs):
    """Compared with autograd by real-valued masks, for units that are left and for those that are pruned."""
    torch.manual_seed(0)
    model = MODELS[family]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    gates = _layer_gates(model, gate_inputs, outputs=gate_inputs)
    _compare_with_autograd(model, gates)


def test_the_gradients_of_block_masks_are_read_off_the_weights():
    torch.manual_seed(0)
    model = MODELS["bert"]().double().eval()
    _compare_with_autograd(model, _block_gates(find_targets(model), 16))


def _compare_with_autograd(model, gates):
    batch = {"input_ids": torch.randint(3, 60, (3, 7)), "labels": torch.tensor([0, 1, 1])}
    names = {parameter: name for name, parameter in model.named_parameters()}
    masks = {
        name: (torch.arange(gate.n) % 3 > 0).double() if gate.n > 2 else torch.tensor([1.0, 0.0]).double()
        for name, gate in gates.items()
    }

    def loss(masks):
        weights = dict(model.named_parameters())
        for name, gate in gates.items():
            for part in gate.gated:
                weights[names[part.weight]] = weights[names[part.weight]] * part.expand(masks[name])
        return functional_call(model, weights, kwargs=batch).loss

    real = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    loss(real).backward()
    name, step = next(iter(gates)), 1e-5  # autograd itself, by finite differences
    shifts = [{**masks, name: masks[name] + sign * step * torch.eye(gates[name].n)[-1]} for sign in (1, -1)]
    slope = (loss(shifts[0]) - loss(shifts[1])).item() / (2 * step)
    assert slope == pytest.approx(real[name].grad[-1].item(), rel=1e-4, abs=1e-9)

    values = {name: [part.weight.detach().clone() for part in gate.gated] for name, gate in gates.items()}
    model.zero_grad()
    with torch.no_grad():
        for name, gate in gates.items():
            for part in gate.gated:
                part.weight.mul_(part.expand(masks[name]))
    model(**batch).loss.backward()
    for name, gate in gates.items():
        found = gate.mask_gradient(values[name])
        torch.testing.assert_close(found, real[name].grad.float(), rtol=1e-4, atol=1e-7)
        assert found[masks[name] == 0].any(), name  # a pruned unit can come back


# --- The regulariser ---------------------------------------------------------------------------------------------


def test_the_share_of_heads_and_rows_is_the_papers():
    half = [0.5] * 12
    assert share_of_layers(ALL, ALL, ALL, ALL, BERT_BASE) == 1.0
    assert share_of_layers(half, half, ALL, ALL, BERT_BASE) == pytest.approx(0.5)  # (1.5 + 0.5 + 2 + 2) / 12
    assert share_of_layers(half, half, half, half, BERT_BASE) == pytest.approx(4.75 / 12)
    uneven = [0.25, *[1.0] * 11]
    assert share_of_layers(uneven, ALL, ALL, ALL, BERT_BASE) == pytest.approx(141 / 144)  # 1 instead of 4 of 144


def test_shares_are_clamped_at_one_unit():
    assert clamped(torch.tensor(-30.0), 12).item() == pytest.approx(1 / 12)
    assert clamped(torch.tensor(0.0), 12).item() == 0.5
    threshold = torch.tensor(-30.0, requires_grad=True)
    clamped(threshold, 12).backward()
    assert threshold.grad.item() == 0.0


def test_the_share_of_blocks_is_weighted_by_their_number():
    assert share_of_blocks([torch.tensor(0.0), torch.tensor(100.0)], [30, 10]).item() == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("excess", "loss", "pull"),
    [
        (-0.1, 0.0, 0.0),
        (0.5, 20000 * 0.25, 2 * 20000 * 0.5),  # lambda = 20000 * 0.25 / 0.5^2
        (0.1, 800 * 0.01, 2 * 800 * 0.1),
        (0.02, 50 * 4e-4, 2 * 50 * 0.02),  # 20000 * 4e-4 / 0.25 = 32 is raised to 50
        (0.01, 10 * 1e-4, 2 * 10 * 0.01),  # reg below 3e-4
    ],
)
def test_the_regulariser_has_the_papers_values_and_its_lambda_no_gradient(excess, loss, pull):
    share = torch.tensor(0.5 + excess, dtype=torch.double, requires_grad=True)
    found = regulariser(share, 0.5)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-9)
    assert share.grad.item() == pytest.approx(pull, rel=1e-9)


def test_at_the_papers_thresholds_the_regulariser_hardly_pulls():
    """sigma'(10) = 4.5e-5: the reason why recipe 'paper' does not reach a budget in a short run."""
    t = torch.tensor(10.0, dtype=torch.double, requires_grad=True)
    clamped(t, 12).backward()
    assert t.grad.item() == pytest.approx(4.54e-5, rel=1e-3)


# --- Budgets -----------------------------------------------------------------------------------------------------


def test_the_budget_falls_from_one_along_a_cubic():
    assert [budget_at(p, 0.2) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([1.0, 1.0, 0.3, 0.2, 0.2])


@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=5),
    st.floats(0.3, 1.0),
)
@settings(deadline=None)
def test_shifted_thresholds_meet_the_budget_as_nearly_as_hard_counts_can(values, budget):
    thresholds = {str(i): t for i, t in enumerate(values)}

    def cost(thresholds):
        return sum(n_kept(t, 12) for t in thresholds.values()) / (12 * len(values))

    def shifted(shift):
        return cost({name: t + shift for name, t in thresholds.items()})

    shift = fit_thresholds(thresholds, cost, budget)
    assert shift <= 0
    assert shifted(shift) <= budget
    assert shift == 0 or shifted(shift + 1e-9) > budget


def test_a_budget_below_one_unit_in_each_gate_is_refused():
    with pytest.raises(UserError, match=r"a budget of 0\.05 cannot be met: one unit in each gate costs 0\.08333"):
        fit_thresholds({"a": 2.0, "b": 2.0}, lambda t: sum(n_kept(x, 12) for x in t.values()) / 24, 0.05)


def _brute_force(heads, rows, cost, budget, multiple):
    """The least loss of all structures: any number of the best units of each layer."""
    modules = [(h, cost.heads, range(1, len(h) + 1)) for h in heads]
    for r in rows:
        modules.append((r, cost.rows, [n for n in range(1, len(r) + 1) if n % multiple == 0 or n == len(r)]))
    best = math.inf
    for numbers in itertools.product(*(options for *_, options in modules)):
        if sum(table[n] for n, (_, table, _) in zip(numbers, modules, strict=True)) <= budget:
            lost = sum(
                float(v.double().sort().values[: len(v) - n].sum()) for n, (v, *_) in zip(numbers, modules, strict=True)
            )
            best = min(best, lost)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("linear", [True, False], ids=["weights", "steps"])
def test_the_structure_loses_as_little_as_the_best_of_all(seed, multiple, linear):
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.rand(3, generator=generator) * 5 for _ in range(2)]
    rows = [torch.rand(9, generator=generator) for _ in range(2)]
    steps = tuple(float(1 + 4 * (n // 4)) for n in range(10))
    cost = Cost("weights", (0.0, 6.0, 12.0, 18.0), tuple(2.0 * n for n in range(10)) if linear else steps)
    budget = 0.55 * cost.dense(2)
    found = allocate(heads, rows, cost, budget, multiple)
    assert cost.of(found) <= budget
    lost = sum(
        float(v.double().sum() - v.double()[list(kept)].sum())
        for v, kept in zip([*heads, *rows], [*found.heads, *found.rows], strict=True)
    )
    assert lost == pytest.approx(_brute_force(heads, rows, cost, budget, multiple), abs=1e-9)


def test_the_dead_stay_dead_and_the_most_important_of_the_rest_stay():
    cost = Cost("weights", (0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 2.0, 3.0, 4.0))
    heads, rows = [torch.tensor([3.0, -1.0, 2.0])], [torch.tensor([1.0, 0.0, 5.0, -1.0])]
    assert allocate(heads, rows, cost, 100.0) == Structure(((0, 2),), ((0, 1, 2),))
    assert allocate(heads, rows, cost, 3.0) == Structure(((0, 2),), ((2,),))


def test_a_table_in_milliseconds_is_within_the_budget_and_near_the_best():
    cost = Cost("ms", (0.0, 0.1, 0.21, 0.33), tuple(0.013 * n**1.1 for n in range(10)))
    generator = torch.Generator().manual_seed(0)
    heads, rows = ([torch.rand(n, generator=generator) for _ in range(2)] for n in (3, 9))
    budget = 0.6 * cost.dense(2)
    found = allocate(heads, rows, cost, budget)
    assert cost.of(found) <= budget
    lost = sum(
        float(v.sum() - v[list(kept)].sum())
        for v, kept in zip([*heads, *rows], [*found.heads, *found.rows], strict=True)
    )
    assert lost <= 1.05 * _brute_force(heads, rows, cost, 0.998 * budget, 1)


def test_a_budget_below_the_smallest_structure_is_refused():
    cost = Cost("weights", (0.0, 6.0), (0.0, 2.0, 4.0))
    with pytest.raises(UserError, match="a budget of 7 weights cannot be met: the smallest structure costs 8"):
        allocate([torch.ones(1)], [torch.ones(2)], cost, 7.0)


# --- Settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "paper", "threshold_start": 3.0}, "recipe 'paper' has its own values: leave threshold_start out"),
        ({"recipe": "gradual", "units": "blocks"}, "recipe 'gradual' removes heads and rows"),
        ({"recipe": "learned", "units": "blocks", "multiple": 8}, "'blocks' are counted in weights"),
        ({"recipe": "paper", "cost": "flops"}, "the regulariser counts weights"),
        ({"recipe": "learned", "cost": "latency"}, "needs `latency`, the path"),
        ({"recipe": "learned", "latency": "ms.json"}, "needs `latency`, the path"),
        ({"recipe": "learned", "ramp_until": 0.7}, r"ramp_until = 0\.7 is after freeze_at = 0\.5"),
        ({"recipe": "learned", "budget": 1.0}, "budget"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Structured.model_validate({"budget": 0.5} | values)
