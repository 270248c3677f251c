"""A bench's run: units in the order of their worth within a budget of time, each on the disk once it is measured."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nxm.errors import UserError
from nxm.export.cusparselt import SEARCHES
from nxm.files import check_place, new_file, sha256_file, write_json
from nxm.measure.bench import blocks, card, encoders, products
from nxm.measure.bench.unit import Care, Unit
from nxm.measure.bench.worker import BrokenError, Worker
from nxm.measure.timing import Row

PARTS: dict[str, tuple[str, Callable[[torch.device], list[Unit]]]] = {
    "proof": ("one product by either kernel, by name", lambda device: card.units(device)[:1]),
    "card": ("the rate of the memory", lambda device: card.units(device)[1:]),
    "products": ("single matrices, dense and 2:4, by type", products.units),
    "encoders": ("whole encoders in every form", encoders.units),
    "blocks": ("block-sparse matrices", blocks.units),
}
# beside this folder's, the code on which a measured time depends; relative to the package
CODE = (
    *("measure/timing.py", "measure/kernels.py", "replay.py"),
    *("export/cusparselt.py", "export/fp8.py", "export/int8.py", "export/semi_structured.py"),
)


def run_bench(
    path: Path,
    device_name: str,
    *,
    budget: float,
    parts: Sequence[str],
    force: bool = False,
    units: Sequence[Unit] | None = None,
) -> None:
    """Measure what fits in the budget and write `path`, a JSON file, as each unit ends.

    A file in which something was left out, by the budget, by a failure or by a kill, is gone on with on a machine of
    the same kind with the same versions. A row's `call` says which of the calls made it, and `calls` by which code.
    Nothing is written before there is a new row.

    Args:
        device_name: "cpu" or "cuda".
        budget: seconds, by the clock on the wall. A unit that would probably not end in time is left out.
        force: measure again, of these units, those whose rows are by other code, and all of them where nothing else is
            left to do; or replace another machine's result.
        units: instead of all units of `parts`, for tests.

    Raises:
        UserError: there is no such device or part, the budget is not above 0 or too small for any unit, `path` cannot
            be written, the measuring process cannot start, or there is an earlier result with which this call cannot
            go on.
    """
    chosen = list(units) if units is not None else plan(device_name, parts)
    if not budget > 0:
        raise UserError(f"--budget is the number of seconds to spend; it must be above 0, not {budget:g}")
    check_place(path, lambda existing: None)
    _check_writable(path)
    began = time.monotonic()
    took: dict[str, list[float]] = defaultdict(list)
    worker = Worker(torch.device(device_name))
    with closing(worker):
        try:
            provenance = worker.provenance()
        except BrokenError as error:
            raise UserError(f"nothing can be measured on {device_name}: {error}") from None
        result = _started(path, device_name, provenance, force)
        wanted, dropped = result.choose(path, chosen, force)
        rows = result.without(dropped)
        care = _care_of(rows)
        call = 1 + max((row["call"] for row in rows), default=0)
        new = False
        with tqdm(wanted, desc=f"bench {device_name}", unit=" units") as bar:
            for unit in bar:
                bar.set_postfix_str(unit.name)
                expected = 1.1 * max(took[unit.part]) if took[unit.part] else unit.seconds
                if time.monotonic() - began + expected > budget:
                    continue
                start = time.monotonic()
                found = [{"unit": unit.name, "call": call} | row for row in _measured(worker, unit, care)]
                took[unit.part].append(time.monotonic() - start)
                result.rows = rows = [row for row in rows if row["unit"] != unit.name] + found
                result.calls[str(call)] = {"code": bench_code()}
                care, new = _care_of(rows), True
                result.write(path, chosen)
    if not new and (dropped or not result.rows):
        raise UserError(f"--budget: {budget:g} s are too few for any of {len(wanted)} units; nothing was written")
    print(f"{path}: {len(result.rows)} rows; {time.monotonic() - began:.0f} s")
    if left_out := result.left(chosen):
        again = f"nxm bench --device {device_name} --out {path.parent}"
        print(f"{len(left_out)} units failed or did not fit in the budget of {budget:g} s; {again} goes on with them")


@cache
def bench_code() -> str:
    """Return one sha256 of the code that measures."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *(package / name for name in CODE)]:
        digest.update(f"{sha256_file(path)}  {path.relative_to(package).as_posix()}\n".encode())
    return digest.hexdigest()


