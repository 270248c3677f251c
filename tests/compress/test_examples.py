"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import AutoImageProcessor

from nxm import find_targets
from nxm.export.images import load_trained_on_images
from nxm.export.trained import load_trained
from user_data import reviews, save_tiny, write_csv
from user_images import save_vision, write_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "model", "pattern"), [("trainer_callback", ".", "2:4"), ("own_csv", "model", "2:4 int8")]
)
def test_an_example_runs_and_its_model_obeys(script, model, pattern, tmp_path):
    frame = reviews()
    data = write_csv(tmp_path / "data.csv", frame.assign(label=(frame.label == "good").astype(int)))
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), str(save_tiny(tmp_path / "tiny")), str(data), "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    claims = load_trained(tmp_path / "out" / model).claims
    assert [str(constraint) for constraint, _ in claims] == [pattern]


def test_the_example_of_images_runs_and_its_model_obeys(tmp_path):
    model, data = save_vision(tmp_path / "tiny"), write_folder(tmp_path / "pets", rows=16)
    command = [sys.executable, str(EXAMPLES / "image_classification.py"), str(model), str(data), "out"]
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    trained = load_trained_on_images(tmp_path / "out", processor)  # asserts the pattern
    assert [str(constraint) for constraint, _ in trained.claims] == ["2:4"]
    assert len(trained.sparse) == 12
    assert trained.model.config.id2label == {0: "blue", 1: "red"}


@pytest.mark.situation("training", "sentence-transformers' Trainer", "works")
@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_the_example_of_sentence_embeddings_runs_and_its_model_obeys(tmp_path):
    texts = reviews().text
    pairs = pd.DataFrame(
        {"sentence1": texts, "sentence2": texts[::-1].to_numpy(), "score": np.linspace(0, 1, len(texts))}
    )
    model, data = save_tiny(tmp_path / "tiny"), write_csv(tmp_path / "pairs.csv", pairs)
    command = [sys.executable, str(EXAMPLES / "sentence_embeddings.py"), str(model), str(data), "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    trained = load_trained(tmp_path / "out")  # asserts the pattern
    assert [str(constraint) for constraint, _ in trained.claims] == ["2:4"]
    assert len(trained.sparse) == len(find_targets(trained.model))


def test_every_example_has_a_test():
    tested = {"trainer_callback", "own_csv", "image_classification", "sentence_embeddings"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
