"""The kernels that ran, by name and number, as proof that 2:4 products were computed by sparse kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_SPARSE_PRODUCT = re.compile(r"sparse.*gemm|gemm.*sparse|spgemm|sptensorop|spmma", re.IGNORECASE)


@dataclass(frozen=True)
class Launched:
    """A kernel (on a CPU: an operator) with the number of its launches and the microseconds that they took together."""

    name: str
    launches: int
    microseconds: float


def launched(call: Callable[[], object], device: torch.device) -> list[Launched]:
    """Run a call once under PyTorch's profiler and return what the device ran, the longest first.

    On CUDA these are kernels; on a CPU, where kernels have no names, PyTorch's operators with time of their own.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = [
        Launched(event.key, event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in seen.key_averages()
        if event.device_type == wanted and not event.key.startswith("[")  # those are the profiler's own events
    ]
    return sorted((each for each in found if each.microseconds > 0), key=lambda each: -each.microseconds)


def is_sparse(kernel: str) -> bool:
    """Return whether a kernel multiplies a sparse matrix, by its name.

    cuSPARSELt's kernels have names such as `sm90_xmma_sparse_gemm_...`, CUTLASS's `...SparseGemm...` or `...spgemm...`.
    """
    return _SPARSE_PRODUCT.search(kernel) is not None


def sparse_launches(kernels: Iterable[Launched]) -> int:
    """Return the number of launches that multiplied a sparse matrix: as many as there are packed matrices."""
    return sum(each.launches for each in kernels if is_sparse(each.name))