@dataclass
class _Result:
    """A file of the bench: what its calls measured, by which code, and what they left out."""

    device: str
    provenance: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def choose(self, path: Path, chosen: Sequence[Unit], force: bool) -> tuple[list[Unit], set[str]]:
        """Return the units to measure, and the names of those whose rows are dropped once there is a new row.

        Raises:
            UserError: nothing is left to do, and `force` is not given.
        """
        foreign = {row["unit"] for row in self.rows if not self._is_own(row)} if force else set()
        done, tried = _done(self.rows) - foreign, {row["unit"] for row in self.rows} - foreign
        wanted = [unit for unit in chosen if unit.name not in done]
        if force and all(unit.name in tried for unit in chosen):
            wanted = list(chosen)
        dropped = {unit.name for unit in wanted} & (_done(self.rows) | foreign)
        if calls := sorted({row["call"] for row in self.rows if row["unit"] not in dropped and not self._is_own(row)}):
            which = f"call{'s' if len(calls) > 1 else ''} {', '.join(map(str, calls))}"
            print(f"{path}: rows of {which} were made by other code; --force measures them again")
        if not wanted:
            raise UserError(f"{path} has a complete earlier result; --force replaces it, --out OTHER keeps both")
        return wanted, dropped

    def without(self, dropped: set[str]) -> list[Row]:
        """Return the rows of all units but these."""
        return [row for row in self.rows if row["unit"] not in dropped]

    def left(self, chosen: Sequence[Unit]) -> list[str]:
        """Return the names of the units, of these and of former calls' ones, that have no measurement."""
        done = _done(self.rows)
        return [name for name in dict.fromkeys([*(unit.name for unit in chosen), *self.left_out]) if name not in done]

    def write(self, path: Path, chosen: Sequence[Unit]) -> None:
        """Write the file; calls of which no row is left are not in it."""
        used = {str(row["call"]) for row in self.rows}
        calls = {call: made for call, made in self.calls.items() if call in used}
        content = {"device": self.device, "provenance": self.provenance, "calls": calls}
        write_json(path, content | {"left_out": self.left(chosen), "rows": self.rows})

    def _is_own(self, row: Row) -> bool:
        return self.calls.get(str(row["call"]), {}).get("code") == bench_code()


class _Tried(Exception):
    """Ends a trial, so that nothing is left of it."""


def _check_writable(path: Path) -> None:
    """Raise UserError if a file cannot be written at `path`, and leave nothing there."""
    with suppress(_Tried), new_file(path):
        raise _Tried


def _done(rows: Sequence[Row]) -> set[str]:
    """Return the names of the units that were measured; the row of one that failed as a whole names no way."""
    return {row["unit"] for row in rows if "way" in row}


def _started(path: Path, device: str, provenance: dict[str, Any], force: bool) -> _Result:
    """Return the result of an earlier call to go on with; an empty one without one, or where it is replaced."""
    empty = _Result(device, provenance)
    if not path.exists():
        return empty
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same = _deciding(earlier["provenance"]) == _deciding(provenance)
        result = _Result(device, provenance, earlier["rows"], earlier.get("calls", {}), earlier.get("left_out", []))
        for row in result.rows:
            if not (isinstance(row["unit"], str) and isinstance(row["call"], int) and isinstance(row["part"], str)):
                raise TypeError("a row without its unit, call or part")
        all(made.get("code") for made in result.calls.values())
        _care_of(result.rows)
        result.left([])
    except (ValueError, KeyError, TypeError, AttributeError):
        if force:
            return empty
        raise UserError(f"{path}: is no result of nxm bench; --force replaces it, --out OTHER leaves it") from None
    if same:
        return result
    if force:
        return empty
    what = "a result of another machine or of other versions"
    raise UserError(f"{path} has {what}; --force replaces it, --out OTHER keeps both")


def _deciding(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a provenance that speed depends on; some machines' memory grows as it is used."""
    machine = {name: value for name, value in provenance["machine"].items() if name != "memory_gib"}
    return provenance | {"machine": machine}


def _care_of(rows: Sequence[Row]) -> dict[str, int]:
    """Return by type how careful a search had to be so far."""
    care: dict[str, int] = {}
    for row in rows:
        if "care" in row:
            care[row["dtype"]] = max(row["care"], care.get(row["dtype"], 0))
    return care


def _measured(worker: Worker, unit: Unit, care: Care) -> list[Row]:
    """Return a unit's rows. When it breaks the process, it is measured again with a more careful search, and again."""
    broken: list[str] = []
    for more in range(len(SEARCHES)):
        careful = dict(care) | {dtype: min(care.get(dtype, 0) + more, len(SEARCHES) - 1) for dtype in unit.dtypes}
        try:
            rows = worker.measure(unit, careful)
        except BrokenError as error:
            broken.append(str(error))
            if not unit.dtypes or all(careful[dtype] == len(SEARCHES) - 1 for dtype in unit.dtypes):
                break
        else:
            return [row | ({"broken_before": broken} if broken else {}) for row in rows]
    return [{"part": unit.part, "absent": broken[-1], "broken_before": broken}]


def plan(device_name: str, parts: Sequence[str]) -> list[Unit]:
    """Return the units of these parts, those of most worth first. Raises UserError as `run_bench` does."""
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts: '{part}' is no part of the bench; known: {', '.join(PARTS)}")
    if device_name not in ("cpu", "cuda"):
        raise UserError(f"--device is cpu or cuda, not '{device_name}'")
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; --device cpu measures this machine's cores")
    device = torch.device(device_name)
    units = [unit for name, (_, make) in PARTS.items() if name in parts for unit in make(device)]
    return sorted(units, key=lambda unit: -unit.worth)


def list_units(device_name: str, parts: Sequence[str], budget: float) -> None:
    """Print the units in the order in which they would run, their estimates, and those beyond the budget."""
    spent, beyond = 0.0, 0
    for unit in plan(device_name, parts):
        fits = spent + unit.seconds <= budget
        spent += unit.seconds if fits else 0.0
        beyond += not fits
        print(f"{unit.name:36} about {unit.seconds:4.0f} s" + ("" if fits else "   beyond the budget"))
    print(f"about {spent:.0f} s in all" + (f"; {beyond} units are beyond the budget of {budget:g} s" if beyond else ""))
