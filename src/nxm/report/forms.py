"""Names and markers of the forms in which a model is deployed, for figures, tables and pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nxm.report import labels

Row = dict[str, Any]  # of results/deployment/<device>.json

FORMS = {  # (way, dtype): label and marker
    ("eager", "fp32"): ("PyTorch fp32", "o"),
    ("eager", "bf16"): ("PyTorch bf16", "s"),
    ("eager", "fp16"): ("PyTorch fp16", "D"),
    ("compiled", "fp32"): ("compiled fp32", "v"),
    ("compiled", "bf16"): ("compiled bf16", "d"),
    ("onnx", "fp32"): ("ONNX fp32", "^"),
    ("onnx", "int8"): ("ONNX INT8", "P"),
    ("openvino", "fp32"): ("OpenVINO fp32", ">"),
    ("openvino", "int8"): ("OpenVINO INT8", "h"),
    ("pt2e", "int8"): ("PyTorch INT8", "X"),
    ("compiled", "int8"): ("compiled INT8", "<"),
}
LOST = 1.0  # points: a form that costs more than this of its own model's score is not taken as its fastest
_FORM = ("way", "dtype", "kernel")


def form(row: Row) -> tuple[str, str]:
    """Return label and marker of a row's runtime and precision."""
    return FORMS.get((row["way"], row["dtype"]), (f"{row['way']} {row['dtype']}", "*"))


def described(row: Row) -> str:
    """Return a form's label with its kernels: `PyTorch fp32`, `PyTorch bf16, 2:4`."""
    name, _ = form(row)
    return name if row["kernel"] == "dense" else f"{name}, {row['kernel']}"


def is_plain(row: Row, dtype: str = "fp32") -> bool:
    """Return whether a row is eager PyTorch with dense kernels."""
    return (row["way"], row["dtype"], row["kernel"]) == ("eager", dtype, "dense")


def largest(rows: list[Row]) -> list[Row]:
    """Return the timed rows of the largest batch and length."""
    timed = [row for row in rows if "median_ms" in row]
    point = max((row["batch"], row["length"]) for row in timed)
    return [row for row in timed if (row["batch"], row["length"]) == point]


def fastest_forms(rows: list[Row], scores: list[Row]) -> dict[str, tuple[Row, float]]:
    """Return for each scored model the row of its fastest form, with its score.

    A form counts if it costs at most `LOST` points of the model's own score in PyTorch fp32.
    """
    by_form = {(score["model"], *(score[key] for key in _FORM)): score["score"] for score in scores}
    plain = {score["model"]: score["score"] for score in scores if is_plain(score)}
    found: dict[str, tuple[Row, float]] = {}
    for row in sorted(rows, key=lambda row: row["speedup_over_dense_fp32"]):
        score = by_form.get((row["model"], *(row[key] for key in _FORM)))
        if score is not None and row["model"] in plain and plain[row["model"]] - score <= LOST:
            found[row["model"]] = row, score
    return found


def absences(files: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each reason why a device, or forms of models, were not measured."""
    reasons: dict[str, dict[str, dict[str, None]]] = {}  # reason -> device or form -> models
    for file in files:
        if "absent" in file:
            reasons.setdefault(file["absent"], {})[file["device"].upper()] = {}
        for row in file["rows"]:
            if "absent" in row:
                what = described(row) if "way" in row else "every form"
                reasons.setdefault(row["absent"], {}).setdefault(what, {})[labels.run_label(row["model"])] = None
    return [
        f"Absent: {'; '.join(_of(what, models) for what, models in own.items())}: {reason.rstrip('.')}."
        for reason, own in reasons.items()
    ]


def _of(what: str, models: Iterable[str]) -> str:
    return f"{what} of {'; '.join(models)}" if models else what
