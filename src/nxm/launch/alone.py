"""One `nxm repro` at a time in a study.

Two would delete and write the same files. The kernel releases the lock when its process ends, however it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zc.lockfile import LockError, LockFile

from nxm.errors import UserError

LOCK_FILE = Path(".dvc/tmp/nxm-repro.lock")  # below the study's folder; its text names the process that holds it


@contextmanager
def alone(study: str) -> Iterator[None]:
    """Hold the lock of the study in the working directory.

    Raises:
        UserError: another process holds it. The message names the process.
    """
    try:
        lock = _lock()
    except LockError:
        raise UserError(
            f"study {study}: process {_holder()} runs it already: wait for its end, or stop it with Ctrl-C; "
            f"`nxm plan {study}` says what is left"
        ) from None
    try:
        yield
    finally:
        lock.close()


def process_at_work() -> str | None:
    """Return "NUMBER on HOST" of the process that runs the study in the working directory; None if none does."""
    try:
        _lock().close()
    except LockError:
        return _holder()
    return None


def _lock() -> LockFile:
    LOCK_FILE.parent.mkdir(parents=True, exist_ok=True)
    return LockFile(str(LOCK_FILE), content_template="{pid} on {hostname}")


def _holder() -> str:
    return LOCK_FILE.read_text(encoding="utf-8").strip()
