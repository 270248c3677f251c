"""`nxm bench MODEL ...`: rows of every form with their proof, what is refused, and going on. No test reads a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nxm import Integers, UserError
from nxm.cli import app
from nxm.export.packed import write_packed
from nxm.measure import saved
from nxm.models.targets import find_targets
from nxm.sets.saved import write_pattern
from tiny_models import MODELS, TWO_OF_FOUR, save_model

FORMS = {"cpu": ("fp32", "bf16", "onnx")}
SMALL = {"device_name": "cpu", "batch_sizes": [1, 2], "lengths": [8]}


def timer(call, device):
    call()
    return 1e-3


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A dense and a 2:4 model, in folders of the same name, and fewer forms than a bench has."""
    monkeypatch.setattr(saved, "FORMS", FORMS)
    made = []
    for seed, (run, pattern) in enumerate((("dense", None), ("sparse", TWO_OF_FOUR))):
        torch.manual_seed(seed)
        made.append(save_model(tmp_path / run / "model", MODELS["bert"](), pattern))
    return made


def test_models_are_timed_in_every_form_with_what_multiplied(folders, tmp_path, capsys):
    rows = saved.bench_models(folders, tmp_path / "out", timer=timer, **SMALL)
    timed = {(row["model"], row["way"], row["dtype"], row["batch"]): row for row in rows if "median_ms" in row}
    ways = (("eager", "fp32"), ("eager", "bf16"), ("onnx", "fp32"))
    assert timed.keys() == {
        (name, *way, batch) for name in ("dense/model", "sparse/model") for way in ways for batch in (1, 2)
    }
    for row in timed.values():
        assert row["speedup_over_dense_fp32"] == 1
        assert row["kernels"]
    assert {"MatMul", "Gemm"} & set(timed["sparse/model", "onnx", "fp32", 1]["kernels"])
    assert all("mm" in name for name in timed["dense/model", "eager", "fp32", 2]["kernels"][:1])
    (absent,) = [row for row in rows if "absent" in row]
    assert (absent["model"], absent["kernel"]) == ("sparse/model", "2:4")
    printed = capsys.readouterr().out
    assert "absent: sparse/model in PyTorch bf16, 2:4: no 2:4 kernel in PyTorch for cpu" in printed
    assert "over dense/model fp32" in printed
    file = json.loads((tmp_path / "out/models-cpu.json").read_text())
    assert file["rows"] == rows
    assert file["left_out"] == 0
    assert not (tmp_path / "out/.models-cpu").exists()


def test_a_packed_model_is_measured_as_it_is(folders, tmp_path):
    model = MODELS["bert"]()
    constraint = Integers(4, TWO_OF_FOUR)
    targets = find_targets(model)
    with torch.no_grad():
        for W in targets.values():
            W.copy_(constraint.project(W).Z)
    folder = save_model(tmp_path / "integers", model, None, spread=1.0)
    write_pattern(model.config, constraint, targets, dict(model.named_parameters()))
    model.save_pretrained(folder)
    write_packed(folder, tmp_path / "packed")
    rows = saved.bench_models([tmp_path / "packed"], tmp_path / "out", timer=timer, **SMALL)
    assert {row["model"] for row in rows} == {"packed"}
    assert any("median_ms" in row for row in rows)


def test_what_a_kill_or_the_budget_left_out_is_measured_by_the_next_call_and_nothing_twice(folders, tmp_path, capsys):
    calls = []

    def killed(call, device):
        calls.append(call)
        if len(calls) > 40:  # in the second unit
            raise KeyboardInterrupt
        return timer(call, device)

    with pytest.raises(KeyboardInterrupt):
        saved.bench_models(folders, tmp_path / "out", timer=killed, **SMALL)
    first = saved.bench_models(folders, tmp_path / "out", budget=1e-9, timer=timer, **SMALL)
    assert {(row["way"], row["dtype"], row["batch"]) for row in first} == {("eager", "fp32", 1)}
    assert "units were left out after 1e-09 s: the same command goes on" in capsys.readouterr().out

    def counted(call, device):
        calls.append(call)
        return timer(call, device)

    before = len(calls)
    rows = saved.bench_models(folders, tmp_path / "out", timer=counted, **SMALL)
    whole = len(calls)
    assert saved.bench_models(folders, tmp_path / "again", timer=counted, **SMALL) == rows
    assert whole - before < len(calls) - whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [65]}, r"--lengths has 65, but dense/model reads 64 tokens at most"),
        ({"batch_sizes": [0]}, r"--batches takes different whole numbers above 0, such as 1,8, not \[0\]"),
        ({"lengths": [8, 8]}, r"--lengths takes different whole numbers"),
        ({"budget": 0.0}, r"--budget is the number of seconds to spend"),
    ],
)
@pytest.mark.situation("bench", "a length that a model cannot read, or no number to measure", "refused")
def test_impossible_values_are_refused_by_name(folders, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        saved.bench_models(folders, tmp_path / "out", timer=timer, **(SMALL | changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.situation("bench", "models on a GPU that is not there", "refused")
def test_a_missing_gpu_is_named(folders, tmp_path):
    with pytest.raises(UserError, match="no CUDA device here"):
        saved.bench_models(folders, tmp_path / "out", device_name="cuda")


def test_one_model_twice_is_refused_and_another_file_is_not_replaced(folders, tmp_path):
    with pytest.raises(UserError, match="is named twice; name each model once"):
        saved.bench_models([folders[0], folders[0]], tmp_path / "out", **SMALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/models-cpu.json").write_bytes(b"mine \xff")
    with pytest.raises(UserError, match=r"models-cpu\.json.*was not written by nxm bench"):
        saved.bench_models(folders, tmp_path / "out", timer=timer, **SMALL)
    assert (tmp_path / "out/models-cpu.json").read_bytes() == b"mine \xff"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--batches", "1"], "--batches"),
        (["--lengths", "8"], "--lengths"),
        (["model", "--parts", "card"], "--parts"),
        (["model", "--force"], "--force"),
        (["model", "--dry-run"], "--dry-run"),
    ],
)
@pytest.mark.situation("bench", "an option of models without a model, or the other way round", "refused")
def test_an_option_that_would_do_nothing_is_refused(arguments, option):
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 1
    assert f"{option}: for a bench" in done.stderr
