"""Latency of the dense, the compressed and the exported model on this machine, and the kernels that ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nxm.compress.train import device
from nxm.errors import UserError, first_line
from nxm.export.semi_structured import load_2of4
from nxm.export.trained import Answer, Trained, outputs
from nxm.machine import cores
from nxm.measure.forms import random_inputs
from nxm.measure.kernels import sparse_launches
from nxm.measure.proof import products, quietly_launched
from nxm.measure.timing import Row, Timer, paired_ratio, time_call, time_interleaved, with_spread
from nxm.models.load import load

BATCHES = (1, 8)
WARMUP, REPEATS, BUDGET_SECONDS = 3, 15, 5.0  # for each batch size
DENSE, COMPRESSED = "dense, PyTorch fp32", "compressed, PyTorch fp32"


@dataclass(frozen=True)
class Opened:
    """An exported model, ready to run.

    Attributes:
        answer: takes the tokenizer's tensors and returns outputs by name.
        products: returns the operators of its file, or the kernels of its last call, that multiply; None: the profiler
            sees them.
    """

    answer: Answer
    products: Callable[[], list[str]] | None = None


def open_export(path: Path, form: str, tokens: int) -> Opened:
    """Open an exported model.

    Args:
        form: the export's format.
        tokens: batch x length of the inputs, for which 2:4 kernels are chosen.

    Raises:
        UserError: it cannot be run on this machine.
    """
    if form == "packed":
        return Opened(partial(outputs, load(path)))
    if form == "torch-2of4":
        return Opened(partial(outputs, load_2of4(path, device(), tokens)))
    if form == "torch-int8":
        from nxm.export.x86 import open_x86

        return Opened(open_x86(path))
    if form in ("openvino", "openvino-int8"):
        from nxm.export.openvino import open_openvino

        program = open_openvino(path, cores())
        return Opened(program, lambda: sorted(program.kernels()))
    import onnx

    from nxm.export.onnx import open_onnx

    operators = {node.op_type for node in onnx.load(path).graph.node}
    return Opened(open_onnx(path), lambda: sorted(products(operators)))


def measure(
    dense: Trained,
    compressed: Trained,
    exported: Mapping[str, Opened],
    size: int | tuple[int, int, int],
    timer: Timer = time_call,
) -> list[Row]:
    """Return a row per form and batch size; all forms are timed in the same rounds (`nxm.measure.timing`).

    Args:
        exported: opened exports by name; one that fails on these inputs has a row with the reason.
        size: tokens of each text, or channels, height and width of each image.
    """
    place = device()
    models = {DENSE: dense, COMPRESSED: compressed}
    answers: dict[str, Answer] = {name: partial(outputs, moved(own, place)) for name, own in models.items()}
    answers |= {name: opened.answer for name, opened in exported.items()}
    known = {name: opened.products for name, opened in exported.items()}
    rows: list[Row] = []
    length = size if isinstance(size, int) else None
    try:
        for batch in BATCHES:
            inputs = random_images(batch, size) if isinstance(size, tuple) else random_inputs(dense, batch, size)
            calls, absent = _runnable(answers, inputs)
            rows += [{"form": name, "batch": batch, "length": length, "absent": why} for name, why in absent.items()]
            seconds = time_interleaved(
                calls, warmup=WARMUP, repeats=REPEATS, budget=BUDGET_SECONDS, device=place, timer=timer
            )
            for name, own in seconds.items():
                row = {"form": name, "batch": batch, "length": length} | with_spread(own)
                rows.append(
                    row | {"speedup": paired_ratio(seconds[DENSE], own)} | _kernels(calls[name], known.get(name), place)
                )
    finally:
        for trained in models.values():
            moved(trained, torch.device("cpu"))
    return rows


def random_images(batch: int, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return images of noise as a processor makes them: `pixel_values`, fp32 (batch, *size) within -1 and 1."""
    draw = torch.Generator().manual_seed(0)
    return {"pixel_values": 2 * torch.rand((batch, *size), generator=draw) - 1}


def moved(trained: Trained, place: torch.device) -> Any:
    """Return the model after moving it to a device."""
    module: torch.nn.Module = trained.model
    return module.to(place)


def _runnable(
    answers: Mapping[str, Answer], inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    calls: dict[str, Callable[[], object]] = {}
    absent: dict[str, str] = {}
    for name, answer in answers.items():
        call = partial(answer, inputs)
        try:
            call()
        except (RuntimeError, UserError) as error:  # a compiler, or a GPU's memory
            absent[name] = first_line(error)
        else:
            calls[name] = call
    return calls, absent


def _kernels(call: Callable[[], object], known: Callable[[], list[str]] | None, place: torch.device) -> dict[str, Any]:
    """Return the operators or kernels of a call that multiply, the longest first, and how many were sparse."""
    if known is not None:
        return {"kernels": known(), "sparse_launches": 0}
    found = quietly_launched(call, place)
    return {"kernels": products(each.name for each in found)[:3], "sparse_launches": sparse_launches(found)}


def typical_length(lengths: Sequence[int]) -> int:
    """Return the median number of tokens, rounded up to a multiple of 8 but no longer than the longest."""
    return int(min(max(lengths), 8 * np.ceil(np.median(lengths) / 8)))
