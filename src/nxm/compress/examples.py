"""Labelled examples out of a table: its columns, the task, and the classes.

Columns are named by the user or found by their names; the task follows from the labels. Bad rows are refused with their
number, counted from 1 without the header, before anything is trained.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm.auto import tqdm

from nxm.compress.answers import read_answers
from nxm.compress.settings import ANSWERS, IMAGES, Compression
from nxm.compress.tables import Table
from nxm.data.images import Picture, looks_like_image, open_file, open_picture
from nxm.errors import UserError

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("query", "passage"),
    ("text", "text2"),
    ("text", "text_pair"),
)
TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "comment",
    "body",
    "message",
    "tweet",
    "document",
    "utterance",
    "query",
)
WORDS = ("tokens", "words")
SQUAD = ("question", "context", "answers")
PICTURES = ("image", "img", "picture", "photo", "pixel_values", "image_path", "file_name", "filename", "path", "file")
TAGS = ("tags", "ner_tags", "pos_tags", "labels", "label")
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "score", "rating", "stars", "intent", "y")
MOST_CLASSES = 50  # more different integers are taken for scores, more different words for texts

_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read.

    text: one or two columns; of questions and contexts; or of images.
    label: one, or one for each 0/1 label.
    task: the task, if the columns tell it.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    task: str | None = None


@dataclass(frozen=True)
class Examples:
    """Labelled rows of one task.

    Attributes:
        inputs: for each row its one or two texts; for token classification its words; or its image.
        labels: for each row the name of its class; a score; the names of its labels; a name for each word; or the
            right answers (`nxm.compress.answers`), () for none.
        classes: the names of the classes in the order of the model's outputs; () for scores and answers.
        unanswerable: some training question has no answer.
    """

    task: str
    columns: Columns
    inputs: list[tuple[Any, ...]]
    labels: list[Any]
    classes: tuple[str, ...]
    place: str
    unanswerable: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        if self.task == ANSWERS:
            return 2  # the first and the last token
        return len(self.classes) or 1

    @property
    def keys(self) -> list[tuple[Any, ...]]:
        """For each row what makes it a duplicate of another with an equal key.

        Its image, a question's context, or its texts without surrounding space, a pair's in either order.
        """
        if self.task == IMAGES:
            return self.inputs
        if self.task == ANSWERS:
            return [(context.strip(),) for _, context in self.inputs]
        stripped = [tuple(text.strip() for text in texts) for texts in self.inputs]
        return [tuple(sorted(texts)) for texts in stripped] if len(self.columns.text) == 2 else stripped

    def take(self, rows: Iterable[int]) -> Examples:
        """Return some of the rows."""
        rows = list(rows)
        return replace(self, inputs=[self.inputs[i] for i in rows], labels=[self.labels[i] for i in rows])

    def with_classes(self, classes: Sequence[str]) -> Examples:
        """Return the rows with the classes in another order, or with further ones."""
        return replace(self, classes=tuple(classes))

    def targets(self) -> list[Any]:
        """Return the labels as a model takes them: a class, a score, a list of 0.0 and 1.0, or a class per word."""
        if self.task == "regression":
            return [float(label) for label in self.labels]
        number = {name: i for i, name in enumerate(self.classes)}
        if self.task in ("classification", IMAGES):
            return [number[label] for label in self.labels]
        if self.task == "multi-label":
            return [[float(name in names) for name in self.classes] for names in self.labels]
        return [[number[name] for name in names] for names in self.labels]


def read_examples(table: Table, settings: Compression) -> Examples:
    """Return the examples of a table of training rows, with columns, task and classes found where they are not named.

    Raises:
        UserError: a column is missing or cannot be told, a text is empty, an image cannot be read, a label is missing
            or unfit for the task, or all rows have one class.
    """
    columns = find_columns(table, settings)
    task = settings.task or columns.task or infer_task(table, columns)
    if len(columns.label) > 1 and task != "multi-label":
        raise UserError(f"--task {task}: has one label column, --label names {len(columns.label)}")
    inputs, labels = _inputs(table, columns, task), _labels(table, columns, task)
    classes = () if task in ("regression", ANSWERS) else _classes(table, columns, task, labels)
    unanswerable = task == ANSWERS and not all(labels)
    examples = Examples(task, columns, inputs, labels, classes, table.place, unanswerable)
    _refuse_one_class(examples)
    return examples


def read_more_examples(table: Table, like: Examples) -> Examples:
    """Return the examples of a held-out table with the columns, task and classes of the training rows.

    Raises:
        UserError: as for `read_examples`, or a class, or a question without an answer, does not occur in the training
            rows.
    """
    for column in (*like.columns.text, *like.columns.label):
        _require(table, column, "the training rows have it")
    inputs, labels = _inputs(table, like.columns, like.task), _labels(table, like.columns, like.task)
    if like.task == ANSWERS:
        if not like.unanswerable and () in labels:
            raise UserError(
                f"{table.place}: row {labels.index(()) + 1}: the question has no answer; every one in {like.place} has"
            )
    elif like.task != "regression":
        known = set(like.classes)
        for row, label in enumerate(labels, start=1):
            unknown = sorted(set(_names(label)) - known)
            if unknown:
                raise UserError(
                    f"{table.place}: row {row}: the label '{unknown[0]}' does not occur in {like.place}, which has "
                    f"{_some(like.classes)}"
                )
    return replace(like, inputs=inputs, labels=labels, place=table.place)


# --- columns -----------------------------------------------------------------------------------------------------


def find_columns(table: Table, settings: Compression) -> Columns:
    """Return the columns of texts and labels: those that the settings name, else those with usual names.

    Raises:
        UserError: a named column is missing, or one that is not named cannot be told; the message lists the columns.
    """
    for option, name in (("--text", settings.text), ("--text2", settings.text2), ("--image", settings.image)):
        if name is not None:
            _require(table, name, option)
    for name in settings.label:
        _require(table, name, "--label")
    if settings.text2 is not None and settings.text is None:
        raise UserError("--text2 is the second text of a pair: name the first with --text")
    if settings.task == ANSWERS or _looks_like_squad(table, settings):
        return _find_questions(table, settings)
    pictures = _find_pictures(table, settings)
    text = pictures or _named_texts(settings) or _find_texts(table, settings)
    label = settings.label or _find_label(table, text)
    if shared := set(text) & set(label):
        raise UserError(f"{table.place}: the column '{min(shared)}' is named as text and as label")
    return Columns(text, tuple(label), IMAGES if pictures else None)


def _looks_like_squad(table: Table, settings: Compression) -> bool:
    named = settings.task or settings.text or settings.label or settings.image
    return not named and set(SQUAD) <= set(table.columns)


def _find_questions(table: Table, settings: Compression) -> Columns:
    """Return the columns of questions, contexts and answers: those that are named, else those of SQuAD."""
    if len(settings.label) > 1:
        raise UserError(f"--task {ANSWERS}: has one column of answers, --label names {len(settings.label)}")
    question, context = settings.text or SQUAD[0], settings.text2 or SQUAD[1]
    (answers,) = settings.label or SQUAD[2:]
    for option, name in (("--text", question), ("--text2", context), ("--label", answers)):
        _require(table, name, option)
    return Columns((question, context), (answers,), ANSWERS)


def _named_texts(settings: Compression) -> tuple[str, ...]:
    return tuple(name for name in (settings.text, settings.text2) if name is not None)


def _find_pictures(table: Table, settings: Compression) -> tuple[str, ...]:
    """Return the column of images: the one that is named, or one that holds images if there is no text; () for none."""
    if settings.image is not None:
        if settings.text is not None or settings.task not in (None, IMAGES):
            other = "--text" if settings.text is not None else f"--task {settings.task}"
            raise UserError(f"--image is for image-classification and does not go with {other}")
        return (settings.image,)
    if settings.task not in (None, IMAGES) or settings.text is not None:
        if settings.task == IMAGES:
            raise UserError("--task image-classification: has images, which --image names, and no --text")
        return ()
    like = [name for name, cells in table.columns.items() if name not in settings.label and looks_like_image(cells[0])]
    found = [name for name in like if name.lower().strip() in PICTURES] or like
    if settings.task == IMAGES and len(found) != 1:
        why = f"{_some(found)} may be the images" if found else "no column has images or names of their files"
        raise UserError(f"{table.place}: {why}; name it with --image. Columns: {_some(table.columns)}")
    files = len(found) == 1 and isinstance(table.columns[found[0]][0], str)
    if len(found) != 1 or (settings.task is None and files and _by_lower_name(table).keys() & {*TEXTS, *WORDS}):
        return ()
    return tuple(found)


def _find_texts(table: Table, settings: Compression) -> tuple[str, ...]:
    by_name = _by_lower_name(table)
    free = {lower: name for lower, name in by_name.items() if name not in settings.label}
    for name in WORDS:
        if name in free and _is_list(table.columns[free[name]][0]):
            return (free[name],)
    for first, second in PAIRS:
        if first in free and second in free:
            return (free[first], free[second])
    for name in TEXTS:
        if name in free:
            return (free[name],)
    usual = {by_name[name] for name in LABELS if name in by_name} | set(settings.label)
    texts = [name for name, cells in table.columns.items() if name not in usual and _looks_like_text(cells)]
    if len(texts) != 1:
        found = "no column looks like text" if not texts else f"{_some(texts)} may be the text"
        raise UserError(
            f"{table.place}: {found}; name it with --text (and --text2 for pairs). Columns: {_some(table.columns)}"
        )
    return (texts[0],)


def _find_label(table: Table, text: Sequence[str]) -> tuple[str, ...]:
    by_name = _by_lower_name(table)
    usual = TAGS if _is_list(table.columns[text[0]][0]) else LABELS
    for name in usual:
        if name in by_name and by_name[name] not in text:
            return (by_name[name],)
    others = [name for name in table.columns if name not in text]
    if len(others) == 1:
        return (others[0],)
    switches = [name for name in others if all(_is_switch(cell) for cell in table.columns[name])]
    if len(switches) >= 2 and all(name in switches or _is_row_number(name) for name in others):
        return tuple(switches)
    raise UserError(
        f"{table.place}: cannot tell the label column; name it with --label (several --label: one 0/1 column each). "
        f"Columns: {_some(table.columns)}"
    )


def _by_lower_name(table: Table) -> dict[str, str]:
    return {name.lower().strip(): name for name in reversed(list(table.columns))}


def _require(table: Table, name: str, why: str) -> None:
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {_some(table.columns)}"
        raise UserError(f"{table.place}: there is no column '{name}' ({why}); {hint}")


def _looks_like_text(cells: Sequence[Any]) -> bool:
    return all(isinstance(cell, str) for cell in cells) and not all(_number(cell) is not None for cell in cells)


# --- the task ----------------------------------------------------------------------------------------------------


def infer_task(table: Table, columns: Columns) -> str:
    """Return the task that fits the label column.

    Several 0/1 columns, or a list of labels for each row: multi-label. A list of tags for a list of words: token
    classification. Numbers with fractions, or many different integers: regression. Else: classification.

    Raises:
        UserError: a label is missing, or the column is one of texts.
    """
    if len(columns.label) > 1:
        return "multi-label"
    cells = _column(table, columns.label[0])
    if any(_is_list(cell) for cell in cells):
        return "token-classification" if _is_list(table.columns[columns.text[0]][0]) else "multi-label"
    values = _values(table, columns.label[0])
    different = len(set(values))
    if isinstance(values[0], str) and (different == len(values) > 2 or different > max(MOST_CLASSES, len(values) / 2)):
        raise UserError(
            f"{table.place}: the label column '{columns.label[0]}' has {different} different words in {len(values)} "
            f"rows: is it a text? Name the label with --label, or say --task classification"
        )
    if isinstance(values[0], float) and not all(float(value).is_integer() for value in values):
        return "regression"
    if not isinstance(values[0], str) and different > MOST_CLASSES and columns.label[0] not in table.names:
        return "regression"
    return "classification"


def _values(table: Table, name: str) -> list[str] | list[int] | list[float]:
    """Return a column of single labels as words, integers or floats, all of one type.

    Raises:
        UserError: a cell is missing, a list, NaN or infinite, or words and numbers are mixed in a typed column.
    """
    cells = _column(table, name)
    if any(_is_list(cell) for cell in cells):
        row = next(row for row, cell in enumerate(cells, start=1) if _is_list(cell))
        raise UserError(f"{table.place}: column '{name}', row {row}: a list; expected one label")
    if all(isinstance(cell, bool) for cell in cells):
        return [str(cell) for cell in cells]
    numbers = [_number(cell) for cell in cells]
    numeric = sum(number is not None for number in numbers)
    if numeric == 0 or (
        numeric < len(cells) and all(isinstance(cell, str) for cell in cells) and not _is_typo(numbers)
    ):
        return [str(cell) for cell in cells]
    for row, (cell, number) in enumerate(zip(cells, numbers, strict=True), start=1):
        if number is None or not math.isfinite(number):
            raise UserError(
                f"{table.place}: column '{name}', row {row}: the label {cell!r} is no finite number, unlike "
                f"{numeric - (number is not None)} others: correct it or remove the row"
            )
    if all(isinstance(number, int) for number in numbers):
        return [int(number) for number in numbers]  # type: ignore[arg-type]  # none is None here
    return [float(number) for number in numbers]  # type: ignore[arg-type]


def _is_typo(numbers: Sequence[float | None]) -> bool:
    """Return whether so few of many labels are no numbers that they are mistakes rather than words."""
    return sum(number is None for number in numbers) <= len(numbers) / 10


def _number(cell: Any) -> int | float | None:
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, str):
        if _INTEGER.fullmatch(cell.strip()):
            return int(cell)
        try:
            return float(cell)
        except ValueError:
            return None
    return cell if isinstance(cell, (int, float)) else None


# --- rows --------------------------------------------------------------------------------------------------------


def _column(table: Table, name: str) -> Sequence[Any]:
    """Return a column's cells. Raises UserError if some are missing."""
    cells = table.columns[name]
    missing = [row for row, cell in enumerate(cells, start=1) if _is_missing(cell)]
    if missing:
        raise UserError(
            f"{table.place}: column '{name}': {_rows(missing)} without a value: fill in or remove "
            f"{'it' if len(missing) == 1 else 'them'}"
        )
    return cells


