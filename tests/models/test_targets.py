"""Targets are the Linear layers of the blocks in every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from nxm import NM, find_targets
from nxm.models.targets import validate_targets

SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES = [
    (BertForSequenceClassification, BertConfig(**SMALL)),
    (RobertaForSequenceClassification, RobertaConfig(**SMALL)),
    (MPNetForSequenceClassification, MPNetConfig(**SMALL)),
    (ElectraForSequenceClassification, ElectraConfig(**SMALL, embedding_size=16)),
    (
        DistilBertForSequenceClassification,
        DistilBertConfig(vocab_size=30, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
    ),
]


@pytest.mark.parametrize(("model_class", "config"), ARCHITECTURES, ids=[a[0].__name__ for a in ARCHITECTURES])
def test_six_matrices_per_block_and_nothing_else(model_class, config):
    model = model_class(config)
    targets = find_targets(model)
    assert len(targets) == 6 * 3
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(weight)] == name for name, weight in targets.items())  # the names are the model's own
    assert not any(word in name for name in targets for word in ("embeddings", "classifier", "pooler", "LayerNorm"))


def test_bert_base_has_72_matrices_of_84_9_million_weights():
    with torch.device("meta"):
        targets = find_targets(BertForSequenceClassification(BertConfig()))
    assert len(targets) == 72
    assert sum(weight.numel() for weight in targets.values()) == 84_934_656


def test_distilbert_base_has_36():
    with torch.device("meta"):
        assert len(find_targets(DistilBertForSequenceClassification(DistilBertConfig()))) == 36


def test_include_and_exclude_choose_by_name(tiny_bert):
    ffn = find_targets(tiny_bert, include=[r"intermediate", r"layer\.\d+\.output"])
    assert len(ffn) == 4
    assert len(find_targets(tiny_bert, exclude=[r"layer\.0\."])) == 6
    assert not set(ffn) & set(find_targets(tiny_bert, include=["attention"]))


def test_a_pattern_that_matches_nothing_is_named(tiny_bert):
    with pytest.raises(ValueError, match=r"'qeury'.*none of 12"):
        find_targets(tiny_bert, exclude=["qeury"])


def test_leaving_nothing_is_refused(tiny_bert):
    with pytest.raises(ValueError, match="leave none"):
        find_targets(tiny_bert, include=["query"], exclude=["query"])


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no stack of Transformer blocks"):
        find_targets(nn.Sequential(nn.Linear(4, 4)))


def test_every_matrix_that_does_not_fit_is_named(tiny_bert):
    with pytest.raises(ValueError, match=r"query(.|\n)*input width 16.*group size 32"):
        validate_targets(find_targets(tiny_bert), NM(2, 32))
