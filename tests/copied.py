"""The repository copied to a folder, to run its pipeline there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copy_repository(folder: Path) -> None:
    """Copy what git tracks (with changes not yet committed), without results, and make it a repository of its own."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        made = {"results", "figures", "paper_tables", "report.html", "dvc.lock"} & set(Path(name).parts) - {
            "src",
            "tests",
        }
        if (made and not name.startswith(("src/", "tests/"))) or not (ROOT / name).exists():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def environment(folder: Path) -> dict[str, str]:
    """The copy's own sources, and this interpreter's commands."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(folder / "src"), "CUDA_VISIBLE_DEVICES": ""}


def call(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in the copy to its end, whatever that is."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder) | variables, capture_output=True, text=True, check=False
    )
