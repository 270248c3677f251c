"""The numbers of a finished run: check, scores, export, size and speed, as report.json has them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nxm.compress import card, folder, speed
from nxm.compress.plan import Plan
from nxm.compress.prepare import Prepared
from nxm.compress.score import compare, constant_answer, metrics
from nxm.compress.train import device
from nxm.errors import UserError, first_line
from nxm.export.formats import export, writer
from nxm.export.images import TrainedOnImages
from nxm.export.trained import Trained, outputs
from nxm.files import write_json, write_text
from nxm.machine import machine, versions
from nxm.models.packed import stored_bits
from nxm.models.targets import find_targets
from nxm.sets.integers import Integers
from nxm.sets.saved import report as check_matrices
from nxm.sets.saved import stored_tensors

SAME_SCORE = {"cpu": 1e-6, "cuda": 0.05}  # points; on a GPU sums need not have the same order each time
SAMPLE = 64  # training texts or images on which an export is compared and calibrated


def make_report(prepared: Prepared, plan: Plan, dense_folder: Path | None, compressed_folder: Path) -> dict[str, Any]:
    """Check, score, export and time the saved models; write the report, its card and the model's; return the numbers.

    Args:
        dense_folder: None: the user's own model is the dense one.

    Raises:
        UserError: a saved model is damaged.
        AssertionError: the saved model is not the one that was trained, which would be an error of nxm.
    """
    settings, task, metric = prepared.settings, prepared.task, prepared.metrics[0]
    columns = prepared.train_rows.columns
    earlier = folder.read_json(prepared.out / folder.REPORT)
    compressed = prepared.load_saved(compressed_folder)  # asserts the pattern
    if dense_folder is None:
        dense = Trained(prepared.origin.folder, prepared.load_start().eval(), prepared.processor, [])
    else:
        dense = prepared.load_saved(dense_folder)
    before, after = (prepared.outcomes(partial(outputs, speed.moved(own, device()))) for own in (dense, compressed))
    old, new, difference = compare(task, metric, before, after)
    exported, opened = _export(prepared, compressed, old.value)
    length = None if prepared.image_size else speed.typical_length(prepared.test.rows["length"])
    size: Any = prepared.image_size or length
    drop = max(old.value - new.value, exported.get("drop", -np.inf))
    allowed = settings.max_drop is None or drop <= settings.max_drop + 1e-9
    report = {
        "model": prepared.origin.place,
        "hub_name": None if Path(settings.model).is_dir() else settings.model,
        "folder": str(prepared.out),
        "task": task,
        "classes": list(prepared.train_rows.classes),
        "columns": {"text": list(columns.text), "label": list(columns.label)},
        "rows": {"train": len(prepared.train_rows), "held_out": len(prepared.test_rows)},
        "held_out_place": prepared.held_out_place,
        "to": str(prepared.constraint),
        "recipe": settings.recipe,
        "learning_rates": {
            "dense": prepared.dense_course.learning_rate if prepared.fine_tunes else None,
            "compress": prepared.course.learning_rate,
        },
        "metric": metric,
        "metrics": list(prepared.metrics),
        "scores": {
            "before": asdict(old) | {"metrics": metrics(task, before)},
            "after": asdict(new) | {"metrics": metrics(task, after)},
            "difference": asdict(difference),
        },
        "constant": constant_answer(task, before),
        "check": _check(prepared, compressed, after, earlier),
        "export": exported,
        "size": _size(prepared, compressed, dense.folder),
        "length": length,
        "image_size": prepared.image_size,
        "latency": speed.measure(dense, compressed, opened, size) + _absent(exported, length),
        "gate": {"max_drop": settings.max_drop, "drop": drop, "passed": allowed and "refused" not in exported},
        "plan": asdict(plan),
        "seconds": {name: _seconds(prepared, name, earlier) for name in ("dense", "compress")},
        "notes": prepared.notes.lines,
        "machine": machine(),
        "versions": versions(),
    }
    write_text(prepared.out / "report.md", card.markdown(report))
    write_text(prepared.out / "report.html", card.html(report))
    write_text(compressed_folder / "README.md", card.model_card(report))
    write_json(prepared.out / folder.REPORT, report)
    return report


def _check(
    prepared: Prepared, compressed: Trained, after: np.ndarray, earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return how many matrices obey, their density, and whether the scores equal those of the model in training."""
    weights = dict(compressed.model.named_parameters())
    targets = {name: weights[name] for name in find_targets(compressed.model)}
    found = check_matrices(targets, prepared.constraint)
    broken = [matrix.name for matrix in found if not matrix.holds]
    assert not broken, f"{compressed.folder}: {broken[0]} is not {prepared.constraint}: please report this"
    path = prepared.out / "work" / folder.OUTCOMES
    compared = bool(earlier and earlier["check"]["compared"])
    if path.is_file():
        ours, trained = (metrics(prepared.task, own) for own in (after, np.load(path, allow_pickle=False)))
        gap = max(abs(ours[name] - trained[name]) for name in ours)
        assert gap <= SAME_SCORE[device().type], f"{compressed.folder}: {gap:.3g} points off: please report this"
        compared = True
    entries = sum(W.numel() for W in targets.values())
    density = sum(int(W.count_nonzero()) for W in targets.values()) / entries
    return {"matrices": len(found), "obeying": len(found), "density": density, "compared": compared}


