"""Tables of labelled rows as users have them: CSV, TSV, JSON lines, Parquet, folders of `datasets` and of images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.errors import EmptyDataError, ParserError

from nxm.data.images import SUFFIXES as IMAGE_SUFFIXES
from nxm.data.tables import read_parquet
from nxm.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
HELD_OUT_SPLITS = ("validation", "test", "dev")  # of a folder with several splits; GLUE's `test` has no labels
IMAGE_SPLITS = {
    "valid": "validation",
    "val": "validation",
    "eval": "validation",
    "testing": "test",
    "training": "train",
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images, as `datasets` names it
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # in a folder that `datasets` saved
IMAGE, LABEL = "image", "label"  # the columns of a folder with one sub-folder of images per class


@dataclass(frozen=True)
class Table:
    """Columns by name, as Python's values.

    Attributes:
        columns: lists, but for a column of images in a folder of `datasets`, which is read from the disk.
        names: column -> the names of the classes 0, 1, ... where the source knows them.
        folder: the one to which paths in the rows are relative.
        one_per_file: the rows are files, not lines, and messages name the file alone.
        remarks: on what was left out.
    """

    place: str
    columns: dict[str, Sequence[Any]]
    names: dict[str, list[str]] = field(default_factory=dict)
    folder: Path = Path()
    one_per_file: bool = False
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read the rows of a file, or of the only split of a folder, or of its split `train`.

    Text files are read as text: no cell is taken for a number or for a missing value. A folder is one that `datasets`
    saved, or one of images (`datasets`' imagefolder): with a sub-folder per class, or with a metadata file whose
    `file_name` names the images, or with such folders as splits.

    Raises:
        UserError: there is no such file, it is of another kind, in another encoding, damaged, or without rows.
    """
    if path.is_dir():
        splits = _read_folder(path, encoding)
        return _with_rows(splits.get("train") or next(iter(splits.values())))
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    return _with_rows(replace(_read_file(path, encoding), folder=path.parent))


def _read_file(path: Path, encoding: str) -> Table:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _read_delimited(path, _decode(path, encoding), kind)
    if kind == ".parquet":
        return _from_arrow(read_parquet(path, str(path)), str(path))
    if kind in (".jsonl", ".json"):
        return _read_json_lines(path, _decode(path, encoding))
    raise UserError(
        f"{path}: expected one of {', '.join(SUFFIXES)}, a folder saved by `datasets`, or one with a sub-folder of "
        "images per class"
    )


def read_held_out_split(path: Path, encoding: str = "utf-8") -> Table | None:
    """Return the held-out split of a folder; None for files, and for folders without one."""
    if not path.is_dir():
        return None
    splits = _read_folder(path, encoding)
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
    rows = _squad_rows(text)
    if rows:
        return Table(str(path), {name: [row[name] for row in rows] for name in rows[0]})
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


def _squad_rows(text: str) -> list[dict[str, Any]]:
    """Return the questions of SQuAD's own file, one object with its articles; [] if the text is none."""
    if '"paragraphs"' not in text:
        return []
    try:
        return [
            {"question": asked["question"], "context": paragraph["context"], "answers": asked["answers"]}
            for article in json.loads(text)["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError):
        return []


def _from_arrow(table: pa.Table, place: str) -> Table:
    columns: dict[str, Sequence[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    if b"huggingface" not in (table.schema.metadata or {}):  # else `datasets` wrote it, with the names of classes
        return Table(place, columns)
    from datasets import Features

    try:
        features = Features.from_arrow_schema(table.schema)
    except (ValueError, KeyError, TypeError):  # of a later version; the columns can be read all the same
        return Table(place, columns)
    return Table(place, columns, _class_names(features))


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the classes by column of `datasets`, of single classes and of lists of them."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: list(own.names) for column, own in inner.items() if hasattr(own, "names")}


def _read_folder(path: Path, encoding: str) -> dict[str, Table]:
    """Return the tables of a folder by split; a folder without splits is `train`."""
    inside = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    if not inside & set(SAVED):
        if (splits := _image_splits(path, encoding)) is not None:
            return splits
        raise UserError(
            f"{path}: no folder saved by `datasets` (save_to_disk), and none of images: it has no sub-folder per class "
            f"and no {METADATA[0]}"
        )
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no folder saved by `datasets` (save_to_disk): {first_line(error)}") from None
    if isinstance(loaded, Dataset):
        return {"train": _from_dataset(loaded, str(path), path)}
    return {name: _from_dataset(split, f"{path}, split {name}", path / name) for name, split in loaded.items()}


def _from_dataset(dataset: Any, place: str, folder: Path) -> Table:
    from datasets import Image

    columns = {}
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            columns[column] = dataset.cast_column(column, Image(decode=False))[column]  # read from the disk row by row
        else:
            columns[column] = list(dataset[column])
    return Table(place, columns, _class_names(dataset.features), folder)


# --- folders of images -------------------------------------------------------------------------------------------


def _image_splits(path: Path, encoding: str) -> dict[str, Table] | None:
    """Return the tables of a folder of images by split; None if it is no such folder."""
    if (table := _read_images(path, encoding)) is not None:
        return {"train": table}
    inside = _folders(path)
    splits = {IMAGE_SPLITS.get(folder.name.lower(), folder.name.lower()): folder for folder in inside}
    if "train" in splits and splits.keys() <= {"train", *HELD_OUT_SPLITS}:
        found = {name: _read_images(folder, encoding) or _read_classes(folder) for name, folder in splits.items()}
        labelled = {name: table for name, table in found.items() if table is not None}
        if "train" in labelled:  # else it is a class of this name
            without = tuple(f"{splits[name]} is left out: it has no labels" for name in splits if name not in labelled)
            return labelled | {"train": replace(labelled["train"], remarks=labelled["train"].remarks + without)}
    table = _read_classes(path)
    return None if table is None else {"train": table}


def _read_images(path: Path, encoding: str) -> Table | None:
    """Return the table in the metadata file of a folder of images, if it has one."""
    name = next((name for name in METADATA if (path / name).is_file()), None)
    return None if name is None else read_table(path / name, encoding)


def _read_classes(path: Path) -> Table | None:
    """Return a row for each image in a folder's sub-folders, which are named like classes; None without sub-folders.

    Raises:
        UserError: a sub-folder has a folder in it or no image, or an image lies beside the sub-folders.
    """
    classes = _folders(path)
    if not classes:
        return None
    stray = next((file for file in _files(path) if _is_image(file)), None)
    if stray is not None:
        raise UserError(f"{stray}: lies beside the folders of the classes: move it into that of its class")
    files: list[Path] = []
    others: list[Path] = []
    for folder in classes:
        if inner := _folders(folder):
            raise UserError(f"{inner[0]}: is a folder in the folder of a class; expected images")
        images = [file for file in _files(folder) if _is_image(file)]
        if not images:
            raise UserError(
                f"{folder}: has no image ({', '.join(IMAGE_SUFFIXES)}); a folder of images has one sub-folder per class"
            )
        files += images
        others += [file for file in _files(folder) if not _is_image(file)]
    remarks: tuple[str, ...] = ()
    if others:
        remarks = (f"{len(others)} files are left out, since their names are none of images, first {others[0]}",)
    columns: dict[str, Sequence[Any]] = {
        IMAGE: [file.relative_to(path).as_posix() for file in files],
        LABEL: [file.parent.name for file in files],
    }
    return Table(str(path), columns, folder=path, one_per_file=True, remarks=remarks)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
