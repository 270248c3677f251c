"""A bench's run: units in the order of their worth within a budget of time, each on the disk once it is measured."""

from __future__ import annotations

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
from nxm.measure.journal import Journal
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
    unfinished: Path,
    force: bool = False,
    units: Sequence[Unit] | None = None,
) -> None:
    """Measure what fits in the budget and write `path`, a JSON file, as each unit ends.

    After a kill the same call goes on, as it does with what a budget cut: nothing is measured twice on one machine with
    the same versions. A row's `call` says which of the calls made it.

    Args:
        device_name: "cpu" or "cuda".
        budget: seconds, by the clock on the wall. A unit that would probably not end in time is left out.
        unfinished: a folder of its own for what a killed run left.
        force: replace a complete earlier result.
        units: instead of all units of `parts`, for tests.

    Raises:
        UserError: there is no such device or part, the budget is not above 0, or a complete result exists.
    """
    chosen = list(units) if units is not None else plan(device_name, parts)
    if not budget > 0:
        raise UserError(f"--budget is the number of seconds to spend; it must be above 0, not {budget:g}")
    if path.exists() and not force and not unfinished.exists():
        raise UserError(f"{path} has an earlier result; --force replaces it, --out OTHER keeps both")
    journal = Journal(unfinished, {"device": device_name})
    began = time.monotonic()
    took: dict[str, list[float]] = defaultdict(list)
    left_out: list[str] = []
    rows: list[Row] = []
    call = 1 + max((row["call"] for unit in chosen for row in journal.get(unit.name) or []), default=0)
    care: dict[str, int] = {}
    worker = Worker(torch.device(device_name))
    with closing(worker), tqdm(total=len(chosen), desc=f"bench {device_name}", unit=" units") as bar:
        written: dict[str, Any] = {"device": device_name, "provenance": worker.provenance(), "left_out": left_out}
        for unit in chosen:
            bar.set_postfix_str(unit.name)
            known = journal.get(unit.name)
            if known is None:
                expected = 1.1 * max(took[unit.part]) if took[unit.part] else unit.seconds
                if time.monotonic() - began + expected > budget:
                    left_out.append(unit.name)
                    bar.update()
                    continue
                start = time.monotonic()
                known = [row | {"call": call} for row in _measured(worker, unit, care)]
                took[unit.part].append(time.monotonic() - start)
                journal.add(unit.name, known)
            for row in known:
                if "care" in row and len(unit.dtypes) == 1:
                    care[row["dtype"]] = max(row["care"], care.get(row["dtype"], 0))
            rows += known
            write_json(path, written | {"rows": rows})
            bar.update()
        write_json(path, written | {"rows": rows})
    print(f"{path}: {len(rows)} rows, the last after {time.monotonic() - began:.0f} s")
    if left_out:
        print(f"{len(left_out)} units did not fit in the budget of {budget:g} s; the same command goes on with them")
    else:
        journal.clear()


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
    return [{"part": unit.part, "unit": unit.name, "absent": broken[-1], "broken_before": broken}]


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
