"""Products of single matrices, dense and 2:4, in the types that a GPU, or a CPU, multiplies fast.

A product takes `tokens` inputs through a matrix `(out, in)`. On a GPU its ways to multiply are captured in CUDA graphs,
each over several sets of operands that together exceed the cache. Ways are timed interleaved. The result of each is
compared with the exact one; a way whose output is wrong gets a row without a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nxm.errors import UserError, first_line
from nxm.export import fp8, int8
from nxm.export.cusparselt import DEFAULT_PLAN, PATTERN, SEARCHES, Plan, Search, compress, multiply, search
from nxm.measure.bench.unit import (
    NO_CARE,
    Care,
    Unit,
    capture_row,
    difference,
    kernel_row,
    kernels_in,
    time_replays,
    timed_row,
)
from nxm.measure.timing import Row
from nxm.replay import Call, Replay

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
DEVICE_DTYPES = {"cuda": ("bf16", "fp16", "fp8", "int8"), "cpu": ("fp32", "bf16", "int8")}
# relative errors; in the 8-bit types results are rounded to bf16
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3, "fp8": 1e-2, "int8": 1e-2}
OPERAND_BYTES = 160 * 2**20  # of a graph: beyond the cache of any GPU
SETS = (2, 24)  # of operands in a graph, at least and at most
REPEATS, BUDGET_SECONDS = 25, 1.0
UNIT_SECONDS = {"cuda": 1.6, "cpu": 2.0}

MODELS = {  # (out, in) of a layer's matrices: Q, K and V in one product, attention output, FFN1, FFN2
    "MiniLM": ((1152, 384), (384, 384), (1536, 384), (384, 1536)),
    "BERT-base": ((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    "BERT-large, ViT-L": ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)),
}
SQUARES = {"cuda": {8192: 10.0, 4096: 10.0, 2048: 5.0, 1024: 5.0}, "cpu": {2048: 10.0}}  # out, in, tokens -> worth
TOKENS = {"cuda": {16384: 8.0, 4096: 6.0, 1024: 4.0, 512: 3.0}, "cpu": {1024: 8.0, 128: 6.0, 16: 4.0}}


@dataclass
class Ways:
    """The ways to compute a product: calls over all sets of operands, and a way's exact result.

    Attributes:
        calls: way -> a function that makes its calls, and may fail.
        exact: way, index of a call -> the exact first and last rows of that call's result, fp64.
        plans: way -> the algorithm that cuSPARSELt's search found, filled when the calls are made.
    """

    calls: dict[str, Callable[[], list[Call]]]
    exact: Callable[[str, int], Tensor]
    plans: dict[str, Plan] = field(default_factory=dict)


def units(device: torch.device) -> list[Unit]:
    """Return all products; those in which 2:4 can gain, the large ones, are worth most."""
    large = (*MODELS["BERT-base"], *MODELS["BERT-large, ViT-L"])
    tokens_worth = TOKENS[device.type].items()
    cases = {(size, size, size): worth for size, worth in SQUARES[device.type].items()}
    cases |= {(*shape, tokens): worth for tokens, worth in tokens_worth for shape in large}
    cases |= {(*shape, tokens): worth / 4 for tokens, worth in tokens_worth for shape in MODELS["MiniLM"]}
    return [
        Unit(
            "products",
            f"product {dtype} {out_features}x{in_features} {tokens}",
            worth,
            UNIT_SECONDS[device.type],
            (dtype,),
            partial(measure_product, dtype, (out_features, in_features), tokens, device),
        )
        for (out_features, in_features, tokens), worth in cases.items()
        for dtype in DEVICE_DTYPES[device.type]
    ]


def measure_product(
    dtype: str, shape: tuple[int, int], tokens: int, device: torch.device, care: Care = NO_CARE
) -> list[Row]:
    """Time one product in every way and return a row per way.

    `speedup` is over the fastest dense way in the same rounds, which `reference` names.
    """
    where: Row = {"part": "products", "dtype": dtype, "shape": list(shape), "tokens": tokens}
    ways = ways_to_multiply(dtype, shape, tokens, device, SEARCHES[care.get(dtype, 0)])
    replays: dict[str, Replay] = {}
    errors: dict[str, float] = {}
    rows: list[Row] = []
    for way, make in ways.calls.items():
        try:
            replay = Replay(make(), device)
            errors[way] = max(
                difference(_ends(replay.calls[0]()).cpu(), ways.exact(way, 0)),
                difference(_ends(replay.output).cpu(), ways.exact(way, -1)),  # of the graph, whose time counts
            )
            if not errors[way] <= TOLERANCE[dtype]:
                raise RuntimeError(f"its output is wrong: relative error {errors[way]:.1e}")
            replays[way] = replay
        except (RuntimeError, AttributeError, UserError) as error:
            rows.append(where | {"way": way, "absent": first_line(error)})
    dense = [way for way in replays if way.startswith("dense")]
    if not dense:
        return rows
    seconds = time_replays(replays, REPEATS, BUDGET_SECONDS)
    reference = min(dense, key=lambda way: float(np.median(seconds[way])))
    operations = 2.0 * tokens * shape[0] * shape[1]
    for way, replay in replays.items():
        row = where | {"way": way, "reference": reference} | timed_row(seconds[way], seconds[reference], operations)
        row |= {"relative_error": errors[way]} | capture_row(replay)
        if way in ways.plans:
            row |= {"algorithm": list(ways.plans[way]), "care": care.get(dtype, 0)}
        rows.append(row | kernel_row(kernels_in(replay)))
    return rows


def ways_to_multiply(
    dtype: str, shape: tuple[int, int], tokens: int, device: torch.device, search: Search = search
) -> Ways:
    """Return the ways to compute a product in a type, on random normal operands (8 bits: scaled by row)."""
    kind = DTYPES[dtype]
    out_features, in_features = shape
    moved = kind.itemsize * (tokens * in_features + out_features * in_features) + 2 * tokens * out_features
    count = min(max(SETS[0], -(-OPERAND_BYTES // moved)), SETS[1]) if device.type == "cuda" else 1
    draw = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, device=device, generator=draw)
    xs = [random(tokens, in_features) for _ in range(count)]
    Ws = [random(out_features, in_features) * in_features**-0.5 for _ in range(count)]
    sparse = [two_of_four(W) for W in Ws]
    if dtype == "int8":
        return _integer_ways(xs, Ws, sparse, search)
    if dtype == "fp8":
        return _fp8_ways(xs, Ws, sparse, search)
    halves = ([value.to(kind) for value in values] for values in (xs, Ws, sparse))
    return _half_ways(*halves, search)


def two_of_four(W: Tensor) -> Tensor:
    """Return a matrix without the two smallest of each group of four, as NM(2, 4) leaves it but on the device."""
    return torch.where(PATTERN.mask(W), W, 0.0)


def _ends(y: Tensor) -> Tensor:
    return torch.cat([y[:8].double(), y[-8:].double()])


@contextmanager
def _blas(library: str) -> Iterator[None]:
    """Let cuBLAS or cuBLASLt multiply; PyTorch keeps the choice in a global setting."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(library)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def _by_cublaslt(call: Call) -> object:
    with _blas("cublaslt"):
        return call()