def _is_missing(cell: Any) -> bool:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return True
    return isinstance(cell, float) and math.isnan(cell)


def _inputs(table: Table, columns: Columns, task: str) -> list[tuple[Any, ...]]:
    if task == IMAGES:
        return [(picture,) for picture in _pictures(table, columns.text[0])]
    if task == "token-classification":
        if len(columns.text) != 1:
            raise UserError("--task token-classification: has one column of words, not a pair of texts")
        return [tuple(words) for words in _lists(table, columns.text[0], "words")]
    texts = []
    for name in columns.text:
        cells = _column(table, name)
        for row, cell in enumerate(cells, start=1):
            if not isinstance(cell, str):
                raise UserError(f"{table.place}: column '{name}', row {row}: {cell!r:.60} is no text")
        texts.append(cells)
    return list(zip(*texts, strict=True))


def _pictures(table: Table, name: str) -> list[Picture]:
    """Return a column of images. Raises UserError, with the row or file, for one that cannot be read."""
    cells, found = _column(table, name), []
    for row in tqdm(range(len(cells)), desc="reading images", unit=" images", disable=None, leave=False):
        if table.one_per_file:
            found.append(open_file(table.folder / cells[row]))
        else:
            found.append(open_picture(cells, row, table.folder, f"{table.place}: column '{name}', row {row + 1}"))
    return found


