"""Names of the kernels that ran, as proof that a 2:4 product was computed by sparse kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_SPARSE_PRODUCT = re.compile(r"sparse.*gemm|gemm.*sparse|spgemm|sptensorop|spmma", re.IGNORECASE)


def kernels_of(call: Callable[[], object], device: torch.device) -> list[str]:
    """Run a call once under PyTorch's profiler and return the names of what the device ran, unique and sorted.

    On CUDA these are kernels; on a CPU, where kernels have no names, PyTorch's operators with time of their own.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return sorted(
        {
            event.key
            for event in seen.key_averages()
            if event.device_type == wanted
            and (event.self_device_time_total if on_gpu else event.self_cpu_time_total) > 0
            and not event.key.startswith("[")  # the profiler's own events
        }
    )


def are_sparse(kernels: Iterable[str]) -> bool:
    """Return whether one of these kernels multiplies a sparse matrix, by its name.

    cuSPARSELt's kernels have names such as `sm80_xmma_sparse_gemm_...`, CUTLASS's `...SparseGemm...` or `...spgemm...`.
    """
    return any(_SPARSE_PRODUCT.search(kernel) for kernel in kernels)
