"""The energy that a run takes, where the device tells it: NVIDIA's GPUs (Volta and newer) count it themselves."""

from __future__ import annotations

import os

import pynvml
import torch

from nxm.environment import SHARED_GPU


class EnergyMeter:
    """Counts the energy that all GPUs this process may use take from now on, whatever runs on them."""

    def __init__(self) -> None:
        self._start = _counted_joules()

    def joules(self) -> float | None:
        """Joules since the meter was made; None where there is no GPU, it does not count, or other jobs use it too."""
        if SHARED_GPU in os.environ:
            return None
        now = _counted_joules()
        return None if now is None or self._start is None else now - self._start


def _counted_joules() -> float | None:
    """The GPUs' own counters since their driver was loaded."""
    if not torch.cuda.is_available():
        return None
    # NVML's numbers are not CUDA's where CUDA_VISIBLE_DEVICES is set; the names are.
    names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3  # from mJ
    except pynvml.NVMLError:  # a slice of a GPU, or an older one
        return None
