"""The studies of the repository: its root, and every folder in studies/.

A further study's study.yaml has the differences from the root's params.yaml. Both are merged into the folder's
params.yaml. Its dvc.yaml is a copy of the root's, and a .dvc folder makes it a DVC project.
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
# Blocks that a study does not inherit from the root
OWN: dict[str, Any] = {"variants": {}, "search": {"by": None, "seeds": [], "runs": {}}}
PROJECT = {  # what makes a folder a DVC project that shares the repository's cache
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = ../../../.dvc/cache\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "__pycache__/\ncheckpoints/\n",
}


def studies(root: Path) -> list[str]:
    """Return the names of all studies: the root's, and those of the folders in studies/ with a study.yaml."""
    return [MAIN, *sorted(path.parent.name for path in (root / "studies").glob("*/study.yaml"))]


def study_folder(root: Path, name: str) -> Path:
    """Return the folder of a study. Raises UserError, which lists the studies, for one that does not exist."""
    if name not in studies(root):
        raise UserError(f"there is no study '{name}'; known are {', '.join(studies(root))}")
    return root if name == MAIN else root / "studies" / name


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged key by key, other values are replaced."""
    merged = deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def study_values(root: Path, name: str) -> dict[str, Any]:
    """Return the settings of a study as plain values: the root's params.yaml with the changes of its study.yaml.

    A run that study.yaml sets to null is left out, of the root's `deployment.models` too. Raises UserError for an
    unknown study or an unreadable file.
    """
    folder = study_folder(root, name)
    base = read_yaml(root / "params.yaml")
    if folder == root:
        return base
    changes = read_yaml(folder / "study.yaml")
    for key, value in {"root": "../..", "study": name}.items():
        if changes.get(key, value) != value:
            raise UserError(
                f"{folder / 'study.yaml'}: {key} = {changes[key]!r}: in this folder it is '{value}'; leave it out"
            )
    values = merge(base | OWN, changes)
    if isinstance(values.get("runs"), dict):  # else the settings' check refuses it
        left_out = {run for run, own in values["runs"].items() if own is None}
        values["runs"] = {run: own for run, own in values["runs"].items() if run not in left_out}
        if "models" not in (changes.get("deployment") or {}):
            values["deployment"]["models"] = [run for run in base["deployment"]["models"] if run not in left_out]
    return values | {"root": "../..", "study": name}


def _quoted(values: Any) -> Any:
    """Return the values with strings such as "2:4" in quotes: older YAML parsers read a number without them."""
    if isinstance(values, dict):
        return {key: _quoted(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_quoted(value) for value in values]
    plain = not isinstance(values, str) or re.fullmatch(r"[A-Za-z./][A-Za-z0-9._/-]*", values)
    return values if plain else DoubleQuotedScalarString(values)


def write_study(root: Path, name: str) -> Study:
    """Bring the generated files of a study's folder up to date and return the study.

    The root has none. A file is written only if its content changes.

    Raises:
        UserError: as `study_values`, or the settings are impossible.
    """
    folder = study_folder(root, name)
    main = load_study(root / "params.yaml")  # checked first, so that its errors do not name the study
    if (main.study, main.root) != (MAIN, "."):
        raise UserError(
            f"{root / 'params.yaml'}: study = '{main.study}', root = '{main.root}': here they are '{MAIN}' and '.'. A "
            "study of another name is a folder of studies/ with a study.yaml (docs/studies.md)"
        )
    if folder == root:
        return main
    values = study_values(root, name)
    study = parse_study(values, str(folder / "study.yaml"))
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = None  # one line for what fits on it
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda data: True  # a generated file is read, not edited: no anchors
    yaml.dump(_quoted(values), text)
    header = "# Made by `nxm plan` from the root's {}: change those, not this.\n"
    wanted = {
        "params.yaml": header.format("params.yaml and this folder's study.yaml") + text.getvalue(),
        # a copy: DVC does not follow links in a git revision (`dvc metrics diff`, `dvc exp show`)
        "dvc.yaml": header.format("dvc.yaml") + (root / "dvc.yaml").read_text(encoding="utf-8"),
        ".dvc/plots/courses.json": (root / ".dvc/plots/courses.json").read_text(encoding="utf-8"),
        **PROJECT,
    }
    for place, content in wanted.items():
        path = folder / place
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            write_text(path, content)
    return study
