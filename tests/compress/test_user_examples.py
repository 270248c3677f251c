"""Columns, task and classes are found from a table, and bad rows are named before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from nxm.compress.examples import Columns, Examples, find_columns, read_examples, read_more_examples
from nxm.compress.settings import make_settings
from nxm.compress.tables import Table
from nxm.errors import UserError


def read(columns: dict[str, list[Any]], names: dict[str, list[str]] | None = None, **options: Any) -> Examples:
    settings = make_settings({"model": "m", "train": "data.csv", **options})
    return read_examples(Table("data.csv", columns, names or {}), settings)


TEXTS = ["a", "b", "c", "d"]


# --- columns ---


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        (["text", "label"], ("text",), ("label",)),
        (["id", "Text", "Label"], ("Text",), ("Label",)),
        (["label", "sentence2", "sentence1"], ("sentence1", "sentence2"), ("label",)),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis"), ("label",)),
        (["phrase", "sentiment"], ("phrase",), ("sentiment",)),
        (["text", "verdict"], ("text",), ("verdict",)),
    ],
)
def test_usual_columns_are_found(names, text, label):
    cells = {
        name: TEXTS if name.lower() not in ("id", "label", "sentiment", "verdict") else ["1", "0"] * 2 for name in names
    }
    settings = make_settings({"model": "m", "train": "data.csv"})
    assert find_columns(Table("data.csv", cells), settings) == Columns(text, label)


@pytest.mark.situation("nxm compress", "a column that is missing or cannot be told", "refused")
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": TEXTS, "label": TEXTS}, {"text": "txt"}, r"no column 'txt' \(--text\); did you mean 'text'\?"),
        (
            {"text": TEXTS, "label": TEXTS},
            {"label": ("topic",)},
            r"no column 'topic' \(--label\); it has 'text',",
        ),
        (
            {"one": TEXTS, "two": TEXTS, "label": ["x", "y"] * 2},
            {},
            "'one', 'two' may be the text; name it with",
        ),
        ({"label": ["x", "y"] * 2}, {}, "no column looks like text"),
        ({"text": TEXTS, "p": TEXTS, "q": TEXTS}, {}, "cannot tell the label column; name it with --label"),
        (
            {"text": TEXTS, "label": ["x", "y"] * 2},
            {"text": "label", "label": ("label",)},
            "'label' is named as text",
        ),
        ({"text": TEXTS, "label": ["x", "y"] * 2}, {"text2": "text"}, "name the first with --text"),
    ],
)
def test_columns_that_are_missing_or_unclear_are_named(columns, options, message):
    with pytest.raises(UserError, match=message):
        read(columns, **options)


@pytest.mark.situation("nxm compress", "sentence embeddings", "refused")
def test_tasks_that_are_not_supported_are_refused_by_name_with_those_that_are():
    words = "sentence embeddings is not supported by nxm compress; supported are classification"
    with pytest.raises(UserError, match=words):
        read({"text": TEXTS, "label": TEXTS}, task="embeddings")


# --- tasks ---


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (["good", "bad", "good", "bad"], "classification", ("bad", "good")),
        (["10", "2", "10", "2"], "classification", ("2", "10")),
        ([0, 1, 1, 0], "classification", ("0", "1")),
        ([0.0, 1.0, 1.0, 0.0], "classification", ("0", "1")),
        ([True, False, True, True], "classification", ("False", "True")),
        (["none", "NA", "none", "none"], "classification", ("NA", "none")),
        (["0.5", "1", "2.25", "3"], "regression", ()),
        ([0.5, 1.0, 2.0, 2.0], "regression", ()),
        ([["a"], ["a", "b"], [], ["b"]], "multi-label", ("a", "b")),
        ([[1, 0], [1, 1], [0, 0], [0, 1]], "multi-label", ("0", "1")),
    ],
)
def test_the_task_follows_from_the_labels(labels, task, classes):
    examples = read({"text": TEXTS, "label": labels})
    assert (examples.task, examples.classes) == (task, classes)


def test_many_different_integers_are_scores_and_a_class_by_order_of_the_user():
    many = {"text": [f"t{i}" for i in range(200)], "label": [str(i) for i in range(200)]}
    assert read(many).task == "regression"
    assert len(read(many, task="classification").classes) == 200
    assert read({"text": TEXTS, "label": [1, 2, 3, 1]}, task="regression").labels == [1.0, 2.0, 3.0, 1.0]


def test_lists_of_words_and_tags_are_token_classification():
    columns = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [0]]}
    examples = read(columns, {"ner_tags": ["O", "B-X", "I-X"]})
    assert examples.task == "token-classification"
    assert examples.classes == ("O", "B-X", "I-X")
    assert examples.labels == [["O", "B-X"], ["O"]]
    assert examples.targets() == [[0, 1], [0]]


def test_several_columns_of_0_and_1_are_labels():
    columns = {"id": ["7", "8", "9", "4"], "text": TEXTS, "toxic": ["1", "0", "0", "1"], "insult": ["0", "0", "0", "1"]}
    found = read(columns)
    named = read(columns, label=("toxic", "insult"))
    assert found == named
    assert found.labels == [("toxic",), (), (), ("toxic", "insult")]
    assert found.targets()[-1] == [1.0, 1.0]


def test_targets_are_those_of_the_order_of_classes_given():
    examples = read({"text": TEXTS, "label": ["x", "y", "x", "y"]}).with_classes(("y", "z", "x"))
    assert examples.targets() == [2, 0, 2, 0]
    assert examples.num_labels == 3


# --- bad rows ---


@pytest.mark.situation("nxm compress", "an empty text, a missing label, one class, labels of another task", "refused")
@pytest.mark.parametrize(
    ("texts", "labels", "options", "message"),
    [
        (["a", " ", "c", "d"], ["x", "y"] * 2, {}, "column 'text': row 2 is without a value"),
        (["a", "", "c", ""], ["x", "y"] * 2, {}, "column 'text': 2 rows, first row 2, are without a value"),
        (["a", 5, "c", "d"], ["x", "y"] * 2, {"text": "text"}, "column 'text', row 2: 5 is no text"),
        (TEXTS, ["x", "", "y", "x"], {}, "column 'label': row 2 is without a value"),
        (TEXTS, [1, None, 0, 1], {}, "column 'label': row 2 is without a value"),
        (TEXTS, [0.5, float("nan"), 0.25, 1.0], {}, "column 'label': row 2 is without a value"),
        (TEXTS, [0.5, float("inf"), 0.25, 1.0], {}, "row 2: the label inf is no finite number"),
        (TEXTS, ["0.5", "nan", "0.25", "1"], {}, "row 2: the label 'nan' is no finite number"),
        (TEXTS, ["x"] * 4, {}, "every row is 'x'; classification needs at least two classes"),
        (TEXTS, [1.5] * 4, {}, "every label is 1.5; there is nothing to learn"),
        (TEXTS, ["p", "q", "r", "s"], {}, "4 different words in 4 rows: is it a text"),
        (TEXTS, ["x", "y"] * 2, {"task": "regression"}, "row 1: the label 'x' is no number; regression needs numbers"),
        (TEXTS, ["x", "y"] * 2, {"task": "multi-label"}, "row 1: 'x' is no list of labels"),
        (TEXTS, ["x", "y"] * 2, {"task": "token-classification"}, "row 1: 'a' is no list of words; CSV has no lists"),
        (TEXTS, [["x"], "y", ["x"], ["y"]], {}, "row 2: 'y' is no list of labels"),
        (TEXTS, [[], [], [], []], {}, "no row has any label"),
        (
            [["a"], ["b"], ["c"], ["d"]],
            [["x"], ["y"], ["x", "x"], ["y"]],
            {"text": "text"},
            "row 3: 1 words in 'text', but 2",
        ),
        ([["a"], [], ["c"], ["d"]], [["x"], ["y"], ["x"], ["y"]], {"text": "text"}, "row 2: an empty list of words"),
        (
            [["a"], [""], ["c"], ["d"]],
            [["x"], ["y"], ["x"], ["y"]],
            {"text": "text"},
            "row 2: one of the words is empty",
        ),
    ],
)
def test_bad_rows_are_named_with_their_number(texts, labels, options, message):
    with pytest.raises(UserError, match=message):
        read({"text": texts, "label": labels}, **options)


def test_a_word_among_many_numbers_is_named_and_numbers_among_words_are_words():
    numbers = {"text": [f"t{i}" for i in range(40)], "label": [*("0.5", "1.5") * 19, "1", "x"]}
    with pytest.raises(UserError, match="row 40: the label 'x' is no finite number, unlike 39 others"):
        read(numbers)
    assert read({"text": TEXTS, "label": ["1", "one", "2", "one"]}).classes == ("1", "2", "one")


def test_a_pair_is_a_duplicate_in_either_order():
    columns = {"text1": ["a", "b ", "a"], "text2": ["b", "a", "c"], "label": ["x", "y", "x"]}
    first, second, third = read(columns).keys
    assert first == second != third


def test_a_label_column_with_something_else_than_0_and_1_is_named():
    columns = {"text": TEXTS, "p": ["1", "0", "2", "0"], "q": ["1", "0", "1", "0"]}
    with pytest.raises(UserError, match="column 'p', row 3: '2'; a column of a label has 0 or 1"):
        read(columns, label=("p", "q"))
    with pytest.raises(UserError, match="--task classification: has one label column, --label names 2"):
        read(columns, label=("p", "q"), task="classification")


def test_held_out_rows_have_the_columns_and_classes_of_the_training_rows():
    train = read({"text": TEXTS, "label": ["x", "y", "x", "y"]})
    test = read_more_examples(Table("test.csv", {"label": ["y"], "text": ["e"]}), train)
    assert (test.inputs, test.labels, test.classes) == ([("e",)], ["y"], ("x", "y"))
    with pytest.raises(UserError, match=r"test\.csv: row 1: the label 'z' does not occur in data\.csv, which has 'x'"):
        read_more_examples(Table("test.csv", {"text": ["e"], "label": ["z"]}), train)
    with pytest.raises(UserError, match=r"test\.csv: there is no column 'text' \(the training rows have it\)"):
        read_more_examples(Table("test.csv", {"body": ["e"], "label": ["x"]}), train)
