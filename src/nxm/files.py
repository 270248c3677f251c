"""Atomic writing of files and folders, checksums and manifests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nxm.errors import UserError

MANIFEST = "MANIFEST.json"


# errors of a full, failing or read-only disk; any other OSError is a bug and shows its traceback
DISK_ERRORS = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR")
}

# Returns why the file or folder at a path must not be replaced; None: it may.
Refusal = Callable[[Path], str | None]


def not_in_manifest(folder: Path) -> str | None:
    """Return why a folder is not one that `write_manifest` describes completely; None if it is."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"has no {MANIFEST} of nxm"
    strays = stray_files(folder, lambda name: name == MANIFEST or name in listed)
    return f"holds {strays[0]}, which its {MANIFEST} does not list" if strays else None


def stray_files(folder: Path, is_known: Callable[[str], bool]) -> list[str]:
    """Return the paths, relative to a folder, of the links in it and of the files that are not known."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and not (path.is_file() and is_known(name))):
            found.append(name)
    return found


def check_place(out: Path, refusal: Refusal, source: Path | None = None, *, folder: bool = False) -> None:
    """Raise UserError unless a file (or a folder) may be created at `out`, or replace what is there.

    Args:
        refusal: decides about an existing file or a folder that is not empty.
        source: a folder that must survive.
    """
    if out.is_symlink():
        raise UserError(f"{out}: is a link to {os.readlink(out)}; give the place itself")
    real = out.resolve()
    if Path.cwd().is_relative_to(real):
        raise UserError(f"{out}: is the current folder or contains it; choose another place")
    if source is not None and source.resolve().is_relative_to(real):
        raise UserError(f"{out}: is or contains the folder {source} that is read; choose another place")
    if out.is_mount():
        raise UserError(f"{out}: is a mount point, which cannot be replaced; choose a place below it")
    above = next((parent for parent in out.parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise UserError(f"{out}: cannot be written: {above} is a file, not a folder")
    if not out.exists():
        return
    if folder and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder or nothing")
    if not folder and out.is_dir():
        raise UserError(f"{out}: is a folder; expected a file or nothing")
    if not folder and not out.is_file():
        raise UserError(f"{out}: is a device, socket or pipe; expected a file or nothing")
    empty = folder and not any(out.iterdir())
    if not empty and (reason := refusal(out)):
        raise UserError(f"{out}: exists and {reason}; it is not replaced")


def check_room(out: Path, needed: float) -> None:
    """Raise UserError if the disk of `out` has less than `needed` bytes free."""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            f"{out}: needs about {needed / 2**20:.0f} MiB, its disk has {free / 2**20:.0f} MiB free; make room first"
        )


@contextlib.contextmanager
def new_folder(out: Path, refusal: Refusal = not_in_manifest, source: Path | None = None) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `out` when the block ends without an error.

    An existing `out` is replaced at that moment, if it is empty or `refusal` returns None for it. After an error or an
    interruption it is unchanged, and nothing else is left.

    Args:
        refusal: returns why an existing folder must not be replaced; by default one is replaced only if its manifest
            lists all its files.
        source: a folder that must survive: `out` may be neither this folder nor contain it.

    Raises:
        UserError: `out` must not be replaced, or the disk is full or not writable.
    """
    out = Path(out)
    partial, former = (out.parent / f".{out.resolve().name}.{part}" for part in ("partial", "former"))
    if former.exists() and not out.exists():  # a process was killed while it replaced `out`
        os.rename(former, out)
    check_place(out, refusal, source, folder=True)
    with _parents(out):
        try:
            for leftover in (partial, former):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with _writable(out):
                partial.mkdir()
            yield partial
            if out.exists():
                os.rename(out, former)
            os.rename(partial, out)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise UserError(f"{out}: cannot be written: {error}") from error
            raise
        finally:
            if former.exists() and not out.exists():  # interrupted between the two renames
                os.rename(former, out)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes `path` when the block ends without an error.

    The folder of `path` is created if needed. After an error or an interruption an existing `path` is unchanged, and
    nothing else is left.

    Raises:
        UserError: no file can be created in the folder of `path`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _parents(path):
        try:
            with _writable(path):
                partial.touch()
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Create the folders above `out`; after an error, remove those that were created."""
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        with _writable(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


def write_manifest(folder: Path, files: dict[str, str], described: dict[str, Any]) -> None:
    """Write MANIFEST.json with the size and sha256 of files.

    Args:
        files: path below `folder` -> origin.
        described: further entries.
    """
    listed = {
        name: {
            "sha256": sha256_file(folder / name),
            "bytes": (folder / name).stat().st_size,
            "from": origin,
        }
        for name, origin in sorted(files.items())
    }
    text = json.dumps(described | {"files": listed}, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest after comparing every file that it lists.

    Raises:
        UserError: the folder or its manifest is missing, or a file is missing or differs.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: is missing or incomplete: there is no {MANIFEST}; run its stage again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest of nxm: {error!r}; run its stage again") from None
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; run its stage again")
        if sha256_file(folder / name) != sha256:
            raise UserError(f"{folder}: {name} is not the file that was written (sha256 differs); run its stage again")
    return manifest


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Return one sha256 for a folder, over the relative path and sha256 of each file below it in sorted order.

    Times, permissions, empty folders and the folder's name do not count. For a file it is the file's sha256.

    Raises:
        UserError: `path` does not exist.
    """
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder")
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
        digest.update(f"{sha256_file(path / name)}  {name}\n".encode())
    return digest.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; see `new_file`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically, one item per line. Raises ValueError on NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically; see `new_file`."""
    with new_file(path) as partial:
        partial.write_bytes(content)
