"""A training's parts: in which order they are made, where they come from, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel

import smoke_source
from nxm import (
    NM,
    Activations,
    ActivationsCallback,
    AdmmCallback,
    AspCallback,
    Unstructured,
    UserError,
    find_targets,
)
from nxm.config import read_yaml
from nxm.data.tasks import get_task
from nxm.methods.admm.callback import MaskHistory
from nxm.models.activations import read_ranges, write_ranges
from nxm.models.permute import permute_
from nxm.models.save import save_model
from nxm.models.student import every_other_layer
from nxm.study.plan import Training, composed
from nxm.study.settings import Study, parse_study
from nxm.training.build import Parts, build, describe_start, make_callback
from nxm.training.load import load_model, load_tokenizer
from records import ROOT

STSB = get_task("stsb")
DENSE = Path("models/stsb/dense/seed0")
WEIGHTS = Path("data/source/weights")


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """The embedded study with tiny weights and a dense model, in its folder."""
    monkeypatch.chdir(tmp_path)
    smoke_source.write(tmp_path / "data/source", tasks=("stsb",))
    set_seed(7)
    dense = load_model(WEIGHTS, STSB, True)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.01)
    save_model(dense, load_tokenizer(WEIGHTS), DENSE)
    return parse_study(read_yaml(ROOT / "params.yaml"), "params.yaml")


def parts_of(study: Study, run: str, seed: int = 0, mean: float | None = 2.0, **changes: Any) -> Parts:
    training = Training("stsb", run, seed, changes=changes)
    return build(study, training, composed(study, training), mean)


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_head_is_drawn_first_and_then_channels_are_permuted(study):
    """The order decides every result: seed, head, half the layers, permutation."""
    built = parts_of(study, "nxm", seed=3, permute=True)
    after = torch.rand(4)
    set_seed(3)
    model = load_model(WEIGHTS, STSB, True, 2.0)
    permute_(model, NM(2, 4), [], [])
    assert same(built.model, model)
    assert torch.equal(after, torch.rand(4))  # what is drawn next, in training, is the same too


def test_a_student_is_half_of_its_teacher_and_keeps_its_head(study):
    built = parts_of(study, "distil", seed=0)
    after = torch.rand(4)
    set_seed(0)
    model = every_other_layer(load_model(DENSE, STSB, False))
    assert same(built.model, model)
    assert built.model.config.num_hidden_layers == 2
    assert (built.start, built.teacher_path) == (DENSE, DENSE)
    assert same(built.teacher, load_model(DENSE, STSB, False))
    set_seed(0)
    every_other_layer(load_model(DENSE, STSB, False))
    load_model(DENSE, STSB, False)
    assert torch.equal(after, torch.rand(4))


def test_a_run_from_another_runs_model_has_its_head(study):
    built = parts_of(study, "nxm", start="dense")
    assert built.start == DENSE
    assert same(built.model, load_model(DENSE, STSB, False))


def test_the_heads_bias_starts_at_the_mean_label_unless_the_study_says_no(study):
    assert parts_of(study, "dense").model.classifier.bias.item() == 2.0
    trainer = study.trainer.model_copy(update={"mean_label_bias": False})
    assert parts_of(study.model_copy(update={"trainer": trainer}), "dense").model.classifier.bias.item() != 2.0


def test_a_teacher_that_no_term_of_the_loss_asks_is_not_loaded(study):
    labels = {"task": 1.0, "logits": 0.0, "hidden": 0.0, "temperature": 2.0}
    built = parts_of(study, "distil", distillation=labels)
    assert built.teacher is None
    assert built.teacher_path == DENSE


def test_the_callback_is_the_runs_method_with_its_set_and_values(study):
    assert make_callback(study, study.run("dense", "stsb")) is None
    asp = make_callback(study, study.run("asp", "stsb"))
    assert isinstance(asp, AspCallback)
    assert asp.constraint == NM(2, 4)
    admm = make_callback(study, study.run("admm_unstructured", "stsb"))
    assert isinstance(admm, AdmmCallback)
    assert admm.constraint == Unstructured(0.5)
    assert admm.settings == study.run("admm_unstructured", "stsb").method_settings
    assert isinstance(admm.history, MaskHistory)  # for Figure 4


def test_integer_activations_have_a_callback_and_no_others_are_taken_over_from_the_start(study):
    dense = load_model(DENSE, STSB, False)
    write_ranges(dense.config, 4, dict.fromkeys(find_targets(dense), (-9.0, 9.0)))
    save_model(dense, load_tokenizer(DENSE), DENSE)
    plain = parts_of(study, "nxm", start="dense")
    assert read_ranges(plain.model.config) is None
    assert plain.callbacks == (plain.callback,)
    method, activations = parts_of(study, "nxm", start="dense", activations={"bits": 8}).callbacks
    assert isinstance(method, AdmmCallback)
    assert isinstance(activations, ActivationsCallback)
    assert activations.settings == Activations(bits=8)


def test_a_permutation_for_another_kind_of_set_is_refused(study):
    with pytest.raises(UserError, match=r"permute = true is for N:M sets such as 2:4, not for '50 %'"):
        parts_of(study, "admm_unstructured", permute=True)


def test_a_missing_model_is_named(study):
    with pytest.raises(UserError, match=r"models/stsb/distil/seed0: no model here"):
        parts_of(study, "distil_nxm")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("dense", "minilm-l6 (pypi)"),
        ("distil", "every other layer of the dense model"),
        ("distil_nxm", "every other layer of the dense model"),  # its start is the student
        ("distil_nxm_kd", "every other layer of the dense model"),
    ],
)
def test_a_results_file_says_whose_weights_a_run_starts_from(study, run, words):
    assert describe_start(study, study.run(run, "stsb")) == words


def test_a_run_from_a_fine_tuned_model_says_so(study):
    assert describe_start(study, study.run("nxm", "stsb", {"start": "dense"})) == "the fine-tuned dense model"
