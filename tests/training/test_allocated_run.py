"""A run of a study that chooses a set for each matrix: measured, recorded, saved, resumed, started from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nxm
from made_up_study import folder_of, made_up_study, trained
from nxm import UserError, find_targets, parse_set
from nxm.files import sha256_file
from nxm.methods.allocation import choose
from nxm.models.packed import stored_bits
from nxm.report import storage
from nxm.sets.saved import read_patterns
from nxm.study.plan import Training
from nxm.study.results import Result
from nxm.study.settings import Study

TAUGHT = {
    **{"start": "dense", "teacher": "dense", "dropout": 0.0},
    "distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0, "temperature": 2.0},
}
SHORT = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 32}
ADMM = {
    "method": "admm",
    "recipe": "proximal",
    "rho": 0.125,
    "interval": 1,
    "freeze_at": 0.5,
    "importance": "activations",
}
CHOICES = ["2:4 int8", "2:4 int3", "int4", "dense"]
WANTED = {"bits": 5.5, "choices": CHOICES, "examples": 48}
RUNS: dict[str, dict[str, Any]] = {
    "dense": SHORT,
    "mixed": ADMM | TAUGHT | SHORT | {"set": WANTED},
    "again": {"start": "mixed", "method": "one_shot", "set": "2:4 int3"} | SHORT | {"epochs": 0},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    """A study on made-up data in its own folder, the working directory, with its dense model."""
    with made_up_study(tmp_path_factory.mktemp("study"), RUNS, train_rows=96) as found:
        yield found


@pytest.fixture(scope="module")
def mixed(study) -> Result:
    return trained(study, "mixed")


def test_the_result_names_every_matrix_with_what_it_takes_and_what_was_measured(mixed):
    found = mixed.allocation
    assert found is not None
    model = nxm.load(folder_of("mixed"))
    targets = find_targets(model)
    assert [own.matrix for own in found.matrices] == list(targets)
    assert (found.choices, found.budget, found.examples, found.measured_by) == (tuple(CHOICES), 5.5, 48, "teacher")
    claims = {name: str(constraint) for constraint, names in read_patterns(model.config) for name in names}
    weights = 0
    for own in found.matrices:
        W = targets[own.matrix]
        assert (own.rows, own.columns) == tuple(W.shape)
        assert claims.get(own.matrix, "dense") == own.choice
        constraint = None if own.choice == "dense" else parse_set(own.choice)
        assert own.bits == stored_bits(constraint, W.shape)
        assert constraint is None or constraint.contains(W)
        assert own.rises["dense"] == 0.0
        weights += W.numel()
    total = sum(own.bits for own in found.matrices)
    assert total / weights <= 5.5
    assert found.bits == pytest.approx(total / weights, rel=1e-5)
    assert found.rise == pytest.approx(sum(own.rise for own in found.matrices), abs=1e-5)
    assert found.loss == 0.0  # it starts as its own teacher
    assert len({own.choice for own in found.matrices}) > 1
    assert storage.target_bits(mixed) == total
    assert mixed.sparsity.pattern == "mixed, 5.5 bits"
    assert mixed.sparsity.targets == len(targets)
    nonzero = sum(int(W.count_nonzero()) for W in targets.values())
    assert mixed.sparsity.density == pytest.approx(nonzero / weights, abs=1e-6)


@pytest.mark.situation("training", "a run that chooses a set for each matrix, killed and resumed", "works")
def test_a_killed_run_measures_again_and_ends_the_same(study, mixed, monkeypatch):
    from nxm.methods.admm.callback import AdmmCallback

    expected = sha256_file(folder_of("mixed") / "model.safetensors")
    honest, ended = AdmmCallback.after_step, []

    def after_step(self, step, optimizer):
        honest(self, step, optimizer)
        ended.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AdmmCallback, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            trained(study, "mixed")
    assert ended == [1, 2, 3]
    again = trained(study, "mixed")
    assert sha256_file(folder_of("mixed") / "model.safetensors") == expected
    assert again.allocation == mixed.allocation


def test_a_run_may_start_from_a_model_of_mixed_sets(study, mixed):
    found = trained(study, "again")
    assert found.allocation is None
    assert found.sparsity.pattern == "2:4 int3"
    model = nxm.load(folder_of("again"))
    assert [(str(constraint), len(names)) for constraint, names in read_patterns(model.config)] == [("2:4 int3", 24)]


def test_without_a_teacher_the_loss_is_the_tasks(study):
    wanted = {"start": "dense", "method": "one_shot", "set": WANTED | {"choices": ["2:4 int3", "int4"], "examples": 8}}
    other = study.model_copy(update={"runs": {**study.runs, "untaught": wanted | SHORT | {"epochs": 0}}})
    found = trained(other, "untaught").allocation
    assert found is not None
    assert found.measured_by == "task"
    assert found.loss > 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"set": WANTED | {"bits": 2.0}}, r"a budget of 2 bits per weight cannot be met"),
        ({"set": WANTED | {"examples": 65}}, r"set\.examples = 65 is more than the 64 training examples"),
        ({"set": WANTED | {"choices": ["2:4 int3", "2:24 int4"]}}, r"no multiple of the group size 24"),
    ],
)
def test_what_cannot_be_allocated_is_refused_before_it_is_measured(study, changes, words, monkeypatch):
    def measure(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("nxm.training.sensitivity.measure", measure)
    local = study.model_copy(update={"data": study.data.model_copy(update={"source": "local"})})  # rows are unknown
    with pytest.raises(UserError, match=words):
        trained(local, "mixed", **changes)


def test_a_choice_that_the_method_cannot_take_is_refused_before_it_is_measured(study, monkeypatch):
    monkeypatch.setattr("nxm.training.sensitivity.measure", choose)
    gradual = {"start": "dense", "method": "gradual", "interval": 1, "prune_until": 0.5} | SHORT
    other = study.model_copy(update={"runs": {**study.runs, "gmp": gradual | {"set": WANTED}}})
    with pytest.raises(UserError, match=r"GmpCallback needs a set of zero patterns \(a mask\), which 2:4 int8 is not"):
        trained(other, "gmp")


def test_channels_are_permuted_for_the_one_pattern_of_the_choices(study):
    from nxm.models.permute import permute_
    from nxm.sets.nm import NM
    from nxm.study.plan import composed
    from nxm.training.build import build
    from nxm.training.load import load_model

    untaught = {"start": "dense", "method": "one_shot", "permute": True, "set": WANTED | {"choices": ["2:4", "int4"]}}
    values = study.runs | {"permuted": untaught | SHORT | {"set": untaught["set"] | {"bits": 20.0, "examples": 4}}}
    other = study.model_copy(update={"runs": values})
    training = Training("stsb", "permuted", 0)
    from nxm.data.prepare import load_prepared
    from nxm.data.tasks import get_task

    rows = load_prepared(Path("data/prepared/stsb"))["train"]
    built = build(other, training, composed(other, training), None, rows).model
    expected = load_model(folder_of("dense"), get_task("stsb"), False)
    permute_(expected, NM(2, 4))
    assert all(torch.equal(W, expected.state_dict()[name]) for name, W in built.state_dict().items())
