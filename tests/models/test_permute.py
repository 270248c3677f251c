"""Permutations leave the function unchanged and never lose more under N:M."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import BertForSequenceClassification

from nxm import NM, UserError, find_targets
from nxm.models.permute import permute_, search_order
from tiny_models import MODELS
from tiny_training import tiny_config


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert-qa"])
def test_the_function_stays_and_the_projection_retains_more(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too: they are zero in a new model, which would hide an error
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(3, 60, (4, 12))
    before = model(input_ids=ids).logits
    weights = {key: W.detach().clone() for key, W in find_targets(model).items()}
    shares = permute_(model, NM(2, 4))
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
    assert len(shares) == 4  # two blocks, two pairs
    assert all(after > first for first, after in shares.values())
    for key, (_, after) in shares.items():
        W = dict(model.named_parameters())[key].detach()
        assert not torch.equal(W, weights[key])
        assert after == pytest.approx(float(NM(2, 4).project(W).Z.square().sum() / W.square().sum()), rel=1e-5)


def test_channels_stay_in_their_heads():
    """Attention works within a head, so V's rows of one head are reordered among themselves."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config())
    layer = model.bert.encoder.layer[0].attention
    before = layer.self.value.weight.detach().clone()
    permute_(model, NM(2, 4))
    after = layer.self.value.weight.detach()
    for head in (slice(0, 8), slice(8, 16)):
        assert {tuple(row) for row in after[head].tolist()} == {tuple(row) for row in before[head].tolist()}


@pytest.mark.parametrize("constraint", [NM(1, 2), NM(2, 4)], ids=str)
def test_the_search_comes_near_the_best_of_all_orders(constraint):
    """Compared with every partition of 8 columns into groups."""
    m = constraint.group_size
    found, best, first = [], [], []
    for seed in range(5):
        W = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))

        def retained(order, W=W):
            return float(constraint.project(W[:, list(order)]).Z.square().sum())

        orders = {
            tuple(sorted(tuple(sorted(order[i : i + m])) for i in range(0, 8, m)))
            for order in itertools.permutations(range(8))
        }
        best.append(max(retained(itertools.chain(*groups)) for groups in orders))
        found.append(retained(search_order(W, constraint).tolist()))
        first.append(retained(range(8)))
    assert all(first[i] <= found[i] * (1 + 1e-6) for i in range(5))
    assert all(found[i] <= best[i] * (1 + 1e-6) for i in range(5))
    gained, possible = (sum(a) - sum(first) for a in (found, best))
    assert gained > 0.6 * possible


def test_an_order_is_a_permutation_and_the_same_each_time():
    W = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    order = search_order(W, NM(2, 4))
    assert sorted(order.tolist()) == list(range(32))
    assert torch.equal(order, search_order(W, NM(2, 4)))


def test_a_matrix_without_anything_to_gain_stays():
    assert search_order(torch.ones(4, 16), NM(2, 4)).tolist() == list(range(16))


def test_excluded_matrices_are_left_alone():
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config())
    shares = permute_(model, NM(2, 4), exclude=("attention",))
    assert list(shares) == [f"bert.encoder.layer.{i}.output.dense.weight" for i in range(2)]


def test_an_unknown_architecture_is_named_with_those_that_are_known():
    """Its layers may have the known names, and others may read the same channels."""
    model = BertForSequenceClassification(tiny_config())
    model.config.model_type = "longformer"
    with pytest.raises(UserError, match="model type 'longformer' cannot be permuted; known: bert, distilbert"):
        permute_(model, NM(2, 4))


def test_heads_whose_width_is_no_multiple_of_the_group_are_named():
    with pytest.raises(
        UserError, match="attention heads of width 8 cannot be permuted: 8 is not a multiple of the group size 16"
    ):
        permute_(BertForSequenceClassification(tiny_config()), NM(2, 16))
