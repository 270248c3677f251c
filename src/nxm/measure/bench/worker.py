"""The process that measures. A kernel that fails can break its CUDA context, or kill it; another one then goes on."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from nxm.errors import first_line
from nxm.machine import clocks, cores, gpu, libraries, machine
from nxm.measure.bench.unit import Care, Unit
from nxm.measure.timing import Row


class BrokenError(Exception):
    """The measuring process ended, or its device can no longer be used, in a unit; the message says how."""


@dataclass
class _Started:
    process: Any
    connection: Connection


class Worker:
    """Measures units in a process of its own, which is started when it is needed, and anew after it broke."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: _Started | None = None

    def provenance(self) -> dict[str, Any]:
        """Return the machine, its GPU and the versions of its software."""
        found: dict[str, Any] = self._ask(("provenance",))
        return found

    def measure(self, unit: Unit, care: Care) -> list[Row]:
        """Return a unit's rows; an error of the unit alone is a row with its reason.

        Raises:
            BrokenError: the process broke.
        """
        rows: list[Row] = self._ask(("measure", unit, dict(care)))
        return rows

    def close(self) -> None:
        """End the process."""
        if self._started is not None:
            self._started.connection.close()
            self._started.process.join(timeout=10)
            self._started.process.kill()
            self._started = None

    def _ask(self, question: tuple[Any, ...]) -> Any:
        if self._started is None:
            spawning = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(theirs, self._device), daemon=True)
            process.start()
            theirs.close()
            self._started = _Started(process, ours)
        try:
            self._started.connection.send(question)
            kind, answer = self._started.connection.recv()
        except (EOFError, ConnectionError):
            self._started.process.join()
            code = self._started.process.exitcode
            self._started = None
            raise BrokenError(f"the measuring process ended with status {code}") from None
        if kind == "broken":
            self.close()
            raise BrokenError(answer)
        return answer


def _serve(connection: Connection, device: torch.device) -> None:
    torch.set_num_threads(cores())
    while True:
        try:
            question, *given = connection.recv()
        except EOFError:  # the parent is done, or gone
            return
        if question == "provenance":
            found = {"machine": machine(), "versions": libraries()}
            connection.send(("done", found | ({"gpu": gpu()} if device.type == "cuda" else {})))
            continue
        connection.send(_measured(*given, device))


def _measured(unit: Unit, care: Care, device: torch.device) -> tuple[str, Any]:
    try:
        rows = unit.measure(care)
    except Exception as error:  # out of memory, a compiler: whatever it is, the rest of the bench is worth having
        rows = [{"part": unit.part, "absent": f"{type(error).__name__}: {first_line(error)}"}]
    if device.type != "cuda":
        return "done", rows
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:  # what failed before has broken the context: nothing that came after it counts
        return "broken", first_line(error)
    found = clocks()
    return "done", [row | found for row in rows]
