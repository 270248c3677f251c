"""2:4 products by cuSPARSELt: a packed matrix, the search for its fastest algorithm, and a Linear layer.

Calls the operators below PyTorch's tensor subclass, which are the same from torch 2.11 to 2.13. The subclass is not
used: in 2.11 its products come back transposed, so that attention falls back to its slow kernel; it takes half of the
search's result; and each of its calls is dispatched in Python.

A product is row-major: `y = x W' + b` with x `(rows, in)`, W `(out, in)` and y `(rows, out)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.replay import Call, fastest
from nxm.sets.nm import NM

PATTERN = NM(2, 4)
FP8 = torch.float8_e4m3fn
# shapes must be multiples of these (cuSPARSELt's documentation; torch's tensor subclass has the same limits)
MULTIPLES = {torch.bfloat16: 16, torch.float16: 16, torch.int8: 32, FP8: 32}
MOST_ALGORITHMS = 64  # their numbers are below it; the library does not tell how many it has without a search
SEARCH_ROWS = 4096  # rows for which the algorithm is searched when nothing is known of the inputs


class Plan(NamedTuple):
    """An algorithm of cuSPARSELt and its split of the inner dimension, as the search returns them."""

    algorithm: int = 0
    split_k: int = 1
    split_k_mode: int = -1


DEFAULT_PLAN = Plan()


def why_no_gpu(device: torch.device) -> str | None:
    """Return the reason why this device cannot run 2:4 kernels, or None if it can."""
    if device.type != "cuda":
        return f"no 2:4 kernel in PyTorch for {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0, this GPU has {major}.{minor}"
    if not torch.backends.cusparselt.is_available():
        return "this PyTorch was built without cuSPARSELt"
    return None


def why_not(shape: tuple[int, int] | torch.Size, dtype: torch.dtype) -> str | None:
    """Return the reason why cuSPARSELt cannot pack a matrix `(out, in)` of this dtype, or None if it can."""
    if dtype not in MULTIPLES:
        return f"cuSPARSELt has no 2:4 kernel for {dtype}"
    multiple = MULTIPLES[dtype]
    if shape[0] % multiple or shape[1] % multiple:
        return f"cuSPARSELt takes multiples of {multiple} x {multiple}, not {shape[0]} x {shape[1]}"
    return None


def compress(W: Tensor, where: str = "matrix") -> Tensor:
    """Pack a 2:4 matrix `(out, in)` in bf16, fp16, int8 or FP8 (e4m3) for the GPU on which it is.

    Args:
        where: name of the matrix, for messages.

    Raises:
        UserError: the shape does not fit, or W is not 2:4 (the packer would silently drop values).
    """
    if reason := why_not(W.shape, W.dtype):
        raise UserError(f"{where}: {reason}")
    values = W.detach()
    if not holds(values):
        raise UserError(f"{where} is not {PATTERN}: a group of four has more than two values")
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values + 0.0  # a -0.0 would count as a value
    return torch._cslt_compress(values.contiguous())


def holds(W: Tensor) -> bool:
    """Return whether a matrix of any dtype has at most two values other than zero in each group of four."""
    values = W.float() if W.dtype == FP8 else W  # FP8 cannot be compared with zero
    return int((values.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


def search(packed: Tensor, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Plan:
    """Let cuSPARSELt time its algorithms on this GPU and return the fastest for inputs such as x `(rows, in)`.

    The search also tries splits of the inner dimension. A kernel that it tries can break the process's CUDA context
    (seen with fp16 on an H100, cuSPARSELt 0.8.0: an illegal instruction); `search_plain` tries fewer.
    """
    x_t = _padded(x).t()
    try:
        found = torch._C._cusparselt.mm_search(packed, x_t, bias, None, out_dtype, True)
    except AttributeError:  # a build in which only the public operator exists, which returns the algorithm alone
        return Plan(torch._cslt_sparse_mm_search(packed, x_t, bias, None, out_dtype, True))
    return Plan(*(int(value) for value in found[:3]))


def search_plain(packed: Tensor, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Plan:
    """Time the algorithms one by one, none with a split of the inner dimension, and return the fastest."""
    calls: dict[str, Sequence[Call]] = {}
    for algorithm in range(MOST_ALGORITHMS):
        call = partial(multiply, packed, x, bias, Plan(algorithm), out_dtype)
        try:
            call()
        except RuntimeError:  # no such algorithm, or not for this shape
            continue
        calls[str(algorithm)] = [call] * 3
    seconds = fastest(calls, x.device)
    return Plan(int(min(seconds, key=lambda name: seconds[name])))


def search_nothing(packed: Tensor, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Plan:
    """Return cuSPARSELt's default."""
    return DEFAULT_PLAN


Search = Callable[[Tensor, Tensor, Tensor | None, torch.dtype | None], Plan]
SEARCHES: tuple[Search, ...] = (search, search_plain, search_nothing)  # the later, the fewer kernels are tried


def multiply(
    packed: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    plan: Plan = DEFAULT_PLAN,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return `x W' + b`, `(rows, out)`, row-major.

    Args:
        packed: W, from `compress`.
        x: `(rows, in)`, in W's dtype; any number of rows.
        out_dtype: for 8-bit types: int32 (int8 only), bf16 or fp16; for others None.
    """
    algorithm, split_k, split_k_mode = plan
    y = torch._cslt_sparse_mm(
        packed,
        _padded(x).t(),
        bias=bias,
        out_dtype=out_dtype,
        transpose_result=True,
        alg_id=algorithm,
        split_k=split_k,
        split_k_mode=split_k_mode,
    )
    return y[: x.shape[0]]


def _padded(x: Tensor) -> Tensor:
    """Return x with as many rows as cuSPARSELt takes and row-major: it would take another layout for another matrix."""
    multiple = MULTIPLES[x.dtype]
    if x.shape[0] % multiple:
        return F.pad(x, (0, 0, 0, -x.shape[0] % multiple))
    return x if x.stride(-1) == 1 and x.stride(0) == x.shape[1] else x.contiguous()


class Linear24(nn.Module):
    """A Linear layer in bf16 or fp16 with a 2:4 matrix, for inference.

    Args:
        linear: the layer, on a GPU, its weight 2:4.
        rows: inputs (batch x length) for which the algorithm is searched; `tune` searches again.
        plan: the algorithm, if it is known from a layer of the same shape; nothing is searched then.
        where: name of the matrix, for messages.
    """

    def __init__(
        self, linear: nn.Linear, *, rows: int = SEARCH_ROWS, plan: Plan | None = None, where: str = "matrix"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", compress(linear.weight, where))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.plan = plan or DEFAULT_PLAN
        if plan is None:
            self.tune(rows)

    def tune(self, rows: int, search: Search = search) -> None:
        """Search for the fastest algorithm for inputs of so many rows."""
        x = torch.randn(rows, self.in_features, device=self.packed.device, dtype=self.packed.dtype)
        self.plan = search(self.packed, x, self.bias, None)

    def forward(self, x: Tensor) -> Tensor:
        y = multiply(self.packed, x.reshape(-1, x.shape[-1]), self.bias, self.plan)
        return y.reshape(*x.shape[:-1], -1)
