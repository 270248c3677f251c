"""The common test suite of the constraint sets: every set of nxm.sets, by its own examples."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, fields
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from nxm import UserError, parse_set
from nxm.errors import Diverged
from nxm.sets import all_sets
from nxm.sets.base import ConstraintSet, Projection, SparseSet, support
from nxm.sets.saved import read_pattern, write_pattern

SETS = [parse_set(text) for cls in all_sets().values() for text in cls.examples]
MASKS = [constraint for constraint in SETS if isinstance(constraint, SparseSet)]
SHAPES = [(2, 4), (1, 8), (4, 4), (1, 16), (2, 8)]  # small enough to try every mask

every_set = pytest.mark.parametrize("constraint", SETS, ids=str)
every_mask = pytest.mark.parametrize("constraint", MASKS, ids=str)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def fits(constraint: ConstraintSet, shape: tuple[int, ...]) -> bool:
    try:
        constraint.validate(shape, "matrix")
    except UserError:
        return False
    return True


def small_shape(constraint: ConstraintSet) -> tuple[int, int]:
    return next(shape for shape in SHAPES if fits(constraint, shape))


@cache
def all_masks(constraint: SparseSet) -> torch.Tensor:
    """Every mask of a small matrix in the set, flat, in the order of preference at ties: earlier entries first."""
    shape = small_shape(constraint)
    masks = itertools.product([True, False], repeat=shape[0] * shape[1])
    return torch.tensor([mask for mask in masks if constraint.contains(torch.tensor(mask).reshape(shape).float())])


def distance(V: torch.Tensor, Z: torch.Tensor, cost: torch.Tensor | None = None) -> float:
    squared = (Z - V).double().square()
    return float((squared if cost is None else squared * cost).sum())


def costs(shape: tuple[int, int], seed: int) -> list[torch.Tensor | None]:
    """No cost, a cost of each entry, and one of each input."""
    draw = torch.Generator().manual_seed(seed)
    return [None, torch.rand(shape, generator=draw) ** 4, torch.rand((1, shape[1]), generator=draw)]


def test_the_sets_are_found_and_have_examples():
    assert {"integers", "nm", "unstructured"} <= all_sets().keys()
    for kind, cls in all_sets().items():
        assert cls.examples, kind
        assert all(type(parse_set(text)) is cls for text in cls.examples), kind
        assert any(text in cls.notation for text in cls.examples), kind  # the notation shows one


@every_set
def test_the_projection_lies_in_the_set_and_is_idempotent(constraint):
    V = matrix(8, 16)
    once = constraint.project(V)
    assert isinstance(once, Projection)
    assert once.Z.shape == V.shape
    assert constraint.contains(once.Z)
    assert not constraint.contains(V)
    again = constraint.project(once.Z)
    assert torch.equal(again.Z, once.Z)
    assert torch.equal(again.choice, once.choice)


@every_set
@pytest.mark.parametrize("seed", range(5))
def test_no_point_of_the_set_is_nearer(constraint, seed):
    """Against the projections of many other matrices, near and far, and against holding V on their choices."""
    shape = small_shape(constraint)
    V = matrix(*shape, seed)
    for cost in costs(shape, seed):
        nearest = distance(V, constraint.project(V, cost).Z, cost)
        for i in range(100):
            other = constraint.project(V + (0.1 + i / 20) * matrix(*shape, 1000 + i))
            held = V.clone()
            constraint.hold_(held, other.choice)
            assert nearest <= distance(V, other.Z, cost) * (1 + 1e-6)
            assert nearest <= distance(V, held, cost) * (1 + 1e-6)


@every_mask
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_projection_is_the_nearest_of_all_masks_and_ties_are_broken_by_position(constraint, data):
    """By brute force, with few different values, so that there are many ties."""
    shape = small_shape(constraint)
    n = shape[0] * shape[1]
    V = torch.tensor(data.draw(st.lists(st.sampled_from([-2, -1, 0, 1, 2]), min_size=n, max_size=n))).float()
    cost = torch.tensor(data.draw(st.lists(st.sampled_from([0, 1, 4]), min_size=n, max_size=n))).float()
    masks = all_masks(constraint)
    for v in (None, cost):
        retained = (V.square() * (1.0 if v is None else v) * masks).sum(dim=1)  # what is not removed
        best = masks[int((retained == retained.max()).nonzero()[0])]
        projection = constraint.project(V.reshape(shape), None if v is None else v.reshape(shape))
        assert torch.equal(projection.choice.reshape(-1), best)
        assert torch.equal(projection.Z.reshape(-1), V * best)


@every_mask
def test_a_mask_has_the_full_number_of_entries_even_for_zeros(constraint):
    assert constraint.mask(torch.zeros(8, 16)).sum() == constraint.mask(matrix(8, 16)).sum()


@every_mask
def test_the_sign_does_not_matter_to_a_mask(constraint):
    V = matrix(4, 16)
    assert torch.equal(constraint.mask(V), constraint.mask(-V))


@every_set
def test_a_cost_of_one_is_no_cost(constraint):
    V = matrix(8, 16)
    weighted, plain = constraint.project(V, torch.ones(1, 16)), constraint.project(V)
    assert torch.equal(weighted.Z, plain.Z)
    assert torch.equal(weighted.choice, plain.choice)


@every_set
def test_no_negative_zero_comes_out(constraint):
    V = -matrix(4, 16).abs()
    V[0, :4] = -0.0
    projection = constraint.project(V)
    assert not torch.signbit(projection.Z[projection.Z == 0]).any()
    constraint.hold_(V, projection.choice)
    assert not torch.signbit(V[V == 0]).any()


@every_set
@pytest.mark.parametrize("place", [(0, 0), (2, 2), (3, 15)])
def test_nan_raises(constraint, place):
    V = matrix(4, 16)
    V[place] = float("nan")
    for cost in (None, torch.ones(1, 16)):
        with pytest.raises(Diverged, match="NaN"):
            constraint.project(V, cost)


@every_mask
def test_infinity_is_the_largest_magnitude(constraint):
    V = matrix(4, 16)
    V[1, 1] = float("inf")
    projection = constraint.project(V)
    assert projection.choice[1, 1]
    assert projection.Z[1, 1] == float("inf")
    assert constraint.contains(projection.Z)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays_and_the_argument_too(constraint, dtype):
    V = matrix(4, 16).to(dtype)
    before, cost = V.clone(), torch.rand(1, 16)
    assert constraint.project(V).Z.dtype == dtype
    constraint.project(V, cost.to(dtype))
    assert torch.equal(V, before)


@every_set
def test_a_parameter_is_projected_outside_the_graph(constraint):
    W = torch.nn.Parameter(matrix(4, 16))
    with torch.no_grad():
        assert torch.equal(constraint.project(W).Z, constraint.project(W.detach()).Z)
    assert not constraint.project(W).Z.requires_grad


@every_set
def test_memory_layout_does_not_matter(constraint):
    V = matrix(16, 16)
    assert torch.equal(constraint.project(V.t()).Z, constraint.project(V.t().contiguous()).Z)


@every_set
def test_the_choice_determines_the_support(constraint):
    projection = constraint.project(matrix(8, 16))
    assert torch.equal(projection.Z != 0, support(projection.choice).expand(8, 16))


@every_set
def test_holding_the_own_choice_is_projecting(constraint):
    V = matrix(8, 16)
    projection = constraint.project(V)
    held = V.clone()
    constraint.hold_(held, projection.choice)
    assert torch.equal(held, projection.Z)
    constraint.hold_(held, projection.choice)
    assert torch.equal(held, projection.Z)


@every_set
def test_holding_another_choice_stays_in_the_set_with_that_choice(constraint):
    V, choice = matrix(8, 16), constraint.project(matrix(8, 16, seed=1)).choice
    constraint.hold_(V, choice)
    assert constraint.contains(V)
    assert not V[~support(choice).expand(8, 16)].any()


@every_set
def test_similarity_is_one_with_itself_and_less_with_another_choice(constraint):
    choice, other = (constraint.project(matrix(8, 16, seed)).choice for seed in (0, 1))
    equal, total = constraint.similarity(choice, choice)
    assert equal == total > 0
    equal, total = constraint.similarity(other, choice)
    assert equal < total
    assert equal > 0 or not isinstance(constraint, SparseSet)  # of 255 codes two matrices may share none


@every_set
def test_text_and_config_are_read_as_they_were_written(constraint, tmp_path):
    assert parse_set(str(constraint)) == constraint
    config = BertConfig()
    write_pattern(config, constraint, ["a", "b"])
    config.save_pretrained(tmp_path)
    assert read_pattern(BertConfig.from_pretrained(tmp_path)) == (constraint, ["a", "b"])


@every_set
def test_a_set_is_an_immutable_value(constraint):
    assert hash(constraint) == hash(parse_set(str(constraint)))
    with pytest.raises(FrozenInstanceError):
        setattr(constraint, fields(constraint)[0].name, None)


@every_set
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (8, 10), (12, 6), (16, 12), (4,), (2, 4, 8)], ids=str)
def test_a_shape_that_does_not_fit_is_refused_by_name(constraint, shape):
    if fits(constraint, shape):
        V = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert constraint.contains(constraint.project(V).Z)
    else:
        with pytest.raises(UserError, match=r"layer\.3"):
            constraint.validate(shape, "layer.3")


def test_a_text_of_no_set_is_refused_with_the_known_notations():
    for text in ("24", "2:", "a:4", "2:4:8", "", "50", "int", "%"):
        with pytest.raises(UserError, match=rf"'{text}' is not a constraint set; known notations: .*2:4.*50 %"):
            parse_set(text)
