"""Sources in a folder of this machine."""

from __future__ import annotations

from pathlib import Path

from nxm.data.repository import Repository
from nxm.data.settings import Source
from nxm.errors import UserError


def open_folder(source: Source, root: Path) -> Repository:
    """Return the folder `source.name`; a relative path is relative to `root`. Raises UserError if there is none."""
    assert source.name is not None
    folder = root / source.name
    if not folder.is_dir():
        raise UserError(f"{source.name!r} (source local) is not a folder (looked for {folder.absolute()})")
    # a model's files are in the folder itself, a task's tables in a folder of their own
    files = frozenset(path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")])
    return Repository(source.name, files, lambda names: folder)
