"""The energy that a run takes, from the counters of NVIDIA's GPUs (Volta and newer)."""

from __future__ import annotations

import os

import pynvml
import torch

from nxm.environment import SHARED_GPU
from nxm.machine import nvml_handle


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
    try:
        handles = [nvml_handle(index) for index in range(torch.cuda.device_count())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3  # from mJ
    except pynvml.NVMLError:  # a slice of a GPU, or an older one
        return None
