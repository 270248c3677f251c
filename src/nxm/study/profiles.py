"""Studies: profiles merged with params.yaml.

A profile states only what differs from params.yaml. Merged, it becomes `studies/<name>/params.yaml`, beside a copy of
dvc.yaml; DVC then keeps `studies/<name>/dvc.lock`, so that each study has its own evidence and none disturbs another.
Where a study selects its values by a grid (`nxm.study.search`), those chosen stand in the generated file as soon as all
cells of a method and task are done.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from nxm.config import read_yaml
from nxm.errors import UserError
from nxm.files import write_text
from nxm.methods.admm.defaults import spell_out
from nxm.study import search as selection
from nxm.study.results import read_failures, read_study
from nxm.study.settings import AdmmExtras, NxmPlusTraining, Study, parse_study
from nxm.training.assemble import METHODS

MAIN = "embedded"  # the study of the root's params.yaml
_ANY_CELL = {"task": "", "method": "nxm", "seed": 0, "cell": "", "values": {}}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` in it: mappings are merged key by key, everything else is replaced."""
    merged = deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def profiles(root: Path) -> list[str]:
    """The studies that there are: the main one, and one for each file in profiles/."""
    return [MAIN, *sorted(path.stem for path in (root / "profiles").glob("*.yaml"))]


def study_values(root: Path, name: str) -> dict[str, Any]:
    """The settings of a study as plain values, its grid spelt out, and what the grid has chosen so far in its place.

    Raises UserError for an unknown study or an impossible setting.
    """
    base = read_yaml(root / "params.yaml")
    if name == base.get("study"):
        if base.get("ablation"):
            raise UserError(
                "params.yaml: 'ablation' is for a profile: write the variants there, they would not run here"
            )
        return base
    profile = root / "profiles" / f"{name}.yaml"
    if not profile.is_file():
        raise UserError(f"there is no study '{name}'; known are {', '.join(profiles(root))}")
    place = {"root": "../..", "params": f"studies/{name}/params.yaml", "study": name}
    values = merge(base, _spelt_out(read_yaml(profile)) | place)
    if values.get("grid", {}).get("seeds"):
        parse_study(values | {"cells": {"": _ANY_CELL}}, str(profile))  # before what it says is read
        cells = selection.expand(values)
        values["plus_cells"] = {key: cell for key, cell in cells.items() if cell["method"] in selection.PLUS}
        values["cells"] = {key: cell for key, cell in cells.items() if key not in values["plus_cells"]}
    study = parse_study(values, str(profile))
    chosen, _ = chosen_values(study, root)
    for (method, task), best in chosen.items():
        values[method][task] = best
    values["plus_cells"] |= selection.expand_ablation(values)
    return values


def _spelt_out(changes: dict[str, Any]) -> dict[str, Any]:
    """A profile with the values of `recipe: best` in its place, so that DVC sees them."""
    for method, kind in (("nxm_plus", NxmPlusTraining), ("distil_nxm_plus", AdmmExtras)):
        blocks = changes.get(method)
        if isinstance(blocks, dict):
            changes[method] = {task: spell_out(block, set(kind.model_fields)) for task, block in blocks.items()}
    return changes


def chosen_values(study: Study, root: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[tuple[str, str]]]:
    """What the study's grid has chosen so far, by (method, task), and for which of them it has chosen nothing yet."""
    if study.selection == "params":
        return {}, []
    cells = {key: cell.model_dump() for key, cell in study.searched_cells.items()}
    results, failures = read_study(root / "results", study.study), read_failures(root / "results", study.study)
    chosen = selection.choose(cells, results, failures, study.selection)
    searched = dict.fromkeys((cell["method"], cell["task"]) for cell in cells.values())
    return chosen, [pair for pair in searched if pair not in chosen]


def refresh_studies(root: Path) -> None:
    """Write the folders of all studies that there are anew: what params.yaml and profiles now say."""
    for folder in (root / "studies").glob("*/"):
        if folder.name in profiles(root):
            write_study(root, folder.name)


def write_study(root: Path, name: str) -> Path:
    """Make or refresh a study's folder and return it: the root for the main study, else `studies/<name>`.

    A file is written only when its content changes. Raises UserError as `study_values` does.
    """
    values = study_values(root, name)
    if "/" not in values["params"]:
        return root
    folder = root / "studies" / name
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.representer.ignore_aliases = lambda data: True  # anchors help writers, not readers of a generated file
    yaml.dump(values, text)
    content = (
        f"# Generated from params.yaml and profiles/{name}.yaml by nxm.launch.schedule: change those, not this.\n"
        + text.getvalue()
    )
    stages = "# Generated from the root's dvc.yaml by nxm.launch.schedule: change that, not this.\n" + (
        root / "dvc.yaml"
    ).read_text(encoding="utf-8")
    for path, wanted in ((folder / "params.yaml", content), (folder / "dvc.yaml", stages)):
        # A copy, since DVC does not follow links in a revision of git (`dvc metrics diff`, `dvc exp show`).
        if path.is_symlink() or not path.exists() or path.read_text(encoding="utf-8") != wanted:
            write_text(path, wanted)
    return folder


@dataclass(frozen=True)
class Planned:
    """What a training stage trains: `method` on `task`, for `epochs`, with values of the params.yaml block `block`.

    `searched`: it is a cell of the grid, whose values are its own; all others take what the grid chooses.
    """

    task: str
    method: str
    block: str
    epochs: int
    searched: bool


# dvc.yaml's stage -> its method, where it has another name and does not end in it.
_METHODS = {"baseline": "dense", "nxm_rho": "nxm"}


def planned_training(study: Study, stage: str) -> Planned | None:
    """What a stage (DVC's name, such as `nxm@stsb-0`) trains; None for one that trains nothing."""
    kind, _, cell = stage.partition("@")
    cells = {"grid": study.cells, "plus_cell": study.plus_cells}.get(kind)
    if cells is not None:
        own = cells[cell]
        searched = cell in study.searched_cells
        return Planned(own.task, own.method, own.method, int(own.values["epochs"]), searched)  # type: ignore[arg-type]
    method = _METHODS.get(kind, kind)
    if kind in ("distil_nxm", "plus", "distil_plus"):
        method = cell.rpartition("-")[2]
    if method not in METHODS:
        return None
    task = next(name for name in study.tasks if re.match(rf"{name}(-|$)", cell))
    block = METHODS[method].block
    return Planned(task, method, block, getattr(study, block)[task].epochs, False)
