"""Scores equal those of scikit-learn and scipy, rows keep their order, and the bootstrap is paired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from transformers import BertTokenizerFast

from nxm.compress import score
from nxm.compress.encode import Encoded
from nxm.errors import Diverged, UserError


def outcomes(task: str, classes: tuple[str, ...], logits: np.ndarray, labels: list) -> np.ndarray:
    return score.outcomes(task, classes, list(logits), Dataset.from_dict({"labels": labels}))


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 30))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(seed, classes, rows):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(rows, classes)), random.integers(classes, size=rows)
    found = score.metrics("classification", outcomes("classification", (), logits, labels.tolist()))
    answers = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(labels, answers))
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, answers, average="macro"))


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 30))
def test_f1_of_several_labels_is_that_of_scikit_learn(seed, classes, rows):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(rows, classes)), random.integers(2, size=(rows, classes))
    found = score.metrics("multi-label", outcomes("multi-label", (), logits, labels.tolist()))
    micro = f1_score(labels, logits > 0, average="micro", zero_division=0.0)
    assert found["micro_f1"] == pytest.approx(100 * micro)
    assert found["exact_match"] == pytest.approx(100 * accuracy_score(labels, logits > 0))


def test_correlations_are_those_of_scipy_and_0_for_a_constant():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(20, 1)), random.normal(size=20)
    found = score.metrics("regression", outcomes("regression", (), logits, labels.tolist()))
    assert found["spearman"] == pytest.approx(100 * stats.spearmanr(logits[:, 0], labels).statistic)
    assert found["pearson"] == pytest.approx(100 * stats.pearsonr(logits[:, 0], labels).statistic)
    constant = outcomes("regression", (), np.ones((20, 1)), labels.tolist())
    assert score.metrics("regression", constant) == {"spearman": 0.0, "pearson": 0.0}


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-X I-X O B-Y", {(0, 2, "X"), (3, 4, "Y")}),
        ("B-X B-X", {(0, 1, "X"), (1, 2, "X")}),
        ("I-X I-Y I-Y", {(0, 1, "X"), (1, 3, "Y")}),
        ("O I-X B-X I-X", {(1, 2, "X"), (2, 4, "X")}),
    ],
)
def test_entities_are_those_of_bio_tags(tags, found):
    assert score.entities(tags.split()) == found


def test_entity_f1_counts_whole_entities_and_accuracy_words():
    classes = ("O", "B-X", "I-X")
    true = [[1, 2, 0], [1, 0, -100]]
    answers = [np.eye(3)[[1, 0, 0]], np.eye(3)[[1, 0]]]  # the first entity is cut short
    numbers = score.outcomes("token-classification", classes, answers, Dataset.from_dict({"labels": true}))
    found = score.metrics("token-classification", numbers)
    assert found == {"entity_f1": pytest.approx(50.0), "accuracy": pytest.approx(80.0)}


def test_metrics_have_the_wanted_one_first_and_tags_without_entities_have_accuracy():
    assert score.metric_names("classification", ("a", "b"), "macro_f1") == ("macro_f1", "accuracy")
    assert score.metric_names("token-classification", ("O", "B-X"))[0] == "entity_f1"
    assert score.metric_names("token-classification", ("NOUN", "VERB")) == ("accuracy",)
    with pytest.raises(UserError, match="metric = 'spearman': classification with these labels has accuracy, macro_f1"):
        score.metric_names("classification", ("a", "b"), "spearman")


def test_the_bootstrap_draws_the_same_rows_for_both_models():
    random = np.random.default_rng(0)
    labels = random.integers(2, size=60)
    numbers = outcomes("classification", (), random.normal(size=(60, 2)), labels.tolist())
    before, after, difference = score.compare("classification", "accuracy", numbers, numbers, draws=50)
    assert before == after
    assert difference == score.Score(0.0, 0.0, 0.0)
    assert before.low < before.value < before.high


def test_a_worse_model_has_a_negative_difference():
    labels = [0, 1] * 30
    right, wrong = np.eye(2)[labels], np.eye(2)[[*labels[:40], *(1 - np.array(labels[40:]))]]
    numbers = [outcomes("classification", (), logits, labels) for logits in (right, wrong)]
    before, after, difference = score.compare("classification", "accuracy", *numbers, draws=100)
    assert (before.value, after.value) == (100.0, pytest.approx(100 * 40 / 60))
    assert difference.high < 0
    assert score.constant_answer("classification", numbers[0]) == 50.0


@pytest.fixture
def tokenizer(tmp_path) -> BertTokenizerFast:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    return BertTokenizerFast(str(tmp_path / "vocab.txt"))


def test_predictions_are_in_the_order_of_the_rows_whatever_their_lengths(tokenizer):
    lengths = [5, 2, 9, 3, 2]
    rows = Dataset.from_dict(
        {
            "input_ids": [[i] * n for i, n in enumerate(lengths)],
            "attention_mask": [[1] * n for n in lengths],
            "labels": [0] * 5,
            "length": lengths,
        }
    )

    def collate(part: list[dict]) -> dict[str, torch.Tensor]:
        return tokenizer.pad(
            [{name: row[name] for name in row if name != "length"} for row in part], return_tensors="pt"
        )

    def answer(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return {"logits": inputs["input_ids"][:, :1].numpy().astype(float)}

    data = Encoded(rows, collate)
    assert [own.item() for own in score.predict(answer, data, batch=2)] == [0, 1, 2, 3, 4]
    with pytest.raises(Diverged, match="not finite"):
        score.predict(lambda inputs: {"logits": np.full((len(inputs["input_ids"]), 2), np.nan)}, data)
