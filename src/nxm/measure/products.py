"""Time, kernels and roofline of products with single matrices, dense and 2:4.

A unit is a shape at a batch and length in one dtype. Its ways to multiply are timed interleaved
(`nxm.measure.timing`), on CUDA by device events around the kernel alone (`time_kernel`). A way whose output is wrong
gets a row without a time.

The roofline: a product of `tokens` inputs with a matrix (out, in) takes 2 x tokens x out x in operations and must read
and write its matrices once. The bandwidth and speed that this machine reached in the same run give a lower bound of its
time; `share` is that bound divided by the measured time. (The bandwidth is that of main memory. On a CPU, small
matrices that stay in a cache may exceed it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from nxm.errors import UserError
from nxm.export.semi_structured import BACKENDS, pack_matrix, why_no_gpu, why_not
from nxm.files import write_json
from nxm.machine import cores, libraries, machine
from nxm.measure.journal import Journal
from nxm.measure.kernels import are_sparse, kernels_of
from nxm.measure.timing import Call, Row, Timer, paired_ratio, time_interleaved, time_kernel, with_spread
from nxm.sets.nm import NM
from nxm.study.settings import Matrices, Study

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
DEVICE_DTYPES = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("bf16", "fp16", "int8")}
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3, "int8": 0.0}  # relative error; integers are exact
BUDGET_SECONDS = 2.0  # per unit, beyond five rounds
CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # size of the square product that measures the highest speed
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


@dataclass(frozen=True)
class Ceilings:
    """The highest rates that the machine reached in this run.

    Attributes:
        bandwidth: bytes per second of a copy.
        operations: operations per second of a large product by way: "dense" and the backends of 2:4 kernels, whose
            operations are counted as those of the dense product.
    """

    bandwidth: float
    operations: Mapping[str, float]


@dataclass(frozen=True)
class Product:
    """A product that can be timed: the call, and the dense matrix W (out, in) that gives its exact output."""

    call: Callable[[], Tensor]
    W: Tensor
    transposed: bool = False  # the call returns (out, tokens)


def run_matrices(study: Study, device_name: str, folder: Path, timer: Timer | None = None) -> Path:
    """Measure all products of `study.matrices` on one device and write results/matrices/<device>.json.

    A killed run continues after its last complete unit. On a machine without the device the file has the reason.

    Args:
        device_name: "cpu" or "cuda".
        folder: the study's folder.
        timer: replaces `nxm.measure.timing.time_kernel`, for tests.

    Returns: the path of the file.
    """
    timer = timer or time_kernel
    settings = study.matrices
    path = folder / "results" / "matrices" / f"{device_name}.json"
    written: dict[str, Any] = {"study": study.study, "device": device_name}
    if device_name == "cuda" and not torch.cuda.is_available():
        write_json(path, written | {"absent": "no CUDA device where this was run", "rows": []})
        return path
    device = torch.device(device_name)
    torch.set_num_threads(cores())
    journal = Journal(folder / "checkpoints" / f"matrices-{device_name}", settings.model_dump(mode="json"))
    units = [
        (dtype, tuple(shape), tuple(point))
        for dtype in DEVICE_DTYPES[device_name]
        for shape in settings.shapes
        for point in settings.points
    ]
    rows: list[Row] = []
    ceilings: list[Row] = []
    with tqdm(total=len(units), desc=f"matrices {device_name}", unit=" products") as bar:
        for dtype in DEVICE_DTYPES[device_name]:
            found = _recorded(journal, f"ceilings {dtype}", partial(_ceiling_rows, dtype, device, settings, timer))
            ceilings += found
            limits = _ceilings(found)
            for unit_dtype, shape, point in units:
                if unit_dtype == dtype:
                    name = f"{dtype} {shape} {point}"
                    rows += _recorded(
                        journal, name, partial(measure_unit, shape, point, dtype, device, settings, limits, timer)
                    )
                    bar.update()
    provenance = {"machine": machine(), "versions": libraries()}
    write_json(path, written | {"provenance": provenance, "ceilings": ceilings, "rows": rows})
    journal.clear()
    return path


def _recorded(journal: Journal, unit: str, measure: Callable[[], list[Row]]) -> list[Row]:
    rows = journal.get(unit)
    if rows is None:
        rows = measure()
        journal.add(unit, rows)
    return rows


# --- one unit ----------------------------------------------------------------------------------------------------


def measure_unit(
    shape: tuple[int, int],
    point: tuple[int, int],
    dtype: str,
    device: torch.device,
    settings: Matrices,
    ceilings: Ceilings,
    timer: Timer,
) -> list[Row]:
    """Time one shape at one batch and length in every way and return a row per way.

    The ways are `dense`, random values; `masked`, 2:4 in a dense kernel, whose speed-up should be about 1; and on CUDA
    `cusparselt`, with the algorithm that its search finds, and `cutlass`.
    """
    tokens = point[0] * point[1]
    where: Row = {"shape": list(shape), "batch": point[0], "length": point[1], "dtype": dtype}
    x, W = _operands(shape, tokens, dtype, device)
    sparse = W * NM(2, 4).mask(W)
    makers = {"dense": partial(_dense, x, W), "masked": partial(_dense, x, sparse)}
    makers |= {backend: partial(_packed, x, sparse, backend) for backend in BACKENDS}
    products: dict[str, Product] = {}
    rows: list[Row] = []
    for way, make in makers.items():
        reason = _why_absent(way, shape, dtype, device) if way in BACKENDS else None
        if reason is None:
            try:
                product = make()
                product.call()
                products[way] = product
            except (
                RuntimeError,
                NotImplementedError,
                UserError,
            ) as error:  # beyond the stated limits
                reason = f"PyTorch refused: {str(error).splitlines()[0]}"
        if reason is not None:
            rows.append(where | {"way": way, "absent": reason})
    errors = {way: _error(product, x) for way, product in products.items()}
    for way in [way for way, error in errors.items() if not error <= TOLERANCE[dtype]]:
        rows.append(where | {"way": way, "absent": f"its output is wrong: relative error {errors[way]:.1e}"})
        del products[way]
    if "dense" not in products:
        return rows
    seconds = time_interleaved(
        {way: product.call for way, product in products.items()},
        warmup=settings.warmup,
        repeats=settings.repeats,
        budget=BUDGET_SECONDS,
        device=device,
        timer=timer,
    )
    for way, own in seconds.items():
        kernels = kernels_of(products[way].call, device)
        rows.append(
            where
            | {"way": way}
            | with_spread(own)
            | {"speedup_over_dense": paired_ratio(seconds["dense"], own), "relative_error": float(f"{errors[way]:.3g}")}
            | {"kernels": kernels, "sparse_kernels": are_sparse(kernels)}
            | roofline(shape, tokens, dtype, way, float(np.median(own)), ceilings)
        )
    return rows


def roofline(
    shape: tuple[int, int], tokens: int, dtype: str, way: str, seconds: float, ceilings: Ceilings
) -> dict[str, Any]:
    """Return bytes, operations, the lower bound of the time that follows from the ceilings, and the share reached.

    In the layout of its kernels a 2:4 matrix has half the values and two bits for each of them; in a dense kernel it is
    dense. The operations of a 2:4 product are counted as those of the dense product.
    """
    out_features, in_features = shape
    size = DTYPES[dtype].itemsize
    values = out_features * in_features
    matrix = values / 2 * (size + 2 / 8) if way in BACKENDS else values * size
    result = 4 if dtype == "int8" else size
    moved = matrix + tokens * in_features * size + tokens * out_features * result
    operations = 2.0 * tokens * values
    by_memory = moved / ceilings.bandwidth
    by_speed = operations / ceilings.operations.get(way, ceilings.operations["dense"])
    limit = max(by_memory, by_speed)
    return {
        "bytes": round(moved),
        "operations": round(operations),
        "limit_ms": float(f"{1e3 * limit:.4g}"),
        "bound": "memory" if by_memory >= by_speed else "speed",
        "share": round(limit / seconds, 4) if seconds else 0.0,
    }


def _operands(shape: tuple[int, int], tokens: int, dtype: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random inputs `(tokens, in)` and a random matrix `(out, in)` without zeros; small integers for int8."""
    draw = torch.Generator().manual_seed(0)
    sizes = (tokens, shape[1]), shape
    if dtype == "int8":
        x, W = (torch.randint(1, 8, size, generator=draw, dtype=torch.int8) for size in sizes)
    else:
        x, W = (torch.randn(size, generator=draw).to(DTYPES[dtype]) for size in sizes)
    return x.to(device), W.to(device)


