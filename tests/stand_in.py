"""A stand-in for cuSPARSELt on the CPU, with its shapes, its strides and its refusals.

Its operators have no kernel for the CPU, so that tests may register one: the product's code runs as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)
FOUND = 3  # the algorithm that the search finds


def _compress(W: Tensor) -> Tensor:
    assert W.is_contiguous()
    return W.clone()


def _multiply(
    packed: Tensor,
    dense_B: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
    split_k: int = 1,
    split_k_mode: int = -1,
) -> Tensor:
    assert alpha is None
    if alg_id not in (0, FOUND):
        raise RuntimeError("cuSPARSELt: no such algorithm")
    if packed.dtype in EIGHT_BITS:
        assert not dense_B.is_contiguous(), "8 bits: TN alone"
        assert dense_B.shape[1] % 16 == 0
    else:
        assert out_dtype is None
        assert dense_B.shape[1] % 8 == 0
    assert dense_B.t().is_contiguous(), "another layout is read as another matrix"
    y = packed.double() @ dense_B.double()
    y = y if bias is None else y + bias.double()[:, None]
    y = y.to(out_dtype or packed.dtype)
    return y.t().contiguous() if transpose_result else y


def _search(*_: object, **__: object) -> int:
    return FOUND


@contextmanager
def cusparselt_on_cpu() -> Iterator[None]:
    """Let cuSPARSELt's operators run on the CPU."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_cslt_compress", _compress, "CPU")
        library.impl("_cslt_sparse_mm", _multiply, "CPU")
        library.impl("_cslt_sparse_mm_search", _search, "CPU")
        yield
