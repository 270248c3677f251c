"""The energy counter, with NVML played: no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest
import torch

from nxm.environment import SHARED_GPU
from nxm.training.energy import EnergyMeter


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Two GPUs whose counters, in mJ, a test may turn."""
    counters = {"GPU-a": 5_000, "GPU-b": 70_000}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid="ab"[i]))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: counters[handle])
    return counters


def test_it_counts_all_gpus_from_when_it_is_made(gpus):
    meter = EnergyMeter()
    assert meter.joules() == 0.0
    gpus["GPU-a"] += 1_500
    gpus["GPU-b"] += 250
    assert meter.joules() == pytest.approx(1.75)


def test_a_device_that_does_not_count_tells_nothing(gpus, monkeypatch):
    def refuse(handle: str) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    assert EnergyMeter().joules() is None


def test_what_other_jobs_take_of_the_same_gpu_is_not_counted_as_this_ones(gpus, monkeypatch):
    monkeypatch.setenv(SHARED_GPU, "1")
    assert EnergyMeter().joules() is None


def test_without_a_gpu_there_is_none_to_tell(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EnergyMeter().joules() is None
