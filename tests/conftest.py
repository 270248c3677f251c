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
from transformers import BertForSequenceClassification

from tiny_training import parity_data, tiny_config


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pipeline's tests first: they take the longest, and side by side the rest then fills what is left."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture
def tiny_bert() -> BertForSequenceClassification:
    """A two-layer BERT of width 16 with two classes, the same each time."""
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config())


@pytest.fixture
def tiny_data() -> Dataset:
    return parity_data()
