"""Linear layers in 8-bit floating point (e4m3) for a GPU, dense or 2:4: Hopper's and newer.

Weights are scaled once per output channel and activations at each call per row, so that the largest magnitude of a row
is e4m3's largest number; the scales are multiplied in after the product, as in `nxm.export.int8`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxm.errors import UserError, first_line
from nxm.export.cusparselt import DEFAULT_PLAN, FP8, SEARCH_ROWS, Plan, Search, compress, holds, multiply, search
from nxm.export.int8 import row_scales

LARGEST = torch.finfo(FP8).max  # 448
ROWS = 16

Kernel = Literal["dense", "cusparselt", "cutlass"]


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Convert each row to e4m3 with its largest magnitude at 448; a row of zeros stays zeros.

    Args:
        rows: `(n, d)`, any floating dtype.

    Returns: `(n, d)`, float8_e4m3fn, and their scales `(n, 1)`, fp32.
    """
    scale = row_scales(rows, LARGEST)
    return (rows.float() / scale).to(FP8), scale


def why_no_cutlass() -> str | None:
    """Return the reason why torchao's 2:4 kernel for FP8 (CUTLASS, Hopper alone) cannot be used, or None."""
    try:
        import torchao.ops  # noqa: F401  declares the operators and loads their kernels
    except (ImportError, OSError) as error:
        return f"torchao's kernels: {first_line(error)}"
    if not hasattr(torch.ops.torchao, "rowwise_scaled_linear_sparse_cutlass_f8f8"):
        return "this torchao has no 2:4 kernel for FP8"
    return None


def dense_product(x: Tensor, x_scale: Tensor, W: Tensor, W_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(x W') * x_scale * W_scale' + bias` in bf16 by PyTorch's dense kernel, which scales by row.

    Args:
        x: `(rows, in)`, FP8, and its scales `(rows, 1)`, fp32.
        W: `(out, in)`, FP8, and its scales `(out, 1)`, fp32.
    """
    return torch._scaled_mm(
        x, W.t(), scale_a=x_scale, scale_b=W_scale.t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def pack_cutlass(W: Tensor, where: str = "matrix") -> tuple[Tensor, Tensor]:
    """Pack a 2:4 matrix `(out, in)` in FP8 for torchao's kernel: its values and their positions."""
    if reason := why_no_cutlass():
        raise UserError(f"{where}: {reason}")
    if not holds(W):
        raise UserError(f"{where} is not 2:4: a group of four has more than two values")
    return torch.ops.torchao.to_sparse_semi_structured_cutlass_sm9x_f8(W)


def cutlass_product(
    x: Tensor, x_scale: Tensor, packed: tuple[Tensor, Tensor], W_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return `dense_product`'s result by torchao's 2:4 kernel, which scales by row too."""
    return torch.ops.torchao.rowwise_scaled_linear_sparse_cutlass_f8f8(
        x, x_scale.squeeze(1), *packed, W_scale.squeeze(1), bias, torch.bfloat16
    )


class Fp8Linear(nn.Module):
    """A Linear layer that multiplies FP8 numbers, for inference; inputs and outputs are in bf16.

    Args:
        linear: a layer in bf16.
        kernel: "dense"; for a 2:4 matrix "cusparselt", or "cutlass", torchao's, on Hopper alone.
        rows, plan: as in `nxm.export.cusparselt.Linear24`, for its product.
        where: name of the matrix, for messages.
    """

    def __init__(
        self,
        linear: nn.Linear,
        kernel: Kernel = "dense",
        *,
        rows: int = SEARCH_ROWS,
        plan: Plan | None = None,
        where: str = "matrix",
    ) -> None:
        super().__init__()
        W, scale = quantise(linear.weight.detach())
        self.in_features, self.out_features, self.kernel = linear.in_features, linear.out_features, kernel
        self.plan = plan or DEFAULT_PLAN
        self.positions: Tensor | None
        if kernel == "cutlass":
            matrix, positions = pack_cutlass(W, where)
        else:
            matrix, positions = (compress(W, where) if kernel == "cusparselt" else W), None
        self.register_buffer("matrix", matrix)
        self.register_buffer("positions", positions)
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else linear.bias.detach()
        if kernel == "cusparselt" and plan is None:
            self.tune(rows)

    def tune(self, rows: int, search: Search = search) -> None:
        """Search for cuSPARSELt's fastest algorithm for inputs of so many rows; other kernels have none to choose."""
        if self.kernel == "cusparselt":
            x, _ = quantise(torch.randn(rows, self.in_features, device=self.matrix.device))
            self.plan = search(self.matrix, x, None, torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise(x.reshape(-1, x.shape[-1]))
        return self._product(rows, scale).to(x.dtype).reshape(*x.shape[:-1], -1)

    def _product(self, rows: Tensor, scale: Tensor) -> Tensor:
        if self.kernel == "cutlass":
            assert self.positions is not None
            return cutlass_product(rows, scale, (self.matrix, self.positions), self.scale, self.bias)
        if self.kernel == "cusparselt":
            y = multiply(self.matrix, rows, plan=self.plan, out_dtype=torch.bfloat16) * (scale * self.scale.t())
            return y if self.bias is None else y + self.bias
        padded, scales = (F.pad(part, (0, 0, 0, -rows.shape[0] % ROWS)) for part in (rows, scale))
        return dense_product(padded, scales, self.matrix, self.scale, self.bias)[: rows.shape[0]]
