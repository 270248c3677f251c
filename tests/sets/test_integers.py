"""Integers, alone and with N:M: the joint projection, its scales, and what a matrix says about its codes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm import NM, Integers, UserError, parse_set
from nxm.errors import Diverged
from nxm.sets.integers import _best_scale

TWO_OF_FOUR = NM(2, 4)
KINDS = [Integers(2, TWO_OF_FOUR), Integers(3, TWO_OF_FOUR), Integers(4, NM(1, 4)), Integers(8, NM(3, 4)), Integers(4)]
every_kind = pytest.mark.parametrize("constraint", KINDS, ids=str)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(V: torch.Tensor, Z: torch.Tensor, cost: torch.Tensor | None = None) -> torch.Tensor:
    squared = (V - Z).double().square()
    return (squared if cost is None else squared * cost).sum(dim=1)


def kept_then_rounded(group: torch.Tensor, scale: float, codes: range, n_nonzero: int) -> float:
    """Return the squared error of a group whose N largest magnitudes are retained, rounded and clamped."""
    retained = group.abs().sort(descending=True, stable=True).indices[:n_nonzero]
    Z = torch.zeros_like(group)
    Z[retained] = scale * (group[retained] / scale).round().clamp(codes[0], codes[-1])
    return float((group - Z).square().sum())


def best_of_all(group: torch.Tensor, scale: float, codes: range, n_nonzero: int) -> float:
    """Return the smallest squared error over all masks and codes, by brute force."""
    errors = [
        min(float((x - scale * q) ** 2) for q in codes) if kept else float(x**2)
        for x, kept in itertools.product(group, (False, True))
    ]
    dropped, kept = errors[::2], errors[1::2]
    masks = itertools.combinations(range(len(group)), n_nonzero)
    return min(sum(kept[i] if i in mask else dropped[i] for i in range(len(group))) for mask in masks)


# --- The proposition: for a fixed symmetric scale, the N largest and then rounding is exact ------------------------


@settings(max_examples=300, deadline=None)
@given(
    group=st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=4),
    largest=st.sampled_from([1, 3, 7, 127]),
    n_nonzero=st.integers(1, 3),
    scale=st.sampled_from([0.01, 0.3, 1.0, 2.5]),
)
def test_at_a_fixed_scale_keeping_the_largest_and_rounding_is_the_nearest_of_all(group, largest, n_nonzero, scale):
    group, codes = torch.tensor(group, dtype=torch.float64), range(-largest, largest + 1)
    found, best = kept_then_rounded(group, scale, codes, n_nonzero), best_of_all(group, scale, codes, n_nonzero)
    assert found <= best + 1e-9


def test_on_an_asymmetric_grid_it_is_not():
    """With -2..1 the largest entry, 2.0, is clamped to 1 and gains 3; -1.9 becomes -2 and gains 3.6."""
    group, codes = torch.tensor([2.0, -1.9, 0.0, 0.0]), range(-2, 2)
    assert kept_then_rounded(group, 1.0, codes, 1) == pytest.approx(1.0 + 1.9**2)
    assert best_of_all(group, 1.0, codes, 1) == pytest.approx(2.0**2 + 0.1**2)


# --- The scale --------------------------------------------------------------------------------------------------


def every_scale(low: float, high: float) -> torch.Tensor:
    """Return all bfloat16 numbers between two."""
    first, last = (int(torch.tensor(x).view(torch.int32)) >> 16 for x in (low, high))
    return (torch.arange(first, last + 1, dtype=torch.int32) << 16).view(torch.float32)


@pytest.mark.parametrize("largest", [1, 3, 7, 127])
@pytest.mark.parametrize("shape", [(3, 2), (4, 16), (2, 64)])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_scale_is_better_than_the_one_found(largest, shape, weighted):
    a = matrix(*shape).abs() ** 2  # a long tail, where clamping pays
    v = torch.rand(shape, generator=torch.Generator().manual_seed(1)) ** 3 if weighted else torch.ones(shape)
    found = _best_scale(a, v, largest).float()
    scales = every_scale(float(a[a > 0].min()) / largest / 2, 2 * float(a.max()))[:, None, None]
    errors = (v * (a - scales * (a / scales).round().clamp(max=largest)).double().square()).sum(dim=2)
    own = (v * (a - found * (a / found).round().clamp(max=largest)).double().square()).sum(dim=1)
    assert (own <= errors.amin(dim=0) * (1 + 1e-6) + 1e-12).all()


@every_kind
def test_scales_are_bfloat16_numbers_and_products_exact(constraint):
    Z = constraint.project(matrix(8, 64)).Z
    codes, scales = constraint.decode(Z)
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.bfloat16
    assert codes.abs().max() <= constraint.largest
    assert torch.equal((codes.double() * scales.double()).float(), Z)


def test_one_entry_that_costs_nothing_decides_no_scale():
    V, cost = matrix(4, 16), torch.ones(4, 16)
    expected = Integers(4).project(V, cost.index_fill(1, torch.tensor([3]), 0.0)).Z
    V[:, 3] = 1e6
    found = Integers(4).project(V, cost.index_fill(1, torch.tensor([3]), 0.0)).Z
    others = [j for j in range(16) if j != 3]
    assert torch.equal(found[:, others], expected[:, others])


def test_a_rows_size_does_not_matter_and_rows_do_not_see_each_other():
    V = matrix(4, 16)
    factors = torch.tensor([[1.0], [2.0**-40], [2.0**40], [0.0]])
    Z = Integers(4, TWO_OF_FOUR).project(V).Z
    assert torch.equal(Integers(4, TWO_OF_FOUR).project(V * factors).Z, Z * factors)


def test_more_bits_are_nearer_and_eight_are_near():
    V = matrix(16, 256)
    errors = [float(error(V, Integers(bits).project(V).Z).sum() / V.square().sum()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.25
    assert errors[-1] < 1e-4


# --- With a cost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_with_a_cost_it_is_never_farther_than_the_mask_first_and_then_integers(bits, seed):
    V, cost = matrix(8, 32, seed), torch.rand(1, 32, generator=torch.Generator().manual_seed(seed)) ** 4
    mask_first = Integers(bits).project(V * TWO_OF_FOUR.project(V, cost).choice, cost).Z
    joint = Integers(bits, TWO_OF_FOUR).project(V, cost).Z
    assert TWO_OF_FOUR.contains(joint)
    assert (error(V, joint, cost) <= error(V, mask_first, cost) * (1 + 1e-6)).all()


def test_with_two_bits_and_a_cost_another_mask_is_nearer():
    seeds = range(10)
    farther = 0
    for seed in seeds:
        V, cost = matrix(8, 32, seed), torch.rand(1, 32, generator=torch.Generator().manual_seed(seed)) ** 4
        mask_first = Integers(2).project(V * TWO_OF_FOUR.project(V, cost).choice, cost).Z
        farther += int((error(V, Integers(2, TWO_OF_FOUR).project(V, cost).Z, cost) < error(V, mask_first, cost)).sum())
    assert farther > 8 * len(seeds) / 2  # in most rows


# --- Choices -----------------------------------------------------------------------------------------------------


@every_kind
def test_holding_a_mask_is_the_nearest_point_with_that_zero_pattern(constraint):
    V = matrix(8, 16)
    mask = torch.ones_like(V, dtype=torch.bool) if constraint.mask is None else constraint.mask.mask(V)
    held = V.clone()
    constraint.hold_(held, mask)
    assert torch.equal(held, constraint.project(V).Z)
    other = mask.roll(1, dims=0)
    held = V.clone()
    constraint.hold_(held, other)
    assert torch.equal(held, Integers(constraint.bits).project(V * other).Z)


@every_kind
def test_codes_that_point_the_other_way_have_their_nearest_point_at_zero(constraint):
    V = matrix(8, 16)
    choice = constraint.project(-V).choice
    constraint.hold_(V, choice)
    assert not V.any()
    assert constraint.contains(V)


@every_kind
def test_a_grid_has_the_scales_of_the_projection_and_rounds_to_it(constraint):
    V = matrix(8, 16)
    projection = constraint.project(V)
    mask = torch.ones_like(V, dtype=torch.bool) if constraint.mask is None else constraint.mask.mask(V)
    for choice in (mask, projection.choice):
        grid = constraint.grid(V, choice)
        assert torch.equal(grid.mask, mask)
        assert torch.equal(grid.round(V), projection.Z)
        assert constraint.contains(grid.round(matrix(8, 16, seed=1)))


def test_a_grids_zero_pattern_has_room_for_codes_that_are_zero():
    V = torch.tensor([[1.0, -1.0, 0.1, 0.2, 1.0, 0.3, -0.2, 0.0]])
    constraint = Integers(2, TWO_OF_FOUR)
    codes = constraint.project(V).choice
    assert codes.tolist() == [[1, -1, 0, 0, 1, 0, 0, 0]]
    assert constraint.grid(V, codes).mask.tolist() == [[True, True, False, False, True, True, False, False]]


def test_a_row_of_zeros_stays_zero_on_its_grid():
    V = torch.zeros(2, 8)
    grid = Integers(4).grid(V, torch.ones(2, 8, dtype=torch.bool))
    assert not grid.round(matrix(2, 8)).any()
    assert Integers(4).contains(V)


def test_similarity_counts_the_codes_other_than_zero():
    before, now = torch.tensor([[3, 0, 0, -1]], dtype=torch.int8), torch.tensor([[3, 0, 2, 1]], dtype=torch.int8)
    assert Integers(4).similarity(now, before) == (1.0, 2.0)


# --- Membership --------------------------------------------------------------------------------------------------


def test_a_matrix_is_in_the_set_of_its_bits_and_of_more_alone():
    Z = Integers(4, TWO_OF_FOUR).project(matrix(8, 64)).Z
    assert [Integers(bits, TWO_OF_FOUR).contains(Z) for bits in range(2, 9)] == [False, False, *[True] * 5]
    assert Integers(4).contains(Z)
    assert not Integers(4, NM(1, 4)).contains(Z)
    Z[0, 0] += 1e-7
    assert not Integers(8).contains(Z)


def test_codes_are_read_with_the_largest_scale_that_bfloat16_has():
    """9 x 211 and 3 x 211 have more than 8 bits: the codes are 9 and 18 of 211."""
    codes, scales = Integers(8).decode(torch.tensor([[9.0 * 211, -18.0 * 211], [4.0, 6.0], [0.0, 0.0]]))
    assert codes.tolist() == [[9, -18], [2, 3], [0, 0]]
    assert scales.flatten().tolist() == [211.0, 2.0, 0.0]


def test_a_matrix_outside_has_no_codes():
    with pytest.raises(UserError, match="the matrix is not 2:4 int4, so it has no codes"):
        Integers(4, TWO_OF_FOUR).decode(matrix(4, 8))


# --- Words -------------------------------------------------------------------------------------------------------


def test_the_mask_is_given_as_a_set_and_read_from_a_config_as_its_fields():
    constraint = Integers(4, mask=NM(2, 4))
    assert constraint == parse_set("2:4 int4") == Integers(4, {"n_nonzero": 2, "group_size": 4})
    assert str(constraint) == "2:4 int4"
    assert constraint.zero_patterns == NM(2, 4)
    assert Integers(4).zero_patterns is None
    assert hash(constraint) == hash(parse_set("2:4 int4"))


@pytest.mark.parametrize("text", ["int1", "int9", "2:4 int0", "4:2 int4"])
def test_bits_and_patterns_that_do_not_exist_are_refused(text):
    with pytest.raises(UserError, match=r"integers have 2 to 8 bits|N:M needs"):
        parse_set(text)


def test_infinities_and_half_precision_are_refused():
    V = matrix(4, 8)
    with pytest.raises(TypeError, match=r"integer weights need float32.*these are torch.bfloat16"):
        Integers(4).hold_(V.bfloat16(), torch.ones(4, 8, dtype=torch.bool))
    V[1, 1] = float("inf")
    with pytest.raises(Diverged, match="infinities"):
        Integers(4).project(V)


def test_large_matrices_are_searched_in_parts_with_the_same_result(monkeypatch):
    V, cost = matrix(12, 64), torch.rand(12, 64)
    whole = [Integers(4, TWO_OF_FOUR).project(V, v).Z for v in (None, cost, cost[:1])]
    monkeypatch.setattr("nxm.sets.integers._ENTRIES_AT_ONCE", 256)
    for v, Z in zip((None, cost, cost[:1]), whole, strict=True):
        assert torch.equal(Integers(4, TWO_OF_FOUR).project(V, v).Z, Z)
