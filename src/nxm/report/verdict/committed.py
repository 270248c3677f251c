"""Committed files of a repository, read with git without touching the working tree."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from nxm.errors import UserError


def extract(root: Path, revision: str, paths: list[str], into: Path) -> str:
    """Write the files that a revision has at some paths below the folder `into`; return the revision's commit.

    Args:
        root: the repository's root (or a folder in a larger repository).
        paths: files and folders, relative to `root`; those that the revision lacks are left out.

    Raises:
        UserError: there is no git, no repository, or no such revision. The message says what is still possible.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", what=f"revision {revision}")
    listed = _git(root, "ls-tree", "-z", "--name-only", revision, "--", *paths)
    if known := [name for name in listed.split("\0") if name]:
        archive = _call(root, "archive", "--format=tar", revision, "--", *known).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(into, filter="data")
    return commit.strip()


def last_version(root: Path, revision: str, path: str) -> tuple[str, bytes] | None:
    """Return the last commit before a revision that has a file, and the file; None if no commit has it.

    In a shallow clone only the commits that were cloned are searched (`is_shallow`).
    """
    commit = _git(root, "log", "-1", "--format=%H", "--diff-filter=AM", revision, "--", path).strip()
    if not commit:
        return None
    prefix = _git(root, "rev-parse", "--show-prefix").strip()
    return commit, _call(root, "show", f"{commit}:{prefix}{path}").stdout


def is_shallow(root: Path) -> bool:
    """Return whether the repository has the latest commits alone (`git clone --depth`)."""
    return _git(root, "rev-parse", "--is-shallow-repository").strip() == "true"


def _git(root: Path, *words: str, what: str | None = None) -> str:
    return _call(root, *words, what=what).stdout.decode()


def _call(root: Path, *words: str, what: str | None = None) -> subprocess.CompletedProcess[bytes]:
    advice = "`nxm verify --evidence` needs no git"
    git = shutil.which("git")
    if git is None:
        raise UserError(f"git is not installed, so the committed results cannot be read; {advice}")
    done = subprocess.run([git, "-C", str(root), *words], capture_output=True, check=False)
    if done.returncode == 0:
        return done
    said = done.stderr.decode(errors="replace").strip()
    if "not a git repository" in said:
        raise UserError(
            f"{root}: no git repository (a downloaded archive?), so there are no committed results to compare with: "
            f"clone it with git; {advice}"
        )
    if what:
        raise UserError(
            f"{root}: git has no {what}{f' ({said})' if said else ''}: nothing is committed here, or a shallow clone "
            f"does not have it (`git fetch --unshallow` brings the rest); {advice}"
        )
    raise UserError(f"{root}: git {words[0]} failed: {said}; {advice}")