def _lists(table: Table, name: str, what: str) -> list[list[str]]:
    """Return a column of lists of words. Raises UserError for other cells, and for empty lists and words."""
    lists = []
    for row, cell in enumerate(_column(table, name), start=1):
        if not _is_list(cell):
            raise UserError(
                f"{table.place}: column '{name}', row {row}: {cell!r:.60} is no list of {what}; CSV has no lists: "
                "give JSON lines, Parquet or a folder of `datasets`"
            )
        if len(cell) == 0:
            raise UserError(f"{table.place}: column '{name}', row {row}: an empty list of {what}")
        if any(_is_missing(part) for part in cell):
            raise UserError(f"{table.place}: column '{name}', row {row}: one of the {what} is empty")
        lists.append([_name(table, name, part) for part in cell])
    return lists


def _labels(table: Table, columns: Columns, task: str) -> list[Any]:
    if task == ANSWERS:
        (name,), contexts = columns.label, table.columns[columns.text[1]]
        rows = enumerate(zip(table.columns[name], contexts, strict=True), start=1)
        place = f"{table.place}: column '{name}', row"
        return [read_answers(cell, context, f"{place} {row}") for row, (cell, context) in rows]
    if task == "multi-label":
        return _label_sets(table, columns)
    name = columns.label[0]
    if task == "token-classification":
        tags = _lists(table, name, "tags")
        words = table.columns[columns.text[0]]
        for row, (own, others) in enumerate(zip(tags, words, strict=True), start=1):
            if len(own) != len(others):
                raise UserError(
                    f"{table.place}: row {row}: {len(others)} words in '{columns.text[0]}', but {len(own)} "
                    f"tags in '{name}'"
                )
        return tags
    values = _values(table, name)
    if task == "regression":
        for row, value in enumerate(values, start=1):
            if isinstance(value, str):
                raise UserError(
                    f"{table.place}: column '{name}', row {row}: the label {value!r} is no number; "
                    "regression needs numbers"
                )
        return [float(value) for value in values]
    if task == IMAGES:
        for row, value in enumerate(values, start=1):
            if isinstance(value, float) and not value.is_integer():
                raise UserError(f"{table.place}: column '{name}', row {row}: {value} is no class; images have classes")
    return [_name(table, name, value) for value in values]


