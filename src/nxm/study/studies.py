"""Studies: the repository's root is one, and so is every folder in studies/.

A further study states in study.yaml only what differs from the root's params.yaml. Merged, it becomes the folder's
params.yaml; the folder's dvc.yaml is a copy of the root's, and with its own .dvc folder it is a DVC project of its own.
"""

from __future__ import annotations

import re
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from nxm.config import read_yaml
from nxm.errors import UserError
from nxm.files import write_text
from nxm.study.settings import Study, load_study, parse_study

MAIN = "embedded"  # the study of the repository's root
# Blocks that a study states whole, or not at all
OWN: dict[str, Any] = {"variants": {}, "search": {"by": None, "seeds": [], "runs": {}}}
PROJECT = {  # what makes a folder a DVC project that shares the repository's cache
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = ../../../.dvc/cache\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "__pycache__/\ncheckpoints/\n",
}


def studies(root: Path) -> list[str]:
    """Return the names of all studies: the root's, and one for each study.yaml in studies/."""
    return [MAIN, *sorted(path.parent.name for path in (root / "studies").glob("*/study.yaml"))]


def study_folder(root: Path, name: str) -> Path:
    """Return the folder of a study. Raises UserError for one that does not exist, listing those that do."""
    if name not in studies(root):
        raise UserError(f"there is no study '{name}'; known are {', '.join(studies(root))}")
    return root if name == MAIN else root / "studies" / name


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` in it: mappings are merged key by key, everything else is replaced."""
    merged = deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def study_values(root: Path, name: str) -> dict[str, Any]:
    """Return the settings of a study as plain values: the root's params.yaml with the changes of its study.yaml.

    A run that study.yaml sets to null is left out. Raises UserError for an unknown study or an unreadable file.
    """
    folder = study_folder(root, name)
    base = read_yaml(root / "params.yaml")
    if folder == root:
        return base
    changes = read_yaml(folder / "study.yaml")
    values = merge(base | OWN, changes)
    values["runs"] = {run: own for run, own in values.get("runs", {}).items() if own is not None}
    return values | {"root": "../..", "study": name}


def _quoted(values: Any) -> Any:
    """Return the values with strings such as "2:4" in quotes, without which YAML's older parsers read a number."""
    if isinstance(values, dict):
        return {key: _quoted(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_quoted(value) for value in values]
    plain = not isinstance(values, str) or re.fullmatch(r"[A-Za-z./][A-Za-z0-9._/-]*", values)
    return values if plain else DoubleQuotedScalarString(values)


def write_study(root: Path, name: str) -> Study:
    """Bring the generated files of a study's folder up to date and return the study.

    For the root there is nothing to generate. A file is written only when its content changes. Raises UserError as
    `study_values` does, and for impossible settings.
    """
    folder = study_folder(root, name)
    if folder == root:
        return load_study(root / "params.yaml")
    load_study(root / "params.yaml")  # checked first, so that errors name it and not the study that builds on it
    values = study_values(root, name)
    study = parse_study(values, str(folder / "study.yaml"))
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = None  # what fits a line stands on one
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda data: True  # anchors help writers, not readers of a generated file
    yaml.dump(_quoted(values), text)
    header = "# Made by `nxm plan` from the root's {}: change those, not this.\n"
    wanted = {
        "params.yaml": header.format("params.yaml and this folder's study.yaml") + text.getvalue(),
        # A copy, since DVC does not follow links in a revision of git (`dvc metrics diff`, `dvc exp show`)
        "dvc.yaml": header.format("dvc.yaml") + (root / "dvc.yaml").read_text(encoding="utf-8"),
        ".dvc/plots/courses.json": (root / ".dvc/plots/courses.json").read_text(encoding="utf-8"),
        **PROJECT,
    }
    for place, content in wanted.items():
        path = folder / place
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            write_text(path, content)
    return study
