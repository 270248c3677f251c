"""The output folder: whose it is, and how far its run came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxm.errors import UserError
from nxm.files import check_place, write_json

SETTINGS, PLAN, REPORT = "settings.json", "plan.json", "report.json"
OUTCOMES = "outcomes.npy"  # on the held-out rows, of the model that was trained; in work/
EXPORTS = {
    "onnx": "export.onnx",
    "onnx-int8": "export-int8.onnx",
    "onnx-weight-only": "export-weight-only.onnx",
    "openvino": "export-openvino",
    "openvino-int8": "export-openvino-int8",
    "torch-int8": "export-int8.pt2",
    "torch-2of4": "export-2of4",
    "packed": "export-packed",
}
KNOWN = {SETTINGS, PLAN, REPORT, "report.md", "report.html", "dense", "model", "work", *EXPORTS.values()}


def find_plan(folder: Path, identity: Mapping[str, Any], *, force: bool, source: Path) -> dict[str, Any] | None:
    """Return the plan of an earlier run of the same settings in an output folder, which goes on; None: a run begins.

    Nothing is written.

    Args:
        identity: the settings, data, model and versions that decide the result, as JSON.
        force: a run begins whatever an earlier one left.
        source: the model's folder, which must survive.

    Raises:
        UserError: the folder holds something else, or a run with other settings; the message names the first.
    """
    check_place(folder, lambda out: None, source, folder=True)
    if not folder.exists() or not any(folder.iterdir()):
        return None
    strays = sorted({entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - KNOWN)
    if strays or not (folder / SETTINGS).is_file():
        holds = f"holds {strays[0]}" if strays else f"has no {SETTINGS}"
        raise UserError(f"{folder}: {holds}: nxm compress did not write it; give another place with --out")
    if force:
        return None
    _refuse_other(folder, identity)
    return read_json(folder / PLAN)


def begin(folder: Path, identity: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Write settings and plan into an output folder, without what an earlier run left there.

    Raises:
        UserError: the folder cannot be written.
    """
    for name in (PLAN, *sorted(KNOWN - {PLAN, SETTINGS})):  # without a plan, a kill in between leaves nothing to go on
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(folder / SETTINGS, dict(identity))
    write_json(folder / PLAN, dict(plan))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file of an output folder; None if there is no such file.

    Raises:
        UserError: it is no JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); start again with --force") from None
    return dict(found)


def _refuse_other(folder: Path, identity: Mapping[str, Any]) -> None:
    begun, now = _flat(read_json(folder / SETTINGS) or {}), _flat(identity)
    for name in sorted(begun.keys() | now.keys()):
        if begun.get(name) != now.get(name):
            raise UserError(
                f"{folder}: was begun with {name} = {_say(begun.get(name))}, now {name} = {_say(now.get(name))}: give "
                "another place with --out, or --force to start again"
            )


def _say(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text  # a checksum


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
