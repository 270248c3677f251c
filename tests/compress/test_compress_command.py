"""The command `nxm compress`: its options are the settings, its exit status the gate."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import HubServer
from nxm import cli
from nxm.compress.settings import Compression, make_settings
from user_data import reviews, save_tiny, write_csv


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.app([str(argument) for argument in ("compress", *arguments)])
    return int(ended.value.code or 0)


def test_every_setting_is_an_option_with_the_same_default():
    options = inspect.signature(cli.compress).parameters
    assert set(options) == {*Compression.model_fields, "dry_run", "force"}
    for name, field in Compression.model_fields.items():
        if not field.is_required() and name != "label":
            assert options[name].default == field.default, name


def test_options_reach_the_call_and_the_gate_is_the_exit_status(monkeypatch):
    given = {}

    def call(model, train, **options):
        given.update(options, model=model, train=train)
        return SimpleNamespace(passed=options["max_drop"] != 1.0)

    monkeypatch.setattr("nxm.compress.run.compress_model", call)
    arguments = [
        "m",
        "--train",
        "d.csv",
        "--label",
        "a",
        "--label",
        "b",
        "--to",
        "1:4",
        "--budget",
        "2h",
        "--seed",
        "3",
    ]
    assert command(*arguments, "--max-drop", "1.0") == 1
    assert command(*arguments, "--max-drop", "2.0") == 0
    assert (given.pop("force"), given.pop("dry_run")) == (False, False)
    settings = make_settings(given)
    assert settings.label == ("a", "b")
    assert (settings.to, settings.budget_seconds, settings.seed) == ("1:4", 7200, 3)
    assert settings.folder == Path("m-1of4")
    assert make_settings({"model": ".", "train": "d.csv", "label": "a"}).folder == Path(f"{Path.cwd().name}-2of4")


def test_bad_input_is_one_line_and_status_1(tmp_path, capsys):
    assert command(tmp_path, "--train", tmp_path / "none.csv") == 1
    error = capsys.readouterr().err.strip()
    assert error == f"error: {tmp_path / 'none.csv'}: there is no such file"


def test_a_run_ends_with_where_to_look(tmp_path):
    data, model = write_csv(tmp_path / "data.csv", reviews()), save_tiny(tmp_path / "model")
    arguments = [str(model), "--train", str(data), "--epochs", "2", "--dense-epochs", "1", "--batch-size", "16"]
    done = subprocess.run(
        [sys.executable, "-m", "nxm", "compress", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[-1] == "report: model-2of4/report.md, .html and .json; compressed model: model-2of4/model"
    assert json.loads((tmp_path / "model-2of4" / "report.json").read_text())["check"]["compared"]


@pytest.mark.situation("nxm compress", "a name on the Hub, and later its cached copy without a network", "works")
def test_a_model_of_the_hub_is_downloaded_and_later_read_from_the_cache(tmp_path):
    save_tiny(tmp_path / "hub" / "models" / "tests" / "tiny")
    data = write_csv(tmp_path / "data.csv", reviews())
    arguments = [sys.executable, "-m", "nxm", "compress", "tests/tiny", "--train", str(data), "--dry-run"]
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with HubServer(tmp_path / "hub") as server:
        variables = os.environ | home | {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0"}
        first = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    found = re.search(r"model: tests/tiny@\w{40}; is fine-tuned first", first.stdout)
    assert found
    again = subprocess.run(arguments, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert found[0] in again.stdout
