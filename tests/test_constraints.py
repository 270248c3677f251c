"""Projections are exact, settled at ties, and equal to slow and foreign implementations."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.pruning import WeightNormSparsifier

from nxm import NM, Unstructured
from nxm.errors import Diverged
from nxm.sets.base import SparseSet, apply_mask
from nxm.sets.nm import _nm_mask_by_rank, _nm_mask_by_sorting

PATTERNS = [(2, 4), (1, 4), (3, 4), (2, 8), (1, 2), (5, 8), (4, 16)]
SETS: list[SparseSet] = [NM(2, 4), NM(1, 4), Unstructured(0.5), Unstructured(0.25)]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_nonzero", "group_size"), PATTERNS)
def test_exactly_the_largest_of_each_group_survive(n_nonzero, group_size):
    W = matrix(6, 3 * group_size)
    Z = NM(n_nonzero, group_size).project(W)
    for before, after in zip(W.reshape(-1, group_size), Z.reshape(-1, group_size), strict=True):
        largest = before.abs().topk(n_nonzero).indices
        assert set(after.nonzero().flatten().tolist()) == set(largest.tolist())
        assert torch.equal(after[largest], before[largest])


@pytest.mark.parametrize(("n_nonzero", "group_size"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_nm_projection_is_the_nearest_point_by_brute_force(n_nonzero, group_size):
    for seed in range(20):
        W = matrix(1, group_size, seed)
        masks = [
            torch.tensor([i in kept for i in range(group_size)])
            for kept in itertools.combinations(range(group_size), n_nonzero)
        ]
        nearest = min((W - W * mask).norm().item() for mask in masks)
        assert (W - NM(n_nonzero, group_size).project(W)).norm().item() == pytest.approx(nearest)


def test_unstructured_projection_is_the_nearest_point_by_brute_force():
    for seed in range(10):
        W = matrix(2, 4, seed)
        masks = [
            torch.tensor([i in kept for i in range(8)]).reshape(2, 4) for kept in itertools.combinations(range(8), 4)
        ]
        nearest = min((W - W * mask).norm().item() for mask in masks)
        assert (W - Unstructured(0.5).project(W)).norm().item() == pytest.approx(nearest)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-30]), min_size=48, max_size=48),
    pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (2, 8), (4, 16)]),
)
def test_ranking_and_sorting_agree_at_ties(values, pattern):
    W = torch.tensor(values).reshape(1, -1)
    assert torch.equal(_nm_mask_by_rank(W, *pattern), _nm_mask_by_sorting(W, *pattern))


@pytest.mark.parametrize("group_size", [4, 8, 32])
def test_equals_torch_ao_on_a_real_shape(group_size):
    W = matrix(768, 384)
    layer = nn.Sequential(nn.Linear(384, 768, bias=False))
    layer[0].weight.data.copy_(W)
    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, group_size), zeros_per_block=group_size // 2
    )
    sparsifier.prepare(layer, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    theirs = layer[0].parametrizations.weight[0].mask.bool()
    assert torch.equal(NM(group_size // 2, group_size).mask(W), theirs)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_projection_is_idempotent_and_lies_in_the_set(constraint):
    W = matrix(8, 16)
    Z = constraint.project(W)
    assert constraint.contains(Z)
    assert not constraint.contains(W)
    assert torch.equal(constraint.project(Z), Z)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_ties_go_to_the_earlier_entry(constraint):
    mask = constraint.mask(torch.ones(2, 8))
    if isinstance(constraint, NM):
        expected = torch.tensor([i < constraint.n_nonzero for i in range(4)]).repeat(2, 2)
    else:
        expected = (torch.arange(16) < constraint.n_nonzero((2, 8))).reshape(2, 8)
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_sign_does_not_matter_to_what_survives(constraint):
    W = matrix(4, 16)
    assert torch.equal(constraint.mask(W), constraint.mask(-W))


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_no_negative_zero_comes_out(constraint):
    W = -matrix(4, 16).abs()
    W[0, :4] = -0.0
    Z = constraint.project(W)
    assert not torch.signbit(Z[Z == 0]).any()


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_nan_raises_and_infinity_survives(constraint):
    W = matrix(4, 16)
    W[1, 1] = float("inf")
    assert constraint.mask(W)[1, 1]
    W[2, 2] = float("nan")
    with pytest.raises(Diverged, match="NaN"):  # in a grid the cell then leaves its reason
        constraint.project(W)


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_dtype_and_does_not_change_its_argument(constraint, dtype):
    W = matrix(4, 16).to(dtype)
    before = W.clone()
    assert constraint.project(W).dtype == dtype
    assert torch.equal(W, before)


def test_mask_has_the_full_number_of_entries_even_for_zeros():
    assert int(NM(2, 4).mask(torch.zeros(3, 8)).sum()) == 12
    assert int(Unstructured(0.5).mask(torch.zeros(3, 8)).sum()) == 12


def test_asymmetric_pattern_keeps_n_nonzero_not_the_rest():
    """2:4 hides an inverted N: 1:4 does not."""
    assert (NM(1, 4).project(matrix(4, 16)) != 0).float().mean().item() == 0.25
    assert (NM(3, 4).project(matrix(4, 16)) != 0).float().mean().item() == 0.75


def test_groups_run_along_the_input_dimension():
    W = torch.zeros(4, 4)
    W[0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(NM(2, 4).project(W)[0], torch.tensor([0.0, 0.0, 3.0, 4.0]))
    W = W.t().contiguous()  # the same numbers down a column: each is alone in its group
    assert torch.equal(NM(2, 4).project(W), W)


def test_non_contiguous_matrices_are_projected_alike():
    W = matrix(16, 8)
    assert torch.equal(NM(2, 4).project(W.t()), NM(2, 4).project(W.t().contiguous()))


@pytest.mark.parametrize(("n_nonzero", "group_size"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_impossible_patterns_are_refused(n_nonzero, group_size):
    with pytest.raises(ValueError, match="n_nonzero"):
        NM(n_nonzero, group_size)


def test_a_width_that_is_no_multiple_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layer\.3.*width 10.*group size 4"):
        NM(2, 4).validate((8, 10), "layer.3")


@pytest.mark.parametrize("density", [0.0, 1.0, -0.5])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match="density"):
        Unstructured(density)


def test_patterns_are_read_as_they_are_printed():
    assert NM.parse("2:4") == NM(2, 4)
    assert str(NM(1, 8)) == "1:8"
    for text in ("24", "2:", "a:4", "2:4:8"):
        with pytest.raises(ValueError, match="pattern"):
            NM.parse(text)


def test_apply_mask_leaves_survivors_exactly():
    W = matrix(4, 8)
    mask = W > 0
    assert torch.equal(apply_mask(W, mask)[mask], W[mask])
