"""The machine, its precision and the versions of its software, as results record them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from nxm.environment import cores

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")  # those that can change a result
DEPLOYED = ("onnxruntime", "openvino", "torchao")  # of the extra `export`
GPU_LIBRARIES = ("nvidia-cusparselt-cu12", "nvidia-cusparselt-cu13", "nvidia-cublas-cu12", "nvidia-cublas", "triton")


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
    """Return Python's version and those of the software on which speed depends, as far as it is installed.

    These are PACKAGES, DEPLOYED, and on a GPU its driver and GPU_LIBRARIES.
    """
    on_gpu = torch.cuda.is_available()
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    wanted = [*PACKAGES, *DEPLOYED, *(GPU_LIBRARIES if on_gpu else ())]
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in wanted if name in installed}
    if on_gpu:
        pynvml.nvmlInit()
        found |= {"driver": pynvml.nvmlSystemGetDriverVersion(), "cuda": str(torch.version.cuda)}
    return found


def gpu() -> dict[str, Any]:
    """Return what decides the speed of the GPU that this process uses: its size, and the limits of power and clocks."""
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability()
    return {
        "name": properties.name,
        "capability": f"{major}.{minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "power_limit_watts": _told(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(nvml_handle()) / 1e3),
        "max_sm_mhz": _told(lambda: pynvml.nvmlDeviceGetMaxClockInfo(nvml_handle(), pynvml.NVML_CLOCK_SM)),
        "memory_mhz": _told(lambda: pynvml.nvmlDeviceGetMaxClockInfo(nvml_handle(), pynvml.NVML_CLOCK_MEM)),
    }


def clocks() -> dict[str, Any]:
    """Return the clock of the GPU's multiprocessors and its temperature as they are now."""
    return {
        "sm_mhz": _told(lambda: pynvml.nvmlDeviceGetClockInfo(nvml_handle(), pynvml.NVML_CLOCK_SM)),
        "celsius": _told(lambda: pynvml.nvmlDeviceGetTemperature(nvml_handle(), pynvml.NVML_TEMPERATURE_GPU)),
    }


def nvml_handle(index: int = 0) -> Any:
    """Return NVML's handle of the GPU that CUDA knows by this index. Raises NVMLError for a slice of a GPU."""
    pynvml.nvmlInit()
    # with CUDA_VISIBLE_DEVICES the indices of NVML and CUDA differ; the names do not
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


def _told(ask: Callable[[], float]) -> float | None:
    """Return the driver's answer, or None if this GPU, a slice of one or an older one, has none."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


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
