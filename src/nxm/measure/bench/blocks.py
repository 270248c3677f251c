"""Products with block-sparse matrices (BSR), as block pruning leaves them, against dense ones.

On a GPU by PyTorch's Triton kernel, with the best of CONFIGURATIONS on this card; on a CPU by PyTorch's own.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nxm.errors import first_line
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
from nxm.replay import Call, Replay, fastest

SHAPES = ((3072, 768), (768, 3072))  # (out, in): BERT-base's FFN
BLOCKS, DENSITIES = (32, 64), (0.2, 0.4)
# tokens -> worth; with more a CPU takes seconds for a call
TOKENS = {"cuda": {16384: 5.8, 2048: 2.6}, "cpu": {256: 5.8, 32: 2.6}}
CONFIGURATIONS = ((2, 1), (4, 1), (4, 3), (8, 3))  # Triton's warps and stages
SETS = 8  # of inputs in a CUDA graph, so that its launch counts little
REPEATS, BUDGET_SECONDS = 25, 1.0
UNIT_SECONDS = {"cuda": 8.0, "cpu": 4.0}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


def units(device: torch.device) -> list[Unit]:
    """Return each shape at each number of tokens."""
    return [
        Unit(
            "blocks",
            f"blocks {shape[0]}x{shape[1]} {tokens}",
            worth,
            UNIT_SECONDS[device.type],
            (),
            partial(measure_blocks, shape, tokens, device),
        )
        for tokens, worth in TOKENS[device.type].items()
        for shape in SHAPES
    ]


def measure_blocks(shape: tuple[int, int], tokens: int, device: torch.device, care: Care = NO_CARE) -> list[Row]:
    """Time a dense product and block-sparse ones of each block size and density; return a row per way."""
    dtype = DTYPES[device.type]
    where: Row = {"part": "blocks", "dtype": str(dtype).removeprefix("torch."), "shape": list(shape), "tokens": tokens}
    draw = torch.Generator(device).manual_seed(0)
    count = SETS if device.type == "cuda" else 1
    xs = [torch.randn(tokens, shape[1], device=device, generator=draw).to(dtype) for _ in range(count)]
    W = (torch.randn(shape, device=device, generator=draw) * shape[1] ** -0.5).to(dtype)
    rows: list[Row] = []
    replays = {"dense": Replay([partial(F.linear, x, W) for x in xs], device)}
    described: dict[str, Row] = {"dense": {}}
    shares = {"dense": 1.0}  # of the weights that are left
    for block in BLOCKS:
        for density in DENSITIES:
            way = f"{block}x{block} at {density:g}"
            sparse, kept = keep_blocks(W, block, density, draw)
            about: Row = {"block": block, "density": round(kept, 4)}
            try:
                calls, configuration = _block_products(xs, sparse.to_sparse_bsr((block, block)))
                error = difference(calls[0]()[:8], xs[0][:8] @ sparse.t())
                if not error <= 2e-2:
                    raise RuntimeError(f"its output is wrong: relative error {error:.1e}")
                replay = Replay(calls, device)
                error = max(error, difference(replay.output[:8], xs[-1][:8] @ sparse.t()))
                if not error <= 2e-2:
                    raise RuntimeError(f"its output is wrong in a CUDA graph: relative error {error:.1e}")
                replays[way], shares[way] = replay, kept
                described[way] = about | configuration | {"relative_error": error}
            except (RuntimeError, ImportError, AttributeError, ValueError) as reason:
                rows.append(where | about | {"way": way, "absent": first_line(reason)})
    seconds = time_replays(replays, REPEATS, BUDGET_SECONDS)
    for way, replay in replays.items():
        row = where | {"way": way} | described[way] | capture_row(replay)
        row |= timed_row(seconds[way], seconds["dense"], 2.0 * tokens * shape[0] * shape[1] * shares[way])
        rows.append(row | kernel_row(kernels_in(replay)))
    return rows


def keep_blocks(W: Tensor, block: int, density: float, draw: torch.Generator) -> tuple[Tensor, float]:
    """Return a copy of W in which about a share of the blocks is left, drawn at random, and the share that is.

    Each row of blocks keeps as many.
    """
    block_rows, block_columns = W.shape[0] // block, W.shape[1] // block
    kept = max(1, round(density * block_columns))
    order = torch.rand(block_rows, block_columns, device=W.device, generator=draw).argsort(dim=1)
    mask = (order < kept).repeat_interleave(block, 0).repeat_interleave(block, 1)
    return W * mask, kept / block_columns


def _block_products(xs: list[Tensor], W: Tensor) -> tuple[list[Call], Row]:
    """Return the products of each x with W', and the configuration of their kernel."""
    if xs[0].device.type != "cuda":
        return [partial(F.linear, x, W) for x in xs], {}
    from torch.sparse._triton_ops import bsr_dense_addmm  # no public name takes a configuration

    tokens, block = xs[0].shape[0], W.values().shape[-1]
    out = torch.empty(W.shape[0], tokens, dtype=W.dtype, device=W.device)

    def product(x: Tensor, warps: int, stages: int) -> Tensor:
        meta = {"SPLIT_N": tokens // block, "GROUP_SIZE_ROW": 4, "num_warps": warps, "num_stages": stages}
        return bsr_dense_addmm(out, W, x.t(), beta=0, alpha=1, out=out, meta=meta).t()

    calls: dict[str, list[Call]] = {}
    for warps, stages in CONFIGURATIONS:
        try:
            product(xs[0], warps, stages)
        except RuntimeError:  # more shared memory than the card has
            continue
        calls[f"{warps} {stages}"] = [partial(product, x, warps, stages) for x in xs]
    if not calls:
        raise RuntimeError("Triton could run none of its configurations")
    seconds = fastest(calls, W.device)
    best = min(seconds, key=lambda name: seconds[name])
    warps, stages = map(int, best.split())
    return calls[best], {"warps": warps, "stages": stages}
