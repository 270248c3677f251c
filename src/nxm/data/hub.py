"""Sources on the Hugging Face Hub.

The client is huggingface_hub's own. It takes the endpoint from HF_ENDPOINT, resumes an interrupted download, shows
progress and keeps a cache. Every file is compared with the size and sha256 that the Hub states.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nxm.data.repository import Repository
from nxm.data.settings import Source
from nxm.errors import UserError
from nxm.files import DISK_ERRORS, sha256_file


@dataclass(frozen=True)
class _Stated:
    """Size in bytes and sha256 of a file, as far as the Hub states them."""

    size: int | None
    sha256: str | None  # of files in Git LFS alone

    def __str__(self) -> str:
        return f"{self.size} bytes" + (f", sha256 {self.sha256}" if self.sha256 else "")

    def matches(self, path: Path) -> bool:
        return (self.size is None or path.stat().st_size == self.size) and (
            self.sha256 is None or sha256_file(path) == self.sha256
        )


def open_repository(source: Source, kind: Literal["model", "dataset"]) -> Repository:
    """Return a repository at the commit that its revision (default: main) names at this moment.

    Raises:
        UserError: the Hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi

    assert source.name is not None
    asked = f"{kind} {source.name} at revision {source.revision or 'main'}"
    look_up = HfApi().model_info if kind == "model" else HfApi().dataset_info
    with _explained(lambda: asked):
        info = look_up(source.name, revision=source.revision, files_metadata=True)
    if not info.sha:
        raise UserError(f"{asked}: the Hub names no commit for it")
    manifest = {
        sibling.rfilename: _Stated(sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    }
    return Repository(
        place=f"{source.name}@{info.sha}",
        files=frozenset(manifest),
        obtain=partial(_download, source.name, kind, info.sha, manifest),
        described={"commit": info.sha},
    )


def _download(name: str, kind: str, commit: str, manifest: dict[str, _Stated], files: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    place, wanted = f"{name}@{commit}", sorted(files)

    def missing() -> str:
        cached = {file: try_to_load_from_cache(name, file, revision=commit, repo_type=kind) for file in wanted}
        return f"{place}: {', '.join(file for file in wanted if not isinstance(cached[file], str)) or 'its files'}"

    for force in (False, True):  # a damaged file in the cache is downloaded again, once
        with _explained(missing):
            folder = Path(
                snapshot_download(
                    name,
                    repo_type=kind,
                    revision=commit,
                    allow_patterns=[glob.escape(file) for file in wanted],
                    force_download=force,
                )
            )
        wanted = [file for file in wanted if not manifest[file].matches(folder / file)]
        if not wanted:
            return folder
    arrived = folder / wanted[0]
    raise UserError(
        f"{place}: {wanted[0]}: what arrived ({arrived.stat().st_size} bytes, sha256 {sha256_file(arrived)}) is not "
        f"what the Hub states ({manifest[wanted[0]]})"
    )


@contextlib.contextmanager
def _explained(what: Callable[[], str]) -> Iterator[None]:
    """Turn the client's errors into a UserError that begins with `what()`."""
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
        raise UserError(f"{what()}: access is gated; ask for it on the Hub, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{what()}: the Hub has no such repository (or it is private: `hf auth login`)") from None
    except RevisionNotFoundError:
        raise UserError(f"{what()}: the repository has no such revision (a branch, tag or commit)") from None
    except HFValidationError as error:
        raise UserError(f"{what()}: {error}") from None
    except (HTTPError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        raise UserError(f"{what()}: the Hub did not deliver: {type(error).__name__}: {error}") from None
