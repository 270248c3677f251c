"""The report card says what the numbers say, and shows names of users' columns and classes as they are."""

from __future__ import annotations

from typing import Any

import pytest

from nxm.compress import card


def report(**changes: Any) -> dict[str, Any]:
    score = {"value": 90.0, "low": 85.0, "high": 95.0, "metrics": {"accuracy": 90.0, "macro_f1": 89.0}}
    row = {"form": "dense", "batch": 1, "length": 8, "median_ms": 1.0, "p10_ms": 0.9, "p90_ms": 1.1, "noisy": False}
    values = {
        "model": "owner/name@0123",
        "hub_name": "owner/name",
        "folder": "out",
        "task": "classification",
        "classes": ["<b>bad</b>", "a|b"],
        "columns": {"text": ["te|xt"], "label": ["label"]},
        "rows": {"train": 400, "held_out": 300},
        "held_out_place": "of data.csv",
        "to": "2:4",
        "recipe": "best",
        "metric": "accuracy",
        "metrics": ["accuracy", "macro_f1"],
        "scores": {
            "before": score,
            "after": score | {"value": 88.5},
            "difference": {"value": -1.5, "low": -3, "high": 0.2},
        },
        "constant": 60.0,
        "check": {"matrices": 12, "obeying": 12, "density": 0.5, "compared": True},
        "export": {},
        "size": {
            "dense_bytes": 2**20,
            "compressed_bytes": 2**20,
            "packed_bytes": None,
            "bits_per_weight": 17,
            "share": 0.5,
        },
        "length": 8,
        "latency": [row | {"speedup": 1.0, "kernels": ["aten::addmm"], "sparse_launches": 0}],
        "gate": {"max_drop": None, "drop": 1.5, "passed": True},
        "plan": {"dense_epochs": 2, "epochs": 3},
        "seconds": {"dense": 5.0, "compress": 600.0},
        "notes": [],
        "machine": {"cpu": "a CPU", "cores": 2, "device": "cpu"},
    }
    return values | changes


def test_the_verdict_names_the_drop_its_interval_and_the_gate():
    lost = "Compressed to 2:4: accuracy 88.50, 1.50 points lower than dense (95 %: -3.00 to +0.20)."
    assert card.verdict(report()) == lost
    within = report(gate={"max_drop": 2.0, "drop": 1.5, "passed": True})
    assert card.verdict(within) == f"{lost} Within --max-drop 2."
    elsewhere = report(gate=within["gate"], export={"format": "torch-2of4", "bytes": 8, "absent": "no GPU"})
    assert card.verdict(elsewhere) == f"{lost} Within --max-drop 2 for the model; the export could not be scored here."
    beyond = report(gate={"max_drop": 1.0, "drop": 1.5, "passed": False})
    assert card.verdict(beyond) == f"{lost} It lost 1.50 points, more than --max-drop 1 allows."
    exported = {"format": "onnx-int8", "score": 87.0, "drop": 3.0, "bytes": 5}
    by_export = report(gate={"max_drop": 2.0, "drop": 3.0, "passed": False}, export=exported)
    assert card.verdict(by_export).endswith("The export lost 3.00 points, more than --max-drop 2 allows.")
    refused = report(export={"format": "onnx", "refused": "outputs differ"})
    assert card.verdict(refused) == f"{lost} The export was refused: outputs differ."


def test_names_of_users_are_text_and_not_markup():
    page, text = card.html(report()), card.markdown(report())
    assert "<b>bad" not in page
    assert "&lt;b&gt;bad&lt;/b&gt;, a|b</td>" in page
    assert "text: te|xt; label: label</td>" in page
    assert "te\\|xt" in text


@pytest.mark.parametrize(
    ("to", "words", "no"),
    [("2:4", "have 2:4 kernels", "in place of int4"), ("int4", "in place of int4", "have 2:4 kernels")],
)
def test_the_advice_fits_the_set(to, words, no):
    text = card.markdown(report(to=to))
    assert words in text
    assert no not in text
    assert "no better than the most frequent class" not in text
    assert "no better than the most frequent class" in card.markdown(report(constant=95.0))


def test_sparse_kernels_are_said_to_have_run_only_if_they_did():
    rows = [row | {"sparse_launches": 12} for row in report()["latency"]]
    assert "Kernels for sparse matrices ran" in card.markdown(report(latency=rows))
    assert "No kernel here skips zeros" in card.markdown(report())


def test_the_model_card_names_its_origin_and_the_class_that_loads_it():
    text = card.model_card(report())
    assert "base_model: owner/name\n" in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    tagger = card.model_card(report(task="token-classification", hub_name=None))
    assert "AutoModelForTokenClassification" in tagger
    assert "base_model" not in tagger


def test_the_card_of_a_model_of_images_speaks_of_images():
    images = report(task="image-classification", length=None, image_size=[3, 32, 48], to="2:4 int8")
    text = card.markdown(images)
    assert "images of 32 x 48 pixels" in text
    assert "images: te\\|xt; label: label" in text
    assert "unlabelled images do not help" in text
    assert "nxm export" not in text  # which is for models of texts
    loads = "model, processor = AutoModelForImageClassification.from_pretrained"
    assert loads in card.model_card(images)
