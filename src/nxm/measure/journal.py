"""Rows of a long measurement, kept as they are made, so that a killed one goes on after its last whole row."""

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
    """A file of JSON lines, one for each unit of work, in a folder that is the measurement's own.

    What was measured with other settings, on another machine or with other versions is not gone on with: its file has
    another name and is removed.

    Args:
        folder: such as checkpoints/<study>/matrices-cpu.
        settings: what decides the measurement.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        deciding = {"settings": settings, "machine": machine(), "versions": libraries()}
        name = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder
        self._path = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != self._path:
                other.unlink()
        self._done = self._read()

    def get(self, unit: str) -> list[dict[str, Any]] | None:
        """The rows of a unit that is done, or None."""
        return self._done.get(unit)

    def add(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Keep a unit's rows: on the disk before this returns."""
        self._done[unit] = rows
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unit": unit, "rows": rows}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove the folder: the whole result is safe."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        if not self._path.exists():
            return {}
        whole = [line for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1:] == "\n"]
        self._path.write_text("".join(whole), encoding="utf-8")  # less the line that a kill cut off
        entries = [json.loads(line) for line in whole]
        return {entry["unit"]: entry["rows"] for entry in entries}
