"""Linear layers in 8-bit integers for a GPU, dense or 2:4. (For CPUs: `nxm.export.onnx.write_int8`.)

Weights and activations are quantised symmetrically, weights once per output channel, activations at each call per row:

    W_q = round(W / s_W),  X_q = round(X / s_X),  Y = s_X s_W' * (X_q W_q') + b

Zeros stay zeros, so that a 2:4 matrix is 2:4 in integers too. Products of integers are exact, so that dense and 2:4
kernels give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

LEVELS = 127
ROWS = 32  # inputs are padded to a multiple: CUDA's dense product needs more than 16 rows, cuSPARSELt multiples of 16


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to 8-bit integers with its largest magnitude at 127; a row of zeros stays zeros.

    Args:
        rows: `(n, d)`, any floating dtype.

    Returns: integers `(n, d)`, int8, and their scales `(n, 1)`, fp32.
    """
    scale = (rows.abs().amax(dim=1, keepdim=True).float() / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows.float() / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A Linear layer that multiplies 8-bit integers, for inference; types of inputs and outputs are unchanged.

    Args:
        linear: a layer in fp32, bf16 or fp16.
        pack: converts the integers `(out, in)` into cuSPARSELt's 2:4 layout; None: the layer is dense, for any device.
    """

    def __init__(self, linear: nn.Linear, pack: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        W, scale = quantise(linear.weight.detach())
        self.packed = pack is not None
        self.register_buffer("matrix", W if pack is None else pack(W))
        self.register_buffer("scale", scale.t())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise(x.reshape(-1, x.shape[-1]))
        y = self._product(rows) * (scale * self.scale)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def _product(self, rows: Tensor) -> Tensor:
        padded = F.pad(rows, (0, 0, 0, -rows.shape[0] % ROWS))
        if self.packed:
            product = torch._cslt_sparse_mm(self.matrix, padded.t(), out_dtype=torch.int32).t()
        else:
            product = torch._int_mm(padded, self.matrix.t())
        return product[: rows.shape[0]]


def use_int8(
    model: PreTrainedModel, names: Iterable[str], pack: Callable[[str], Callable[[Tensor], Tensor]] | None = None
) -> None:
    """Replace the Linear layers of the named weights by `Int8Linear`, in place.

    Args:
        pack: returns for a name the function that packs its matrix; None: all stay dense.
    """
    for name in names:
        module = name.removesuffix(".weight")
        model.set_submodule(module, Int8Linear(model.get_submodule(module), pack(name) if pack else None))
