"""A bench's run: units in the order of their worth within a budget of time, each on the disk once it is measured."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nxm.errors import UserError
from nxm.export.cusparselt import SEARCHES
from nxm.files import write_json
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

    A file in which something was left out, by the budget or by a kill, is gone on with on a machine of the same kind
    with the same versions. A row's `call` says which of the calls made it.

    Args:
        device_name: "cpu" or "cuda".
        budget: seconds, by the clock on the wall. A unit that would probably not end in time is left out.
        force: replace an earlier result that is complete, or another machine's.
        units: instead of all units of `parts`, for tests.

    Raises:
        UserError: there is no such device or part, the budget is not above 0, or there is an earlier result with which
            this call cannot go on.
    """
    chosen = list(units) if units is not None else plan(device_name, parts)
    if not budget > 0:
        raise UserError(f"--budget is the number of seconds to spend; it must be above 0, not {budget:g}")
    began = time.monotonic()
    took: dict[str, list[float]] = defaultdict(list)
    worker = Worker(torch.device(device_name))
    with closing(worker), tqdm(total=len(chosen), desc=f"bench {device_name}", unit=" units") as bar:
        provenance = worker.provenance()
        rows = _earlier_rows(path, provenance, {unit.name for unit in chosen}, force)
        care = _care_of(rows)
        call = 1 + max((row["call"] for row in rows), default=0)
        done = {row["unit"] for row in rows}
        for unit in chosen:
            bar.set_postfix_str(unit.name)
            expected = 1.1 * max(took[unit.part]) if took[unit.part] else unit.seconds
            if unit.name not in done and time.monotonic() - began + expected <= budget:
                start = time.monotonic()
                found = [{"unit": unit.name, "call": call} | row for row in _measured(worker, unit, care)]
                took[unit.part].append(time.monotonic() - start)
                done.add(unit.name)
                rows += found
                care = _care_of(rows)
                _write(path, device_name, provenance, chosen, rows)
            bar.update()
        left_out = _write(path, device_name, provenance, chosen, rows)
    print(f"{path}: {len(rows)} rows; {time.monotonic() - began:.0f} s")
    if left_out:
        print(f"{len(left_out)} units did not fit in the budget of {budget:g} s; the same command goes on with them")


def _write(path: Path, device: str, provenance: dict[str, Any], chosen: Sequence[Unit], rows: list[Row]) -> list[str]:
    """Write the result and return what is left out of it."""
    done = {row["unit"] for row in rows}
    left_out = [unit.name for unit in chosen if unit.name not in done]
    write_json(path, {"device": device, "provenance": provenance, "left_out": left_out, "rows": rows})
    return left_out


def _earlier_rows(path: Path, provenance: dict[str, Any], names: set[str], force: bool) -> list[Row]:
    """Return the rows of an earlier call to go on with; [] without one, or where it is replaced."""
    if not path.exists():
        return []
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        rows: list[Row] = earlier["rows"]
        same = _deciding(earlier["provenance"]) == _deciding(provenance)
        complete = names <= {row["unit"] for row in rows}
    except (ValueError, KeyError, TypeError):
        if force:
            return []
        raise UserError(f"{path}: is no result of nxm bench; --force replaces it, --out OTHER leaves it") from None
    if same and not complete:
        return rows
    if force:
        return []
    what = "a complete earlier result" if same else "a result of another machine or of other versions"
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
