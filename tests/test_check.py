"""`nxm check` on saved models that obey their pattern, break it or are damaged."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxm import NM, Unstructured, cli, find_targets
from nxm.sets.saved import read_pattern, write_pattern


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the command in this process (a new one would spend seconds on imports)."""

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["nxm", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def sparse(tiny_bert, tmp_path):
    targets = find_targets(tiny_bert)
    with torch.no_grad():
        for W in targets.values():
            W.copy_(NM(2, 4).project(W).Z)
    write_pattern(tiny_bert.config, NM(2, 4), targets)
    tiny_bert.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_an_obeying_model_passes_matrix_by_matrix(sparse, check):
    done = check(sparse)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 matrices obey 2:4" in done.stdout
    assert "bert.encoder.layer.1.output.dense.weight" in done.stdout


def test_one_weight_too_many_fails(sparse, check):
    path = sparse / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.0.attention.self.query.weight"][0, :4] = 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    done = check(sparse)
    assert done.returncode == 1
    assert "11 of 12 matrices obey 2:4" in done.stdout


def test_another_pattern_can_be_asked_for(sparse, check):
    assert check(sparse, "--pattern", "2:4").returncode == 0
    assert check(sparse, "--pattern", "1:4").returncode == 1
    done = check(sparse, "--pattern", "two:four")
    assert done.returncode == 1
    assert "--pattern" in done.stderr
    assert "2:4" in done.stderr
    assert "no multiple of the group size 5" in check(sparse, "--pattern", "2:5").stderr


def test_a_dense_model_needs_to_be_told_the_pattern(tiny_bert, tmp_path, check):
    tiny_bert.save_pretrained(tmp_path)
    assert "give one with --pattern" in check(tmp_path).stderr
    assert check(tmp_path, "--pattern", "2:4").returncode == 1


def test_a_truncated_file_and_a_missing_folder_are_named(sparse, tmp_path, check):
    path = sparse / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged or truncated" in check(sparse).stderr
    assert "no model folder here" in check(tmp_path / "absent").stderr


def test_patterns_survive_the_config(tiny_bert, tmp_path):
    for constraint in (NM(1, 8), Unstructured(0.25)):
        write_pattern(tiny_bert.config, constraint, ["a", "b"])
        tiny_bert.config.save_pretrained(tmp_path)
        loaded = type(tiny_bert.config).from_pretrained(tmp_path)
        assert read_pattern(loaded) == (constraint, ["a", "b"])


def test_it_is_a_command(sparse):
    done = subprocess.run(
        [sys.executable, "-m", "nxm", "check", str(sparse)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "12 of 12" in done.stdout


@pytest.mark.parametrize("pattern", [(), ("--pattern", "2:4")])
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged or truncated"),
        ("model.safetensors", lambda path: path.unlink(), "there is no such file"),
        ("config.json", lambda path: path.write_text('{"model_type": '), "no config of a model"),
        ("config.json", lambda path: path.write_text('{"model_type": "nonesuch"}'), "no config of a model"),
    ],
)
def test_a_damaged_folder_is_said_in_a_line(sparse, check, pattern, name, damage, said):
    damage(sparse / name)
    done = check(sparse, *pattern)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"{sparse}/{name}" in done.stderr
    assert said in done.stderr
