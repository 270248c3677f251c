"""Questions and answers: SQuAD's rows are read, long contexts are split, spans are joined, scores are SQuAD's."""

from __future__ import annotations

import collections
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from nxm.compress.answers import Window, best_answers, score_answer, windows_of
from nxm.compress.encode import encode_questions
from nxm.compress.examples import Columns, Examples, read_examples, read_more_examples
from nxm.compress.model import find_model, fitting_classes, load_start, load_tokenizer
from nxm.compress.prepare import Notes, read_rows
from nxm.compress.settings import ANSWERS, make_settings
from nxm.compress.tables import Table, read_table
from nxm.errors import UserError
from user_data import questions, save_tiny, write_lines


def read(path: Path, **options: Any) -> Examples:
    return read_examples(read_table(path), make_settings({"model": "m", "train": path, **options}))


def table(cell: Any, context: str = "a b c", **others: list[Any]) -> Table:
    columns = {"question": ["a ?", "b ?"], "context": ["x y", context], **others}
    return Table("data.jsonl", columns | {"answers": [{"text": ["x"], "answer_start": [0]}, cell]})


# --- rows ---


@pytest.mark.situation(
    "nxm compress", "question answering: SQuAD's rows in JSON lines, its JSON, Parquet, `datasets`", "works"
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "datasets"])
def test_every_format_has_the_same_questions(kind, tmp_path):
    rows, path = questions(6, unanswerable=True), tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
    elif kind == "json":
        paragraphs = [
            {
                "context": row["context"],
                "qas": [
                    {
                        "question": row["question"],
                        "answers": [
                            {"text": text, "answer_start": start}
                            for text, start in zip(*row["answers"].values(), strict=True)
                        ],
                    }
                ],
            }
            for row in rows
        ]
        path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    examples = read(path)
    assert (examples.task, examples.classes, examples.unanswerable, examples.num_labels) == (ANSWERS, (), True, 2)
    assert examples.inputs == [(row["question"], row["context"]) for row in rows]
    assert examples.labels == [tuple(zip(*row["answers"].values(), strict=True)) for row in rows]


def test_other_columns_are_named(tmp_path):
    rows = [{"q": row["question"], "c": row["context"], "a": row["answers"]} for row in questions(4)]
    path = write_lines(tmp_path / "data.jsonl", rows)
    examples = read(path, task=ANSWERS, text="q", text2="c", label="a")
    assert examples.columns == Columns(("q", "c"), ("a",), ANSWERS)
    with pytest.raises(UserError, match=r"there is no column 'question' \(--text\)"):
        read(path, task=ANSWERS)


@pytest.mark.situation(
    "nxm compress", "an answer that is not at its place in the context, or in no layout of SQuAD's", "refused"
)
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"text": ["b"], "answer_start": [0]}, "the answer 'b' is not at character 0 of the context: it begins at 2"),
        ({"text": ["q"], "answer_start": [0]}, "the context does not have it"),
        ({"text": ["c"], "answer_start": [-1]}, "is not at character -1"),
        ({"text": [""], "answer_start": [0]}, "an answer is an empty text"),
        ({"text": ["a", "b"], "answer_start": [0]}, "are no answers: expected"),
        ({"text": ["a"]}, "are no answers: expected"),
        ("a", "'a' are no answers: expected"),
        (None, "None are no answers"),
    ],
)
def test_bad_answers_are_named_with_their_row(cell, message):
    with pytest.raises(UserError, match=rf"data\.jsonl: column 'answers', row 2: .*{message}"):
        read_examples(table(cell), make_settings({"model": "m", "train": "data.jsonl"}))


def test_questions_without_any_answer_and_unknown_kinds_of_rows_are_refused():
    settings, none = make_settings({"model": "m", "train": "data.jsonl"}), {"text": [], "answer_start": []}
    with pytest.raises(UserError, match="no question has an answer; there is nothing to learn"):
        read_examples(Table("t", table(none).columns | {"answers": [none, none]}), settings)
    answered = read_examples(table({"text": ["a"], "answer_start": [0]}), settings)
    with pytest.raises(UserError, match=r"row 2: the question has no answer; every one in data\.jsonl has"):
        read_more_examples(table(none), answered)
    with pytest.raises(UserError, match="column 'context': row 2 is without a value"):
        read_examples(table(none, context=" "), settings)


def test_a_context_is_never_on_both_sides(tmp_path):
    rows = questions(30)
    rows += [row | {"question": row["question"] + " ?"} for row in rows[::2]]
    settings = make_settings({"model": "m", "train": write_lines(tmp_path / "data.jsonl", rows)})
    train, test, _ = read_rows(settings, Notes())
    assert {context for _, context in train.inputs}.isdisjoint(context for _, context in test.inputs)
    assert len(train) + len(test) == 45
    held = write_lines(tmp_path / "test.jsonl", rows[:1])
    notes = Notes()
    train, _, _ = read_rows(make_settings({"model": "m", "train": settings.train, "test": held}), notes)
    assert len(train) == 43
    assert "2 training rows are left out: their contexts are held out too" in notes.lines


