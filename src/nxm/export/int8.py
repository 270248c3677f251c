"""Linear layers in 8-bit integers for a GPU, dense or 2:4. (For CPUs: `nxm.export.onnx.write_int8`.)

Weights and activations are quantised symmetrically, weights once per output channel, activations at each call per row:

    W_q = round(W / s_W),  X_q = round(X / s_X),  Y = s_X s_W' * (X_q W_q') + b

Zeros stay zeros, so that a 2:4 matrix is 2:4 in integers too. Sums of products of integers are exact. cuSPARSELt
rounds them to the layer's type before they leave the chip, which halves what a product writes; the dense kernel writes
32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm.export.cusparselt import DEFAULT_PLAN, SEARCH_ROWS, Plan, Search, compress, multiply, search

LEVELS = 127
ROWS = 32  # inputs of the dense product are padded to a multiple: CUDA's needs more than 16 rows


def row_scales(rows: Tensor, largest: float) -> Tensor:
    """Return the scales `(n, 1)`, fp32, that bring the largest magnitude of each row `(n, d)` to a number; never 0."""
    return (rows.abs().amax(dim=1, keepdim=True).float() / largest).clamp(min=torch.finfo(torch.float32).tiny)


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to 8-bit integers with its largest magnitude at 127; a row of zeros stays zeros.

    Args:
        rows: `(n, d)`, any floating dtype.

    Returns: integers `(n, d)`, int8, and their scales `(n, 1)`, fp32.
    """
    scale = row_scales(rows, LEVELS)
    return (rows.float() / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A Linear layer that multiplies 8-bit integers, for inference; types of inputs and outputs are unchanged.

    Args:
        linear: a layer in fp32, bf16 or fp16.
        sparse: multiply by cuSPARSELt; the layer's matrix must be 2:4 and on a GPU. False: dense, for any device.
        rows, plan: as in `nxm.export.cusparselt.Linear24`, for the 2:4 product.
        where: name of the matrix, for messages.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        sparse: bool = False,
        rows: int = SEARCH_ROWS,
        plan: Plan | None = None,
        where: str = "matrix",
    ) -> None:
        super().__init__()
        W, scale = quantise(linear.weight.detach())
        self.in_features, self.out_features, self.sparse = linear.in_features, linear.out_features, sparse
        # a sum of 768 products needs 24 bits: more than fp16's range, while bf16 rounds it as it rounds the output
        self._out_dtype = torch.bfloat16 if linear.weight.dtype == torch.bfloat16 else torch.int32
        self.register_buffer("matrix", compress(W, where) if sparse else W)
        self.register_buffer("scale", scale.t())
        self.bias = linear.bias
        self.plan = plan or DEFAULT_PLAN
        if sparse and plan is None:
            self.tune(rows)

    def tune(self, rows: int, search: Search = search) -> None:
        """Search for the fastest algorithm for inputs of so many rows."""
        x = torch.randint(-LEVELS, LEVELS + 1, (rows, self.in_features), device=self.matrix.device, dtype=torch.int8)
        self.plan = search(self.matrix, x, None, self._out_dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise(x.reshape(-1, x.shape[-1]))
        y = self._product(rows) * (scale * self.scale)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def _product(self, rows: Tensor) -> Tensor:
        if self.sparse:
            return multiply(self.matrix, rows, plan=self.plan, out_dtype=self._out_dtype)
        padded = F.pad(rows, (0, 0, 0, -rows.shape[0] % ROWS))
        return torch._int_mm(padded, self.matrix.t())[: rows.shape[0]]


def use_int8(model: PreTrainedModel, names: Iterable[str], *, sparse: bool = False, rows: int = SEARCH_ROWS) -> None:
    """Replace the Linear layers of the named weights by `Int8Linear`, in place.

    Args:
        sparse, rows: as in `Int8Linear`.
    """
    for name in names:
        module = name.removesuffix(".weight")
        linear = model.get_submodule(module)
        model.set_submodule(module, Int8Linear(linear, sparse=sparse, rows=rows, where=name))