def _label_sets(table: Table, columns: Columns) -> list[tuple[str, ...]]:
    if len(columns.label) > 1:
        for name in columns.label:
            for row, cell in enumerate(_column(table, name), start=1):
                if not _is_switch(cell):
                    raise UserError(
                        f"{table.place}: column '{name}', row {row}: {cell!r}; a column of a label "
                        "has 0 or 1 in each row"
                    )
        return [
            tuple(
                name
                for name in columns.label
                if _number(table.columns[name][row]) == 1 or table.columns[name][row] is True
            )
            for row in range(len(table))
        ]
    name = columns.label[0]
    cells = table.columns[name]
    for row, cell in enumerate(cells, start=1):
        if not _is_list(cell):
            raise UserError(
                f"{table.place}: column '{name}', row {row}: {cell!r:.60} is no list of labels; give lists (JSON "
                "lines, Parquet) or one 0/1 column for each label (--label a --label b)"
            )
    if _are_switch_lists(cells):
        names = table.names.get(name) or [str(i) for i in range(len(cells[0]))]
        return [tuple(each for each, cell in zip(names, row, strict=True) if cell == 1) for row in cells]
    return [tuple(dict.fromkeys(_name(table, name, part) for part in row)) for row in cells]


def _are_switch_lists(cells: Sequence[Any]) -> bool:
    """Return whether lists are 0/1 vectors of one length, and not lists of the names "0" and "1"."""
    vectors = len({len(row) for row in cells}) == 1 and all(part in (0, 1) for row in cells for part in row)
    return vectors and any(len(set(row)) < len(row) for row in cells)


