"""Atomic writing of files and folders, checksums and manifests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nxm.errors import UserError

MANIFEST = "MANIFEST.json"


# errors of a full, failing or read-only disk; any other OSError is a bug and shows its traceback
DISK_ERRORS = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR")
}


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `out` when the block ends without an error.

    An existing `out` is replaced at that moment. After an error or an interruption it is unchanged.

    Raises:
        UserError: the disk is full or not writable, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder or nothing")
    partial, former = (out.with_name(f".{out.name}.{part}") for part in ("partial", "former"))
    try:
        for leftover in (partial, former):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            os.rename(out, former)
        os.rename(partial, out)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise UserError(f"{out}: cannot be written: {error}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes `path` when the block ends without an error.

    The folder of `path` is created if needed. After an error or an interruption an existing `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
