"""N:M and unstructured masks: exact on known cases, equal to slow and foreign implementations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.pruning import WeightNormSparsifier

from nxm import NM, Unstructured, UserError, parse_set
from nxm.sets import kind_of
from nxm.sets.base import apply_mask
from nxm.sets.nm import _nm_mask_by_rank, _nm_mask_by_sorting

PATTERNS = [(2, 4), (1, 4), (3, 4), (2, 8), (1, 2), (5, 8), (4, 16)]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_nonzero", "group_size"), PATTERNS)
def test_exactly_the_largest_of_each_group_survive(n_nonzero, group_size):
    W = matrix(6, 3 * group_size)
    Z = NM(n_nonzero, group_size).project(W).Z
    for before, after in zip(W.reshape(-1, group_size), Z.reshape(-1, group_size), strict=True):
        largest = before.abs().topk(n_nonzero).indices
        assert set(after.nonzero().flatten().tolist()) == set(largest.tolist())
        assert torch.equal(after[largest], before[largest])


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-30]), min_size=48, max_size=48),
    pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (2, 8), (4, 16)]),
)
def test_ranking_and_sorting_agree_at_ties(entries, pattern):
    W = torch.tensor(entries).reshape(1, -1)
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


def test_ties_go_to_the_earlier_entry():
    assert torch.equal(NM(2, 4).mask(torch.ones(2, 8)), torch.tensor([True, True, False, False]).repeat(2, 2))
    assert torch.equal(NM(1, 4).mask(torch.ones(2, 8)), torch.tensor([True, False, False, False]).repeat(2, 2))
    assert torch.equal(Unstructured(0.25).mask(torch.ones(2, 8)), (torch.arange(16) < 4).reshape(2, 8))


def test_an_asymmetric_pattern_retains_n_nonzero_and_not_the_rest():
    """2:4 hides an inverted N: 1:4 does not."""
    assert (NM(1, 4).project(matrix(4, 16)).Z != 0).float().mean().item() == 0.25
    assert (NM(3, 4).project(matrix(4, 16)).Z != 0).float().mean().item() == 0.75
    assert (Unstructured(0.25).project(matrix(4, 16)).Z != 0).float().mean().item() == 0.25


def test_groups_run_along_the_input_dimension():
    W = torch.zeros(4, 4)
    W[0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(NM(2, 4).project(W).Z[0], torch.tensor([0.0, 0.0, 3.0, 4.0]))
    W = W.t().contiguous()  # the same numbers down a column: each is alone in its group
    assert torch.equal(NM(2, 4).project(W).Z, W)


def test_similarity_is_the_share_of_the_mask_before_that_survives():
    before = torch.tensor([[True, True, False, False, True, True, False, False]])
    after = torch.tensor([[True, False, True, False, True, True, False, False]])
    assert NM(2, 4).similarity(after, before) == (3.0, 4.0)


@pytest.mark.parametrize(("n_nonzero", "group_size"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_impossible_patterns_are_refused(n_nonzero, group_size):
    with pytest.raises(UserError, match="n_nonzero"):
        NM(n_nonzero, group_size)


@pytest.mark.parametrize("text", ["4:4", "0:4"])
def test_a_pattern_in_the_notation_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match="N:M needs 1 <= n_nonzero < group_size"):
        parse_set(text)


def test_a_width_that_is_no_multiple_is_refused_by_name():
    with pytest.raises(UserError, match=r"layer\.3.*width 10.*group size 4"):
        NM(2, 4).validate((8, 10), "layer.3")


@pytest.mark.parametrize("density", [0.0, 1.0, -0.5])
def test_impossible_densities_are_refused(density):
    with pytest.raises(UserError, match="density"):
        Unstructured(density)


def test_texts():
    assert parse_set("2:4") == NM(2, 4)
    assert str(NM(1, 8)) == "1:8"
    assert parse_set("50 %") == parse_set("50%") == parse_set("unstructured 50 %") == Unstructured(0.5)
    assert parse_set("12.5 %") == Unstructured(0.125)
    assert str(Unstructured(0.3)) == "unstructured 30 %"
    for text in ("0 %", "100 %"):
        with pytest.raises(UserError, match="density must lie between 0 and 1"):
            parse_set(text)


def test_apply_mask_leaves_survivors_exactly():
    W = matrix(4, 8)
    mask = W > 0
    assert torch.equal(apply_mask(W, mask)[mask], W[mask])


def test_a_set_that_is_not_of_the_package_has_no_kind():
    class Mine(NM):
        pass

    with pytest.raises(UserError, match=r"Mine is not a constraint set of nxm\.sets"):
        kind_of(Mine())
