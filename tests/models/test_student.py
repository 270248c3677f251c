"""Students are built from their teachers' layers."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from nxm.models.student import every_other_layer
from tiny_training import tiny_config


@pytest.mark.parametrize("layers", [2, 5, 6])
def test_a_student_has_every_other_layer_and_everything_outside_the_layers(layers):
    teacher = BertForSequenceClassification(tiny_config(num_hidden_layers=layers))
    student = every_other_layer(teacher)
    assert student.config.num_hidden_layers == (layers + 1) // 2
    for i, block in enumerate(student.bert.encoder.layer):
        for ours, theirs in zip(block.parameters(), teacher.bert.encoder.layer[2 * i].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight)


def test_the_students_embeddings_are_its_own(tiny_bert):
    student = every_other_layer(tiny_bert)
    with torch.no_grad():
        student.bert.embeddings.word_embeddings.weight.zero_()
    assert tiny_bert.bert.embeddings.word_embeddings.weight.any()


def test_distilbert_can_be_halved():
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=4, n_heads=2, hidden_dim=32)
    assert len(every_other_layer(DistilBertForSequenceClassification(config)).distilbert.transformer.layer) == 2


def test_one_layer_cannot_be_halved():
    with pytest.raises(ValueError, match="1 layer"):
        every_other_layer(BertForSequenceClassification(tiny_config(num_hidden_layers=1)))
