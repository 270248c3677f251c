"""Small models and data, made on the spot: no test needs the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would reach for a hub must fail, not wait

if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    # Each on its share of the cores: two that use all of them wait for each other's threads.
    own = sorted(os.sched_getaffinity(0))
    width = max(1, len(own) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    first = int(worker.removeprefix("gw")) * width % len(own)
    os.sched_setaffinity(0, own[first : first + width])

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pipeline's tests first: they take the longest, and side by side the rest then fills what is left."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


def tiny_config(**changes: object) -> BertConfig:
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 2,
    }
    return BertConfig(**(values | changes))


@pytest.fixture
def tiny_bert() -> BertForSequenceClassification:
    """A two-layer BERT of width 16 with two classes, the same each time."""
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config())


def parity_data() -> Dataset:
    """64 sequences of 6 to 9 tokens whose class is the parity of their first token."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(64):
        ids = torch.randint(2, VOCABULARY, (6 + i % 4,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[0] % 2, "length": len(ids)})
    return Dataset.from_list(rows)


@pytest.fixture
def tiny_data() -> Dataset:
    return parity_data()
