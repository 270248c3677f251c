"""Structured pruning as a run of a study: the shrunk model is what is scored, saved, resumed, and started from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nxm
from made_up_study import folder_of, made_up_study, trained
from nxm import NM, UserError, find_targets, parse_set
from nxm.check import check
from nxm.data.prepare import load_prepared
from nxm.export.packed import write_packed
from nxm.export.trained import EXAMPLES, load_trained
from nxm.files import sha256_file
from nxm.methods.structured.callback import StructuredCallback
from nxm.models.shrink import read_structure, remaining
from nxm.sets.saved import read_pattern
from nxm.study.plan import Training, composed
from nxm.study.results import Result, predictions_path, read_predictions, same_apart_from_times
from nxm.study.settings import Study
from nxm.training.build import Parts
from nxm.training.run import _fingerprint
from tiny_training import assert_equal

TEACHING = {"distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0, "temperature": 2.0}, "dropout": 0.0}
SHORT = {"epochs": 1, "learning_rate": 3e-3, "batch_size": 16}
CUT = {"start": "dense", "teacher": "dense", "method": "structured", "recipe": "learned", "budget": 0.5, "multiple": 8}
RUNS: dict[str, dict[str, Any]] = {
    "dense": SHORT,
    "cut": CUT | TEACHING | {"measure_steps": 4, "epochs": 3, "learning_rate": 3e-3, "batch_size": 16},
    "cut_nxm": {"start": "cut", "method": "one_shot", "set": "2:4"} | SHORT,
    "cut_int8": {"start": "cut", "method": "one_shot", "set": "2:4 int8"} | SHORT | {"epochs": 0},
    "taught": {"start": "dense", "teacher": "cut"} | TEACHING | SHORT,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    """A study on made-up data in its own folder, the working directory, with its dense model."""
    with made_up_study(tmp_path_factory.mktemp("study"), RUNS, train_rows=160) as found:
        yield found


@pytest.fixture(scope="module")
def cut(study) -> Result:
    return trained(study, "cut")


@torch.no_grad()
def logits_on_dev(name: str) -> np.ndarray:
    """The answers of a saved model, loaded as a user does, to one example after the other."""
    model = nxm.load(folder_of(name))
    columns = ("input_ids", "token_type_ids", "attention_mask")
    rows = load_prepared(Path("data/prepared/stsb"))["validation"]
    return np.stack([model(**{key: torch.tensor([row[key]]) for key in columns}).logits[0].numpy() for row in rows])


def test_the_saved_model_is_small_and_the_result_says_how_small(cut):
    model = nxm.load(folder_of("cut"))
    left = remaining(model)
    found = cut.structure
    assert found is not None
    assert (found.heads, found.rows) == (left.heads, left.rows)
    assert (found.dense_heads, found.dense_rows) == (2, 64)
    sizes = [sum(W.numel() for W in find_targets(own).values()) for own in (model, nxm.load(folder_of("dense")))]
    assert found.share == pytest.approx(sizes[0] / sizes[1], abs=1e-6)
    assert found.pruning is not None
    assert found.pruning.share == found.share  # counted in weights, from a dense start
    assert 0.3 < found.share <= found.pruning.budget == 0.5
    assert found.pruning.course[-1].share == found.pruning.share
    assert cut.sparsity.parameters == sum(W.numel() for W in model.parameters())
    assert cut.sparsity.density == 1.0
    assert cut.sparsity.pattern is None
    assert cut.admm is None


def test_scores_and_predictions_are_those_of_the_saved_model(cut):
    predicted = read_predictions(predictions_path("results/stsb/cut/seed0.json"))["validation"]
    np.testing.assert_allclose(predicted, logits_on_dev("cut"), atol=1e-4)
    assert cut.epochs[-1].metric == cut.metric.value


def test_the_masked_model_gives_the_same_answers(study, cut, monkeypatch):
    """The same training, but with the zeros of dead heads and rows left in their place."""
    saved = {name: (folder_of("cut") / name).read_bytes() for name in ("config.json", "model.safetensors")}
    predicted = read_predictions(predictions_path("results/stsb/cut/seed0.json"))["validation"]
    monkeypatch.setattr(StructuredCallback, "to_save", lambda self, model: model)
    masked = trained(study, "cut")
    try:
        again = read_predictions(predictions_path("results/stsb/cut/seed0.json"))["validation"]
        np.testing.assert_allclose(again, predicted, atol=1e-5)
        assert masked.metric.value == pytest.approx(cut.metric.value, abs=0.1)
        assert masked.sparsity.parameters > cut.sparsity.parameters
    finally:
        for name, content in saved.items():
            (folder_of("cut") / name).write_bytes(content)


@pytest.mark.situation("training", "structured pruning in a study, killed and resumed", "works")
@pytest.mark.parametrize("epoch", [1, 2], ids=["while masks are learned", "on the fixed structure"])
def test_a_killed_run_ends_as_one_that_was_not_killed(study, cut, epoch, monkeypatch):
    expected = sha256_file(folder_of("cut") / "model.safetensors")
    assert expected == cut.provenance.model_sha256
    honest, ended = StructuredCallback.after_step, []

    def after_step(self, step, optimizer):
        honest(self, step, optimizer)
        ended.append(step)
        if step == epoch * 8 + 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StructuredCallback, "after_step", after_step)
    with pytest.raises(KeyboardInterrupt):
        trained(study, "cut")
    monkeypatch.setattr(StructuredCallback, "after_step", lambda self, *args: (honest(self, *args), ended.append(0)))
    resumed = trained(study, "cut")
    assert ended.count(0) == 24 - epoch * 8  # it went on from the last checkpoint
    assert sha256_file(folder_of("cut") / "model.safetensors") == expected
    assert same_apart_from_times(resumed, cut)


@pytest.mark.parametrize(("name", "text"), [("cut_nxm", "2:4"), ("cut_int8", "2:4 int8")])
def test_what_is_left_can_be_trained_into_a_set(study, cut, name, text, capsys):
    """Three systems in one model: heads and rows removed, then 2:4, then integers."""
    result = trained(study, name)
    assert result.structure is not None
    assert cut.structure is not None
    assert result.structure == cut.structure.model_copy(update={"pruning": None})
    assert result.sparsity.pattern == str(parse_set(text))
    model = nxm.load(folder_of(name))
    assert read_structure(model.config) == read_structure(nxm.load(folder_of("cut")).config)
    targets = find_targets(model)
    assert all(parse_set(text).contains(W) for W in targets.values())
    assert read_pattern(model.config) == (parse_set(text), list(targets))
    predicted = read_predictions(predictions_path(f"results/stsb/{name}/seed0.json"))["validation"]
    np.testing.assert_allclose(predicted, logits_on_dev(name), atol=1e-4)
    assert check(folder_of(name))
    printed = capsys.readouterr().out
    assert f"24 of 24 matrices obey {parse_set(text)}" in printed
    assert f"{cut.structure.rows[0]} of 64" in printed


def test_a_shrunk_model_teaches(study, cut):
    assert trained(study, "taught").structure is None


def test_a_student_of_a_shrunk_models_layers_is_refused(study, cut):
    with pytest.raises(UserError, match="the teacher was shrunk: a student is made of the layers of a dense model"):
        trained(study, "taught", start="student")


def test_a_shrunk_model_of_another_task_is_refused(study, cut, tmp_path):
    from nxm.data.tasks import get_task
    from nxm.training.load import load_model

    with pytest.raises(UserError, match="has the head of its own task"):
        load_model(folder_of("cut"), get_task("mnli"), fresh_head=False)
    with pytest.raises(UserError, match="has the head of its own task"):
        load_model(folder_of("cut"), get_task("stsb"), fresh_head=True)


def test_other_runs_files_are_as_they_were_before_there_was_structured_pruning(study):
    """Without a key for it, so that a results file that is read and written again has the same bytes."""
    content = json.loads(Path("results/stsb/dense/seed0.json").read_text())
    assert "structure" not in content


def test_heads_and_widths_are_printed_by_layer(cut, capsys):
    assert check(folder_of("cut"))
    printed = capsys.readouterr().out
    for i, (heads, rows) in enumerate(zip(cut.structure.heads, cut.structure.rows, strict=True)):
        assert f"{i} {heads} of 2 {rows} of 64".split() in [line.split() for line in printed.splitlines()]
    assert f"shrunk, {100 * cut.structure.share:.1f} % of the dense layers' weights are left" in printed


@pytest.mark.situation("check", "a shrunk model whose tensors do not have the sizes of its config", "refused")
def test_a_shrunk_model_with_other_sizes_than_it_claims_is_refused(cut, tmp_path):
    shutil.copytree(folder_of("cut"), tmp_path / "model")
    path = tmp_path / "model/config.json"
    content = json.loads(path.read_text())
    content["nxm_structure"]["rows"][0] += 8
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the tensors do not have the sizes of config\.json"):
        check(tmp_path / "model")


def test_a_pattern_can_be_asked_of_a_shrunk_model(cut, capsys):
    assert not check(folder_of("cut"), "2:4")
    assert "0 of 24 matrices obey 2:4" in capsys.readouterr().out


# --- Exports ------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a shrunk model", "works")
def test_a_shrunk_model_is_exported(cut, tmp_path):
    pytest.importorskip("onnxruntime")
    from nxm.export.onnx import open_session, write_onnx

    small = load_trained(folder_of("cut"))
    write_onnx(small, tmp_path / "model.onnx")
    inputs = small.encode(EXAMPLES[:3])
    found = open_session(tmp_path / "model.onnx", 1).run(None, {name: own.numpy() for name, own in inputs.items()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, small.model(**inputs).logits.numpy(), atol=1e-4)


def test_integers_of_a_shrunk_model_are_packed(study, cut, tmp_path):
    trained(study, "cut_int8")
    write_packed(folder_of("cut_int8"), tmp_path / "packed")
    packed = nxm.load(tmp_path / "packed")
    assert_equal(dict(packed.state_dict()), dict(nxm.load(folder_of("cut_int8")).state_dict()))
    assert NM(2, 4).contains(next(iter(find_targets(packed).values())))


def test_checkpoints_of_another_latency_table_are_not_resumed(study, tmp_path):
    training = Training("stsb", "cut", 0)
    values = composed(study, training).model_copy(update={"cost": "latency", "latency": str(tmp_path / "ms.json")})
    parts = Parts(None, None, Path(), None, None, None)
    names = []
    for milliseconds in (1, 9):
        (tmp_path / "ms.json").write_text(json.dumps({"heads": [0, milliseconds], "rows": [0, 1]}))
        names.append(_fingerprint(study, training, values, {}, parts))
    assert names[0] != names[1]
