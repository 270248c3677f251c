"""The machine, its precision and the versions of its software, as results record them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from nxm.environment import cores

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")  # those that can change a result
DEPLOYED = ("onnxruntime", "torchao")  # of the extra `export`


def machine() -> dict[str, Any]:
    """Return the processor, the cores that this process may use, the memory in GiB and the device that trains."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "device": device,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def libraries() -> dict[str, str]:
    """Return `versions` and those of other software on which speed depends: DEPLOYED, a GPU's driver and libraries."""
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    found = versions() | {name: importlib.metadata.version(name) for name in DEPLOYED if name in installed}
    if torch.cuda.is_available():
        pynvml.nvmlInit()
        found |= {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "cuda": str(torch.version.cuda),
            "cusparselt": str(torch.backends.cusparselt.version()),
        }
    return found


def precision() -> str:
    """Return the precision of a training: "fp32", or accelerate's mixed precision ("bf16", ...) with fp32 state."""
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # set by accelerate launch
    return "fp32" if mixed == "no" else mixed


def use_cores() -> None:
    """Let torch use this process's share of the cores: those that it may use over the processes on this machine.

    Without a number `accelerate launch` sets OMP_NUM_THREADS=1, which on a CPU halves the speed of two cores.
    """
    torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB: GPU memory if there is a GPU, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
