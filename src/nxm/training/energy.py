"""The energy that a run takes, from the counters of NVIDIA's GPUs (Volta and newer)."""

from __future__ import annotations

import os

import pynvml
import torch

from nxm.environment import SHARED_GPU


class EnergyMeter:
    """Counts the energy of all GPUs that this process may use, from its creation on."""

    def __init__(self) -> None:
        self._start = _counted_joules()

    def joules(self) -> float | None:
        """Return the joules so far; None without a GPU, if it has no counter, or if other jobs use it too."""
        if SHARED_GPU in os.environ:
            return None
        now = _counted_joules()
        return None if now is None or self._start is None else now - self._start


def _counted_joules() -> float | None:
    """Return the GPUs' counters, which start when the driver is loaded."""
    if not torch.cuda.is_available():
        return None
    # with CUDA_VISIBLE_DEVICES the indices of NVML and CUDA differ; the names do not
    names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3  # from mJ
    except pynvml.NVMLError:  # a slice of a GPU, or an older one
        return None