def _dense(x: Tensor, W: Tensor) -> Product:
    if x.dtype == torch.int8:
        return Product(partial(torch._int_mm, x, W.t()), W)
    return Product(partial(F.linear, x, W), W)


def _packed(x: Tensor, W: Tensor, backend: str) -> Product:
    packed: Any = pack_matrix(W, backend)
    if x.dtype == torch.int8:
        multiply = partial(torch._cslt_sparse_mm, packed.packed, x.t(), out_dtype=torch.int32)
        algorithm = torch._cslt_sparse_mm_search(packed.packed, x.t(), out_dtype=torch.int32)
        return Product(partial(multiply, alg_id=algorithm), W, transposed=True)
    if backend == "cusparselt":
        # F.linear asks for a transposed result, so search for an algorithm for that
        algorithm = torch._cslt_sparse_mm_search(packed.packed, x.t(), transpose_result=True)
        packed = pack_matrix(W, backend, algorithm=algorithm)
    return Product(partial(F.linear, x, packed), W)


def _why_absent(backend: str, shape: tuple[int, int], dtype: str, device: torch.device) -> str | None:
    if reason := why_no_gpu(device):
        return reason
    if dtype == "int8" and backend == "cutlass":
        return "PyTorch offers products of 8-bit integers with 2:4 matrices through cuSPARSELt"
    return why_not(shape, DTYPES[dtype], backend)


