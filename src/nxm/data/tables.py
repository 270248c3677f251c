"""A task's tables: found in a source, checked against the task's schema, written as canonical parquet files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nxm.data.tasks import Task
from nxm.errors import UserError


@dataclass(frozen=True)
class SourceTable:
    """A split as a source has it, not yet checked."""

    table: pa.Table
    place: str  # where it came from, for messages and manifests
    official: bool  # it must have GLUE's own number of rows


Reader = Callable[[Task, str], SourceTable]  # given a task and the name of a split


def find_files(available: Iterable[str], task: Task, split: str, place: str) -> list[str]:
    """Return the paths of a split's files: <task>/<split>.parquet, or the Hub's numbered shards.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    plain = f"{task.name}/{split}.parquet"
    available = set(available)
    if plain in available:
        return [plain]
    shards = [
        (match, name)
        for name in available
        if (match := re.fullmatch(rf"{task.name}/{split}-\d+-of-(\d+)\.parquet", name))
    ]
    if not shards:
        raise UserError(
            f"{place}: there is no {plain} (nor {task.name}/{split}-00000-of-00001.parquet) "
            f"for task {task.name}, split {split}"
        )
    if any(int(match[1]) != len(shards) for match, _ in shards):
        names = ", ".join(sorted(name for _, name in shards))
        raise UserError(f"{place}: task {task.name}, split {split} is incomplete: there are only {names}")
    return sorted(name for _, name in shards)


def read_parquet(path: Path, place: str) -> pa.Table:
    """Read a parquet file. Raises UserError, naming `place`, if it is not one."""
    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{place}: not a readable parquet file: {error}") from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table so that equal rows give equal bytes: one chunk, no metadata, fixed settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(None),
        path,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,  # hardly any sentence occurs twice
        row_group_size=1 << 20,
        store_schema=False,
    )


def check_table(task: Task, split: str, table: pa.Table, *, official: bool, where: str = "") -> pa.Table:
    """Check a split of a task and return it with the columns, order and types of `task.schema`, in one chunk.

    Args:
        table: further columns are dropped.
        official: require GLUE's number of rows; stand-ins may have fewer.
        where: the origin, for messages.

    Raises:
        UserError: a column is missing or of another type, a label is out of range, or a number of rows is wrong; the
            message names task, split, column, row and value.
    """
    place = f"task {task.name}, split {split}" + (f" ({where})" if where else "")
    if split not in task.rows:
        raise UserError(f"{place}: no such split; known are {', '.join(task.splits)}")
    columns = []
    for field in task.schema:
        indices = table.schema.get_all_field_indices(field.name)
        if len(indices) != 1:
            problem = "is missing" if not indices else f"occurs {len(indices)} times"
            raise UserError(
                f"{place}: column '{field.name}' {problem}; expected {', '.join(task.schema.names)}; "
                f"found {', '.join(table.column_names) or 'none'}"
            )
        column = table.column(indices[0])
        if not _castable(column.type, field.type):
            raise UserError(f"{place}: column '{field.name}' is of type {column.type}, expected {field.type}")
        missing = column.is_null()
        if pc.any(missing).as_py():
            raise UserError(f"{place}: column '{field.name}', row {pc.index(missing, True).as_py()}: no value")
        try:
            columns.append(column.cast(field.type, safe=not pa.types.is_floating(field.type)))
        except pa.ArrowInvalid as error:
            raise UserError(f"{place}: column '{field.name}': {error}") from None
    checked = pa.table(columns, schema=task.schema).combine_chunks()

    low, high = task.score_range if task.score_range is not None else (0, task.num_labels - 1)
    labels = checked["label"]
    # "not inside" rather than "outside": NaN is neither below nor above
    bad = pc.invert(pc.and_(pc.greater_equal(labels, low), pc.less_equal(labels, high)))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise UserError(f"{place}: column 'label', row {row}: {labels[row].as_py()} is not within {low} … {high}")
    if checked.num_rows == 0:
        raise UserError(f"{place}: the table has no rows")
    if official and checked.num_rows != task.rows[split]:
        raise UserError(f"{place}: {checked.num_rows} rows, GLUE has {task.rows[split]}")
    return checked


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether a column can be cast without changing the meaning of its values."""
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(found)
    return pa.types.is_integer(found)
