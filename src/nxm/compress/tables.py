"""Tables of labelled rows as users have them: CSV, TSV, JSON lines, Parquet and folders of `datasets`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.errors import EmptyDataError, ParserError

from nxm.data.tables import read_parquet
from nxm.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
HELD_OUT_SPLITS = ("validation", "test", "dev")  # of a folder with several splits; GLUE's `test` has no labels


@dataclass(frozen=True)
class Table:
    """Columns by name, as Python's values.

    Attributes:
        names: column -> the names of the classes 0, 1, ... where the source knows them.
    """

    place: str
    columns: dict[str, list[Any]]
    names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read the rows of a file, or of the only split of a folder of `datasets`, or of its split `train`.

    Text files are read as text: no cell is taken for a number or for a missing value.

    Raises:
        UserError: there is no such file, it is of another kind, in another encoding, damaged, or without rows.
    """
    if path.is_dir():
        splits = _read_folder(path)
        return _with_rows(splits.get("train") or next(iter(splits.values())))
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        table = _read_delimited(path, _decode(path, encoding), kind)
    elif kind == ".parquet":
        table = _from_arrow(read_parquet(path, str(path)), str(path))
    elif kind in (".jsonl", ".json"):
        table = _read_json_lines(path, _decode(path, encoding))
    else:
        raise UserError(f"{path}: expected one of {', '.join(SUFFIXES)}, or a folder saved by `datasets`")
    return _with_rows(table)


def read_held_out_split(path: Path) -> Table | None:
    """Return the held-out split of a folder of `datasets`; None for files, and for folders without one."""
    if not path.is_dir():
        return None
    splits = _read_folder(path)
    name = next((name for name in HELD_OUT_SPLITS if name in splits and "train" in splits), None)
    return None if name is None else _with_rows(splits[name])


def _with_rows(table: Table) -> Table:
    if not table.columns or len(table) == 0:
        raise UserError(f"{table.place}: has no rows; expected a header and a row per example")
    return table


def _decode(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        # editors on Windows start a file with a byte order mark
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise UserError(f"--encoding {encoding}: unknown; expected a name such as utf-8, cp1252 or latin-1") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: the byte 0x{content[error.start]:02x} (number {error.start + 1} of the file) is not "
            f"{encoding}: save the file as UTF-8, or name its encoding, such as --encoding cp1252"
        ) from None


def _read_delimited(path: Path, text: str, kind: str) -> Table:
    # GLUE's tab-separated sentences have quotation marks of their own
    options: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=False, **options)
    except EmptyDataError:
        raise UserError(f"{path}: the file is empty") from None
    except (ParserError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as {kind}: {first_line(error)}") from None
    names = [str(name) for name in frame.columns]
    if len(names) == 1 and (other := next((mark for mark in ";\t|," if mark in names[0]), None)):
        raise UserError(
            f"{path}: has one column, '{names[0]}': is {other!r} between the columns? Expected "
            f"{'tabs' if kind == '.tsv' else 'commas'} in a {kind} file"
        )
    return Table(str(path), {str(name): frame[name].tolist() for name in frame.columns})


def _read_json_lines(path: Path, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines also splits at U+2028, which texts have
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number}: no JSON: {error}; expected one object per line") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}: line {number}: expected an object such as {{"text": ..., "label": ...}}')
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names})


def _from_arrow(table: pa.Table, place: str) -> Table:
    return Table(place, {name: table.column(name).to_pylist() for name in table.column_names})


def _read_folder(path: Path) -> dict[str, Table]:
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no folder saved by `datasets` (save_to_disk): {first_line(error)}") from None
    if isinstance(loaded, Dataset):
        return {"train": _from_dataset(loaded, str(path))}
    return {name: _from_dataset(split, f"{path}, split {name}") for name, split in loaded.items()}


def _from_dataset(dataset: Any, place: str) -> Table:
    names = {}
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)  # of a list of classes
        if hasattr(inner, "names"):
            names[column] = list(inner.names)
    return Table(place, {name: list(dataset[name]) for name in dataset.column_names}, names)