def _name(table: Table, column: str, value: Any) -> str:
    """Return the name of a class: itself, or the one that the source gives to its number."""
    names = table.names.get(column)
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            raise UserError(f"{table.place}: column '{column}': the label {value} is none of the {len(names)} classes")
        return names[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _classes(table: Table, columns: Columns, task: str, labels: Sequence[Any]) -> tuple[str, ...]:
    if task == "multi-label" and len(columns.label) > 1:
        return columns.label
    known = table.names.get(columns.label[0])
    if known is not None:
        return tuple(known)
    return tuple(sorted({name for label in labels for name in _names(label)}, key=_natural))


def _natural(name: str) -> tuple[int, float, str]:
    return (0, int(name), name) if _INTEGER.fullmatch(name) else (1, 0, name)  # 2 before 10


def _names(label: Any) -> Sequence[str]:
    return (label,) if isinstance(label, str) else label


def _refuse_one_class(examples: Examples) -> None:
    where = f"{examples.place}: column '{', '.join(examples.columns.label)}'"
    if examples.task == "regression":
        if len(set(examples.labels)) == 1:
            raise UserError(f"{where}: every label is {examples.labels[0]:g}; there is nothing to learn")
        return
    if examples.task == ANSWERS:
        if not any(examples.labels):
            raise UserError(f"{where}: no question has an answer; there is nothing to learn")
        return
    seen = sorted({name for label in examples.labels for name in _names(label)})
    if examples.task == "multi-label":
        if not seen:
            raise UserError(f"{where}: no row has any label; there is nothing to learn")
    elif len(seen) == 1:
        raise UserError(f"{where}: every row is '{seen[0]}'; classification needs at least two classes")


def _is_row_number(column: str) -> bool:
    return column.lower() in ("id", "idx", "index") or column.startswith("Unnamed:")  # pandas' name for an index


def _is_switch(cell: Any) -> bool:
    return isinstance(cell, bool) or _number(cell) in (0, 1)


def _is_list(cell: Any) -> bool:
    return isinstance(cell, (list, tuple))


def _rows(rows: Sequence[int]) -> str:
    return f"row {rows[0]} is" if len(rows) == 1 else f"{len(rows)} rows, first row {rows[0]}, are"


def _some(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(f"'{name}'" for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def strata(examples: Examples) -> list[str]:
    """Return for each row the group whose share is equal on both sides of a split.

    Its class, its set of labels, or whether a question has an answer.
    """
    if examples.task in ("classification", IMAGES):
        return list(examples.labels)
    if examples.task == "multi-label":
        return [" ".join(names) for names in examples.labels]
    if examples.task == ANSWERS:
        return ["answer" if answers else "none" for answers in examples.labels]
    return [""] * len(examples)
