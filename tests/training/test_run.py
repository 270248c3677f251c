"""A run that ends before its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import smoke_source
from nxm.data.prepare import prepare
from nxm.errors import UserError
from nxm.machine import SHARED_GPU
from nxm.study.results import read_failures
from nxm.study.settings import Study, load_study
from nxm.training import run as runs
from nxm.training.run import Cell

PARAMS = Path(__file__).parents[1] / "params.yaml"
WHOLE, CELL = Cell("stsb", "asp", 0), Cell("stsb", "asp", 0, "lr0.1", (("learning_rate", 0.1),))


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """The embedded study on made-up data, in a folder of its own, where every training is out of memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SHARED_GPU, raising=False)
    study = load_study(PARAMS)
    data = tmp_path / "data" / study.study
    smoke_source.write(data / "source", tasks=("stsb",))
    own = study.prepare.model_copy(update={"heldout_examples": 0, "max_length": 16})
    prepare("stsb", data / "source", own, data / "prepared/stsb")

    def train(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has a capacity of 1 GiB")

    monkeypatch.setattr(runs, "train", train)
    return study


def test_a_cell_that_needs_more_than_its_own_gpu_has_leaves_its_reason(study):
    path = runs.run(study, CELL, keep_model=False)
    assert path == Path("results/embedded/stsb/asp/lr0.1/seed0.json")
    (failure,) = read_failures("results", "embedded")
    assert failure.failure == "CUDA out of memory. Tried to allocate 2 GiB."
    assert failure.wall_seconds > 0.0


@pytest.mark.parametrize("cell", [WHOLE, CELL], ids=["whole run", "cell"])
def test_on_a_gpu_that_others_use_too_nothing_is_recorded(study, monkeypatch, cell):
    monkeypatch.setenv(SHARED_GPU, "1")
    with pytest.raises(UserError, match=r"asp on stsb, seed 0: the GPU's memory is full.*JOBS=1.*Tried to allocate"):
        runs.run(study, cell)
    assert not list(Path("results").rglob("*"))


def test_a_whole_run_that_needs_more_than_its_own_gpu_has_is_an_error(study):
    with pytest.raises(torch.OutOfMemoryError):
        runs.run(study, WHOLE)
