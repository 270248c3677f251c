"""Extractive question answering: SQuAD's rows, windows of long contexts, answers joined per question, SQuAD's scores.

A context that does not fit is read in several windows that overlap. The answer to a question is the best span of all of
its windows; where the training rows have questions without an answer (SQuAD 2.0), none is answered if the score of
"no answer" exceeds the best span's in every window.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nxm.errors import UserError

Answer = tuple[str, int]  # the text and its first character's place in the context
STRIDE = 128  # tokens by which two windows of a context overlap at most
LONGEST_ANSWER = 30  # tokens, as in the scripts of BERT and transformers

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def read_answers(cell: Any, context: str, where: str) -> tuple[Answer, ...]:
    """Return the answers in a cell of SQuAD's layout; () for a question without an answer.

    Args:
        cell: a mapping of the lists `text` and `answer_start`, or a list of such mappings with single values.
        where: table, column and row, for messages.

    Raises:
        UserError: the cell is of another form, or an answer is not at its place in the context.
    """
    if isinstance(cell, Mapping) and {"text", "answer_start"} <= cell.keys():
        pairs = list(zip(_list(cell["text"]), _list(cell["answer_start"]), strict=False))
        whole = len(_list(cell["text"])) == len(_list(cell["answer_start"]))
    elif isinstance(cell, (list, tuple)) and all(isinstance(each, Mapping) for each in cell):
        pairs, whole = [(each.get("text"), each.get("answer_start")) for each in cell], True
    else:
        pairs, whole = [], False
    if not whole or not all(isinstance(text, str) and isinstance(start, int) for text, start in pairs):
        raise UserError(
            f"{where}: {cell!r:.60} are no answers: expected {{'text': [...], 'answer_start': [...]}} with as many "
            "texts as places of their first characters; empty lists for a question without an answer"
        )
    for text, start in pairs:
        if not text.strip():
            raise UserError(f"{where}: an answer is an empty text; a question without an answer has empty lists")
        if context[start : start + len(text)] != text or start < 0:
            found = context.find(text)
            hint = f"it begins at {found}" if found >= 0 else "the context does not have it"
            raise UserError(f"{where}: the answer {text!r:.60} is not at character {start} of the context: {hint}")
    return tuple((text, start) for text, start in pairs)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


# --- windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A part of a context with its question.

    Attributes:
        row: of the question.
        none: the token that stands for "no answer", the first special one.
        offsets: for each token of the context its first character and the one behind its last; None for other tokens.
    """

    row: int
    none: int
    offsets: list[tuple[int, int] | None]

    def span(self, answer: Answer | None) -> tuple[int, int]:
        """Return the first and last token of an answer; twice `none` if the window lacks a part of it."""
        tokens = [i for i, offset in enumerate(self.offsets) if offset is not None]
        if answer is None or not tokens:
            return self.none, self.none
        start, end = answer[1], answer[1] + len(answer[0])
        places: list[Any] = [self.offsets[i] for i in tokens]
        if places[0][0] > start or places[-1][1] < end:
            return self.none, self.none
        first = max(i for i, place in zip(tokens, places, strict=True) if place[0] <= start)
        last = min(i for i, place in zip(tokens, places, strict=True) if place[1] >= end)
        return first, max(first, last)


def windows_of(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, place: str
) -> tuple[dict[str, list[Any]], list[Window]]:
    """Return the tokenizer's columns, with a row per window, and the windows.

    Raises:
        UserError: a question is so long that a window has hardly a context.
    """
    stride = min(STRIDE, max_length // 4)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    tokens = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    for row, own in enumerate(tokens, start=1):
        if max_length - special - len(own) <= stride:
            raise UserError(
                f"{place}: row {row}: the question has {len(own)} tokens, which leave too few of {max_length} to its "
                "context: shorten it, or raise --max-length"
            )
    found = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for i, (row, offsets) in enumerate(zip(found["overflow_to_sample_mapping"], found["offset_mapping"], strict=True)):
        ids, parts = found["input_ids"][i], found.sequence_ids(i)
        none = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        kept = [tuple(offset) if part == 1 else None for offset, part in zip(offsets, parts, strict=True)]
        windows.append(Window(row, none, kept))
    columns = {name: own for name, own in found.items() if name not in ("overflow_to_sample_mapping", "offset_mapping")}
    return columns, windows


def best_answers(
    contexts: Sequence[str], windows: Sequence[Window], logits: Sequence[np.ndarray], may_be_none: bool
) -> list[str]:
    """Return the answer to each question, "" for none.

    Args:
        logits: for each window (tokens, 2), of an answer's first and last token.
        may_be_none: "no answer" is one of the answers.
    """
    best = [(-np.inf, "")] * len(contexts)
    none = [np.inf] * len(contexts)
    for window, own in zip(windows, logits, strict=True):
        row = window.row
        none[row] = min(none[row], float(own[window.none].sum()))
        tokens = [i for i, offset in enumerate(window.offsets) if offset is not None]
        if not tokens:
            continue
        scores = own[tokens, 0][:, None] + own[tokens, 1][None, :]
        allowed = np.triu(np.ones_like(scores, dtype=bool)) & ~np.triu(np.ones_like(scores, dtype=bool), LONGEST_ANSWER)
        scores = np.where(allowed, scores, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        if scores[first, last] > best[row][0]:
            places: list[Any] = [window.offsets[tokens[i]] for i in (int(first), int(last))]
            best[row] = float(scores[first, last]), contexts[row][places[0][0] : places[1][1]]
    return ["" if may_be_none and least > score else text for (score, text), least in zip(best, none, strict=True)]


# --- scores ------------------------------------------------------------------------------------------------------


def normalised(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them: lower case, without punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return _ARTICLES.sub(" ", plain).split()


def score_answer(found: str, answers: Sequence[Answer]) -> tuple[float, float]:
    """Return exact match and F1, each 0 to 1, with the best of the right answers (SQuAD 2.0's definition).

    Without a right answer, "" has 1 and every other text 0.
    """
    right = [words for text, _ in answers if (words := normalised(text))] or [[]]
    mine = normalised(found)
    return max(float(mine == words) for words in right), max(_f1(mine, words) for words in right)


def _f1(mine: Sequence[str], right: Sequence[str]) -> float:
    if not mine or not right:
        return float(mine == right)
    common = sum((Counter(mine) & Counter(right)).values())
    return 2 * common / (len(mine) + len(right))
