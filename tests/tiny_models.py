"""Tiny random models of several architectures, saved like trained ones with a tokenizer and a pattern."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from nxm.models.targets import find_targets
from nxm.sets.nm import NM
from nxm.sets.saved import write_pattern

NO_COMPILER = not any(shutil.which(name) for name in ("c++", "g++", "clang++"))  # which PyTorch compiles with
NO_OPENVINO = importlib.util.find_spec("openvino") is None  # importing it would report to its makers
TWO_OF_FOUR = NM(2, 4)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 80,
}
DISTILBERT = {"vocab_size": 64, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "bert-qa": lambda: BertForQuestionAnswering(BertConfig(**SIZES)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**DISTILBERT, max_position_embeddings=80)
    ),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=64)),
    "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(**SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=0)),
}


def save_model(folder: Path, model: PreTrainedModel, pattern: NM | None = TWO_OF_FOUR, spread: float = 8.0) -> Path:
    """Save a sparse model and its tokenizer; `spread` multiplies the weights, so that answers depend on the input."""
    folder.mkdir(parents=True)
    with torch.no_grad():
        targets = find_targets(model)
        for W in targets.values():
            W.mul_(spread)
            if pattern:
                W.copy_(pattern.project(W).Z)
    if pattern:
        write_pattern(model.config, pattern, targets)
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
