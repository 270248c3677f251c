"""Held-out rows: a partition, no text on both sides, the share of each class, the same each time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nxm.compress.split import contradictions, hold_out, without
from nxm.errors import UserError

ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=2, max_size=120)


@pytest.mark.situation("nxm compress", "a text that occurs more than once: never on both sides of the split", "works")
@given(ROWS, st.floats(0.05, 0.6), st.integers(0, 5))
def test_rows_are_split_by_text_and_class(rows, share, seed):
    keys, classes = [key for key, _ in rows], [label for _, label in rows]
    assume(len(set(keys)) > 3)  # at least two texts in one of three classes
    train, test = hold_out(keys, classes, share, seed)
    assert sorted([*train, *test]) == list(range(len(rows)))
    assert len(train) > 0
    assert len(test) > 0
    assert not {keys[i] for i in train} & {keys[i] for i in test}
    again = hold_out(keys, classes, share, seed)
    assert all(np.array_equal(one, other) for one, other in zip((train, test), again, strict=True))


@given(st.integers(5, 60), st.integers(5, 60), st.integers(0, 5))
def test_without_duplicates_every_class_has_its_share_on_both_sides(n, m, seed):
    classes = ["x"] * n + ["y"] * m
    _, test = hold_out(range(n + m), classes, 0.2, seed)
    counts = Counter(classes[i] for i in test)
    assert counts == {"x": int(0.2 * n), "y": int(0.2 * m)}


def test_another_seed_holds_out_other_rows_and_a_limit_holds():
    keys, classes = range(1000), ["x", "y"] * 500
    tests = [hold_out(keys, classes, 0.2, seed)[1].tolist() for seed in (0, 1)]
    assert tests[0] != tests[1]
    assert len(hold_out(keys, classes, 0.2, 0, most=50)[1]) == 50


def test_too_few_texts_to_hold_out_any_are_an_error():
    with pytest.raises(UserError, match=r"2 rows with 1 different inputs: none can be held out .* \(--test\)"):
        hold_out(["same", "same"], ["x", "x"], 0.2, 0)
    with pytest.raises(UserError, match="none can be held out"):
        hold_out(["a", "b"], ["x", "y"], 0.2, 0)


def test_duplicates_of_held_out_texts_are_found_and_so_are_contradictions():
    assert without(["a", "b", "a", "c"], ["a", "d"]).tolist() == [1, 3]
    assert contradictions(["a", "b", "a", "b"], ["x", "x", "y", "x"]) == 1
