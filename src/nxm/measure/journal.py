"""A journal of a long measurement, so that a killed one continues after its last complete unit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxm.machine import libraries, machine


class Journal:
    """A file of JSON lines, one per unit of work.

    Rows measured with other settings, on another machine or with other versions are not reused: their file has another
    name and is removed.

    Args:
        folder: the measurement's folder, such as checkpoints/deployment-cpu, which has nothing else.
        settings: the settings on which the measurement depends, as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        computer = {key: value for key, value in machine().items() if key != "memory_gib"}  # grows on some machines
        deciding = {"settings": settings, "machine": computer, "versions": libraries()}
        name = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder
        self._path = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != self._path:
                other.unlink()
        self._done = self._read()

    def get(self, unit: str) -> list[dict[str, Any]] | None:
        """Return the rows of a completed unit, or None."""
        return self._done.get(unit)

    def add(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Record a unit's rows; they are on the disk when this returns."""
        self._done[unit] = rows
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unit": unit, "rows": rows}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove the folder, once the complete result is saved."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        if not self._path.exists():
            return {}
        whole = [line for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1:] == "\n"]
        self._path.write_text("".join(whole), encoding="utf-8")  # without a line that a kill cut off
        entries = [json.loads(line) for line in whole]
        return {entry["unit"]: entry["rows"] for entry in entries}