def _export(
    prepared: Prepared, compressed: Trained, dense_score: float
) -> tuple[dict[str, Any], dict[str, speed.Opened]]:
    """Write the export that is wanted and open it; return its size, score and drop, or why there is none."""
    form = prepared.settings.export
    if form is None:
        return {}, {}
    place = prepared.out / folder.EXPORTS[form]
    try:
        if isinstance(compressed, TrainedOnImages):
            _export_images(prepared, compressed, place)
        else:
            texts = prepared.out / "work" / "texts.txt"
            write_text(texts, "\n".join(_sentences(prepared)) + "\n")
            with contextlib.redirect_stdout(io.StringIO()):  # the report says it
                export(compressed.folder, place, form, texts=None if form == "packed" else texts, force=place.exists())
    except UserError as error:
        prepared.notes.add(f"the export to {form} was refused: {first_line(error)}")
        return {"format": form, "refused": first_line(error)}, {}
    files = [path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    described = {"format": form, "file": place.name, "bytes": sum(path.stat().st_size for path in files)}
    try:
        opened = speed.open_export(place, form, tokens=8 * max(prepared.test.rows["length"]))
        found = metrics(prepared.task, prepared.outcomes(opened.answer))[prepared.metrics[0]]
    except (UserError, RuntimeError) as error:  # such as no GPU, or no compiler
        prepared.notes.add(f"the export to {form} cannot be run here: {first_line(error)}")
        return described | {"absent": first_line(error)}, {}
    return described | {"score": found, "drop": dense_score - found}, {f"exported, {form}": opened}


def _export_images(prepared: Prepared, compressed: TrainedOnImages, place: Path) -> None:
    """Write a model of images, compared on some training images."""
    images = [picture.pixels() for (picture,) in prepared.train_rows.inputs[:SAMPLE]]
    writer(str(prepared.settings.export))(compressed, place, images, force=place.exists())


def _absent(exported: Mapping[str, Any], length: int | None) -> list[dict[str, Any]]:
    """Return a row with the reason if an export cannot be run on this machine."""
    if "absent" not in exported:
        return []
    return [{"form": f"exported, {exported['format']}", "batch": 1, "length": length, "absent": exported["absent"]}]


def _sentences(prepared: Prepared) -> list[str]:
    """Return some training texts in the form of `nxm export --texts`: one example per line, a tab between two texts."""
    between = " " if prepared.task == "token-classification" else "\t"
    return [
        between.join(re.sub(r"\s+", " ", text).strip() for text in texts)
        for texts in prepared.train_rows.inputs[:SAMPLE]
    ]


def _size(prepared: Prepared, compressed: Trained, dense: Path) -> dict[str, Any]:
    targets = find_targets(compressed.model)
    entries = sum(W.numel() for W in targets.values())
    bits = sum(stored_bits(prepared.constraint, W.shape) for W in targets.values())
    whole = _stored(compressed.folder)
    integers = isinstance(prepared.constraint, Integers)
    return {
        "dense_bytes": _stored(dense),
        "compressed_bytes": whole,
        "packed_bytes": whole - 4 * entries + bits // 8 if integers and not prepared.image_size else None,
        "bits_per_weight": bits / entries,
        "share": entries / sum(W.numel() for W in compressed.model.parameters()),
    }


def _stored(model: Path) -> int:
    return sum(path.stat().st_size for path in set(stored_tensors(model).values()))


def _seconds(prepared: Prepared, name: str, earlier: Mapping[str, Any] | None) -> float:
    known = folder.read_json(prepared.out / "work" / f"{name}.json")
    if known is not None:
        return float(known["seconds"])
    return float(earlier["seconds"][name]) if earlier else 0.0  # work is removed when a run is finished