def _error(product: Product, x: Tensor) -> float:
    """Return the relative error of the output's first and last rows, compared with the product in fp64."""
    rows = torch.cat([x[:8], x[-8:]]).double().cpu()
    output = product.call()
    output = output.t() if product.transposed else output
    found = torch.cat([output[:8], output[-8:]]).double().cpu()
    exact = rows @ product.W.double().cpu().t()
    return float((found - exact).norm() / exact.norm())


# --- ceilings ----------------------------------------------------------------------------------------------------


def _ceiling_rows(dtype: str, device: torch.device, settings: Matrices, timer: Timer) -> list[Row]:
    """Return the rates of the fastest copy and of the fastest large product in each way, as rows."""
    size = CEILING_SIZE[device.type]
    x, W = _operands((size, size), size, dtype, device)
    calls: dict[str, Call] = {"dense": _dense(x, W).call}
    sparse = W * NM(2, 4).mask(W)
    for backend in BACKENDS:
        if _why_absent(backend, (size, size), dtype, device) is None:
            try:
                call = _packed(x, sparse, backend).call
                call()
            except (RuntimeError, NotImplementedError):  # no ceiling at this size; the dense one is used
                continue
            calls[backend] = call
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    calls["copy"] = partial(target.copy_, source)
    seconds = time_interleaved(
        calls,
        warmup=settings.warmup,
        repeats=settings.repeats,
        budget=BUDGET_SECONDS,
        device=device,
        timer=timer,
    )
    rows: list[Row] = []
    for way, own in seconds.items():
        best = float(own.min())
        if way == "copy":
            rows.append({"dtype": dtype, "way": way, "bytes_per_second": float(f"{2 * source.numel() / best:.4g}")})
        else:
            rows.append({"dtype": dtype, "way": way, "operations_per_second": float(f"{2.0 * size**3 / best:.4g}")})
    return rows


def _ceilings(rows: list[Row]) -> Ceilings:
    return Ceilings(
        next(row["bytes_per_second"] for row in rows if row["way"] == "copy"),
        {row["way"]: row["operations_per_second"] for row in rows if row["way"] != "copy"},
    )