# --- windows and answers ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(
        find_model(str(save_tiny(tmp_path_factory.mktemp("m") / "model", "bert-qa")), ANSWERS), ANSWERS
    )


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.data())
def test_windows_cover_the_context_and_find_every_answer_again(tokenizer, words, data):
    context = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(len(words) - 1, first + 3)))
    answer = (" ".join(words[first : last + 1]), 2 * first)
    columns, windows = windows_of(["a b"], [context], tokenizer, 24, "data")
    assert len(columns["input_ids"]) == len(windows)
    assert all(len(ids) <= 24 for ids in columns["input_ids"])
    seen = {place for window in windows for place in window.offsets if place is not None}
    assert seen == {(2 * i, 2 * i + 1) for i in range(len(words))}
    logits, whole = [], False
    for window, ids in zip(windows, columns["input_ids"], strict=True):
        own = np.zeros((len(ids), 2))
        start, end = window.span(answer)
        inside = start != window.none
        whole |= inside
        own[start, 0] = own[end, 1] = 9 if inside else 5
        logits.append(own)
    assert whole  # windows overlap by more than an answer
    assert best_answers([context], windows, logits, may_be_none=False) == [answer[0]]


def brute_force(context: str, window: Window, own: np.ndarray, may_be_none: bool) -> str:
    spans = {
        (own[i, 0] + own[j, 1]): context[start[0] : end[1]]
        for i, start in enumerate(window.offsets)
        for j, end in enumerate(window.offsets)
        if start is not None and end is not None and i <= j < i + 30
    }
    best = max(spans)
    return "" if may_be_none and own[window.none].sum() > best else spans[best]


@given(st.integers(0, 10_000), st.integers(1, 50), st.booleans())
def test_the_best_span_is_that_of_a_search_over_all(seed, words, may_be_none):
    random = np.random.default_rng(seed)
    context = " ".join(f"{i:02d}" for i in range(words))
    window = Window(0, 0, [None, None, *((3 * i, 3 * i + 2) for i in range(words)), None])
    own = random.normal(size=(words + 3, 2))
    own[0] *= 4
    found = best_answers([context], [window], [own], may_be_none)
    assert found == [brute_force(context, window, own, may_be_none)]


def test_none_is_answered_only_if_every_window_says_so():
    windows = [Window(0, 0, [None, (0, 1)]), Window(0, 0, [None, (2, 3)])]
    none, first, second = np.array([[5.0, 5.0], [1, 1]]), np.array([[1.0, 1.0], [2, 2]]), np.array([[6.0, 6.0], [2, 2]])
    assert best_answers(["a b"], windows, [none, second], True) == [""]
    assert best_answers(["a b"], windows, [none, first], True) == ["b"]
    assert best_answers(["a b"], windows, [none, second], False) == ["b"]


def test_training_windows_have_the_first_answer_or_the_token_of_none(tmp_path, tokenizer):
    origin = find_model(str(save_tiny(tmp_path / "model", "bert-qa")), ANSWERS)
    context = "a b c d e f g h " * 4
    labels = [(("h a", 14), ("c", 4)), ()]
    examples = Examples(
        ANSWERS, Columns(("q",), ("a",), ANSWERS), [("a ?", context), ("b ?", "c d")], labels, (), "data", True
    )
    assert fitting_classes(origin.config, examples) == ()
    data = encode_questions(examples, tokenizer, load_start(origin, examples, False, 0), 24)
    assert data.cut == 1
    for i, (window, row) in enumerate(zip(data.windows, data.rows, strict=True)):
        span = row["start_positions"], row["end_positions"]
        if i == 0:
            assert [window.offsets[token] for token in span] == [(14, 15), (16, 17)]
        else:
            assert span == (0, 0) or (window.row == 0 and i == 1)
    batch = data.collate([data.rows[0], data.rows[len(data) - 1]])
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions"}
    with pytest.raises(UserError, match=r"data: row 1: the question has 40 tokens, which leave too few of 24"):
        windows_of(["a " * 40], ["b"], tokenizer, 24, "data")


# --- scores, compared with the definition of SQuAD's evaluation script, written again ---


def official(found: str, golds: list[str]) -> tuple[float, float]:
    def normalise(text: str) -> str:
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        text = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)
        return " ".join(text.split())

    def f1(gold: str) -> float:
        gold_tokens, tokens = normalise(gold).split(), normalise(found).split()
        common = collections.Counter(gold_tokens) & collections.Counter(tokens)
        same = sum(common.values())
        if len(gold_tokens) == 0 or len(tokens) == 0:
            return float(gold_tokens == tokens)
        if same == 0:
            return 0.0
        precision, recall = same / len(tokens), same / len(gold_tokens)
        return 2 * precision * recall / (precision + recall)

    golds = [gold for gold in golds if normalise(gold)] or [""]
    return max(float(normalise(found) == normalise(gold)) for gold in golds), max(map(f1, golds))


WORDS = st.lists(
    st.sampled_from(["the", "A", "cat", "Cat!", "sat", "on", "an", "...", "mat's", "4.5", "ä"]), max_size=6
)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_exact_match_and_f1_are_those_of_squads_script(found, golds):
    text, right = " ".join(found), [" ".join(words) for words in golds]
    assert score_answer(text, [(own, 0) for own in right]) == pytest.approx(official(text, right))


def test_examples_of_squads_normalisation():
    assert score_answer("the Cat!", [("cat", 0)]) == (1.0, 1.0)
    assert score_answer("black cat", [("dog", 0), ("the cat", 0)]) == (0.0, pytest.approx(2 / 3))
    assert (score_answer("", []), score_answer("cat", []), score_answer("", [("cat", 0)])) == ((1, 1), (0, 0), (0, 0))
