"""A training that ends before its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import smoke_source
from nxm.data.prepare import prepare
from nxm.environment import SHARED_GPU
from nxm.errors import Diverged, UserError
from nxm.study.plan import Training
from nxm.study.results import predictions_path, read_failures, read_predictions
from nxm.study.settings import Study, load_study
from nxm.training import run as runs

PARAMS = Path(__file__).parents[2] / "params.yaml"
WHOLE = Training("stsb", "asp", 0)
TRIAL = Training("stsb", "asp", 0, trial="lr0.1", changes={"learning_rate": 0.1})
VARIANT = Training("stsb", "asp", 0, variant="fast", changes={"learning_rate": 0.1})
POINT = Training("stsb", "asp", 0, variant="fast", changes={"learning_rate": 0.1}, compared=False)


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """The embedded study on made-up data, in its own folder, where every training runs out of memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SHARED_GPU, raising=False)
    study = load_study(PARAMS)
    data = tmp_path / "data"
    smoke_source.write(data / "source", tasks=("stsb",))
    own = study.prepare.model_copy(update={"heldout_examples": 0, "max_length": 16})
    prepare("stsb", data / "source", own, data / "prepared/stsb")

    def train(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has a capacity of 1 GiB")

    monkeypatch.setattr(runs, "train", train)
    return study


@pytest.mark.parametrize(
    ("training", "path"),
    [(TRIAL, "results/search/stsb/asp/lr0.1/seed0.json"), (VARIANT, "results/stsb/asp/fast/seed0.json")],
    ids=["trial", "variant"],
)
def test_what_needs_more_than_its_own_gpu_has_leaves_its_reason(study, training, path):
    assert runs.run(study, training) == Path(path)
    (failure,) = read_failures(".")
    assert failure.failure == "CUDA out of memory. Tried to allocate 2 GiB."
    assert failure.hyperparameters["learning_rate"] == 0.1
    assert failure.wall_seconds > 0.0
    assert not Path("checkpoints", training.path).exists()


@pytest.mark.parametrize("training", [TRIAL, VARIANT, POINT], ids=["trial", "variant", "point of a sweep"])
def test_a_failure_leaves_the_files_that_dvc_expects(study, training):
    """A variant that is compared has predictions among its outputs; nothing else has."""
    path = predictions_path(runs.run(study, training))
    assert path.exists() == (training is VARIANT)
    assert training is not VARIANT or read_predictions(path) == {}


def test_values_that_make_training_diverge_leave_their_reason(study, monkeypatch):
    def train(*args, **kwargs):
        raise Diverged("the loss became nan at step 3")

    monkeypatch.setattr(runs, "train", train)
    runs.run(study, TRIAL)
    assert [failure.failure for failure in read_failures(".")] == ["the loss became nan at step 3"]
    with pytest.raises(Diverged):
        runs.run(study, WHOLE)


@pytest.mark.parametrize("training", [WHOLE, TRIAL, VARIANT], ids=["whole run", "trial", "variant"])
def test_on_a_gpu_that_others_use_too_nothing_is_recorded(study, monkeypatch, training):
    monkeypatch.setenv(SHARED_GPU, "1")
    with pytest.raises(
        UserError, match=r"asp.* on stsb, .*seed 0: the GPU's memory is full.*JOBS=1.*Tried to allocate"
    ):
        runs.run(study, training)
    assert not list(Path("results").rglob("*"))


def test_a_whole_run_that_needs_more_than_its_own_gpu_has_is_an_error(study):
    with pytest.raises(torch.OutOfMemoryError):
        runs.run(study, WHOLE)


def test_checkpoints_of_other_settings_are_removed(study):
    former = Path("checkpoints/stsb/asp/seed0/0123456789abcdef")
    former.mkdir(parents=True)
    with pytest.raises(torch.OutOfMemoryError):
        runs.run(study, WHOLE)
    assert not former.exists()
