"""The operators or kernels of a call that multiply, as proof of how a form computes its products."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import torch

from nxm.measure.kernels import Launched, launched

MULTIPLIES = ("mm", "linear", "matmul", "gemm", "conv")


def products(names: Iterable[str]) -> list[str]:
    """Return the names of operators or kernels that multiply matrices, each once, in the order given."""
    return list(dict.fromkeys(name for name in names if any(word in name.lower() for word in MULTIPLIES)))


def quietly_launched(call: Callable[[], object], device: torch.device) -> list[Launched]:
    """Return what a call runs, as `launched` does, without the lines that PyTorch's profiler prints."""
    with _without_stderr():
        return launched(call, device)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the block writes to the process's stderr: PyTorch's profiler prints a line when it starts and stops."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