def _half_ways(xs: list[Tensor], Ws: list[Tensor], sparse: list[Tensor], search: Search) -> Ways:
    dense: list[Call] = [partial(F.linear, x, W) for x, W in zip(xs, Ws, strict=True)]

    @cache
    def packed() -> list[Tensor]:
        return list(map(compress, sparse))

    def products(plan: Plan) -> list[Call]:
        return [partial(multiply, P, x, None, plan) for P, x in zip(packed(), xs, strict=True)]

    def searched() -> list[Call]:
        ways.plans["2:4"] = search(packed()[0], xs[0], None, None)
        return products(ways.plans["2:4"])

    def exact(way: str, i: int) -> Tensor:
        return _ends(xs[i]).cpu() @ (Ws if way.startswith("dense") else sparse)[i].double().cpu().t()

    calls: dict[str, Callable[[], list[Call]]] = {"dense": lambda: dense}
    if xs[0].device.type == "cuda":
        calls["dense cuBLASLt"] = lambda: [partial(_by_cublaslt, call) for call in dense]
    calls["masked"] = lambda: [partial(F.linear, x, W) for x, W in zip(xs, sparse, strict=True)]
    ways = Ways(calls | {"2:4": searched, "2:4 algorithm 0": partial(products, DEFAULT_PLAN)}, exact)
    return ways


def _integer_ways(xs: list[Tensor], Ws: list[Tensor], sparse: list[Tensor], search: Search) -> Ways:
    x, W, S = ([int8.quantise(value)[0] for value in values] for values in (xs, Ws, sparse))

    @cache
    def packed() -> list[Tensor]:
        return list(map(compress, S))

    def products(way: str, out_dtype: torch.dtype) -> list[Call]:
        ways.plans[way] = plan = search(packed()[0], x[0], None, out_dtype)
        return [partial(multiply, P, v, None, plan, out_dtype) for P, v in zip(packed(), x, strict=True)]

    def exact(way: str, i: int) -> Tensor:
        return _ends(x[i]).cpu() @ (W if way.startswith("dense") else S)[i].double().cpu().t()

    ways = Ways(
        {
            "dense": lambda: [partial(torch._int_mm, v, M.t()) for v, M in zip(x, W, strict=True)],
            "masked": lambda: [partial(torch._int_mm, v, M.t()) for v, M in zip(x, S, strict=True)],
            "2:4": partial(products, "2:4", torch.bfloat16),
            "2:4 to int32": partial(products, "2:4 to int32", torch.int32),
        },
        exact,
    )
    return ways


def _fp8_ways(xs: list[Tensor], Ws: list[Tensor], sparse: list[Tensor], search: Search) -> Ways:
    x, W, S = ([fp8.quantise(value) for value in values] for values in (xs, Ws, sparse))
    one = torch.ones((), device=xs[0].device)
    scaled: Any = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    def by_row(matrices: list[tuple[Tensor, Tensor]]) -> list[Call]:
        return [partial(fp8.dense_product, *v, *M) for v, M in zip(x, matrices, strict=True)]

    def cusparselt() -> list[Call]:
        packed = [compress(M) for M, _ in S]
        ways.plans["2:4"] = plan = search(packed[0], x[0][0], None, torch.bfloat16)
        return [partial(multiply, P, v, None, plan, torch.bfloat16) for P, (v, _) in zip(packed, x, strict=True)]

    def cutlass() -> list[Call]:
        packed = [fp8.pack_cutlass(M) for M, _ in S]
        return [partial(fp8.cutlass_product, *v, P, s) for v, P, (_, s) in zip(x, packed, S, strict=True)]

    def exact(way: str, i: int) -> Tensor:
        (M, M_scale), (v, v_scale) = (W if way.startswith("dense") else S)[i], x[i]
        y = _ends(v).cpu() @ M.double().cpu().t()
        return y if way in ("dense", "2:4") else y * (_ends(v_scale).cpu() * M_scale.double().cpu().t())

    ways = Ways(
        {
            "dense": lambda: [partial(scaled, v, M.t()) for (v, _), (M, _) in zip(x, W, strict=True)],
            "dense by row": partial(by_row, W),
            "masked by row": partial(by_row, S),
            "2:4": cusparselt,
            "2:4 by row": cutlass,
        },
        exact,
    )
    return ways
