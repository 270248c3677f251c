"""The machine's own limits and the proof that sparse kernels run: what the other parts are read against."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from nxm.errors import UserError, first_line
from nxm.export.cusparselt import compress, multiply
from nxm.measure.bench.products import two_of_four
from nxm.measure.bench.unit import NO_CARE, Care, Unit, difference, kernel_row, time_replays
from nxm.measure.kernels import launched
from nxm.measure.timing import Row, with_spread
from nxm.replay import Replay

COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}
PROOF = (3072, 768, 4096)  # out, in, tokens


def units(device: torch.device) -> list[Unit]:
    """Return the copy of memory, and one dense and one 2:4 product with their kernels."""
    proof = Unit("proof", "proof", 12.0, 5.0, (), partial(measure_proof, device))
    return [proof, Unit("card", "copy", 11.0, 3.0, (), partial(measure_copy, device))]


def measure_copy(device: torch.device, care: Care = NO_CARE) -> list[Row]:
    """Return the rate of a copy within the device's memory, bytes read and written."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    own = time_replays({"copy": Replay([partial(target.copy_, source)], device)}, 15, 1.0)["copy"]
    rate = 2 * source.numel() / float(own.min())
    return [{"part": "card", "way": "copy", "bytes_per_second": float(f"{rate:.4g}")} | with_spread(own)]


def measure_proof(device: torch.device, care: Care = NO_CARE) -> list[Row]:
    """Run a product of the same 2:4 matrix by the dense and by the sparse kernel, once, and name what ran.

    Nothing is timed, so that a hardware profiler (`ncu`) counts these launches and few others.
    """
    out_features, in_features, tokens = PROOF
    rows: list[Row] = []
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        where: Row = {"part": "proof", "dtype": name, "shape": [out_features, in_features], "tokens": tokens}
        x = torch.randn(tokens, in_features, device=device, dtype=dtype)
        W = two_of_four(torch.randn(out_features, in_features, device=device, dtype=dtype))
        try:
            packed = compress(W)
            error = difference(multiply(packed, x), F.linear(x, W))
        except (RuntimeError, AttributeError, UserError) as reason:
            rows.append(where | {"way": "2:4", "absent": first_line(reason)})
            continue
        stored = packed.numel() * packed.element_size() / (W.numel() * W.element_size())
        about: Row = {"difference": error, "stored_share": round(stored, 4)}
        rows.append(where | {"way": "dense"} | kernel_row(launched(partial(F.linear, x, W), device)))
        rows.append(where | {"way": "2:4"} | about | kernel_row(launched(partial(multiply, packed, x), device)))
    return rows
