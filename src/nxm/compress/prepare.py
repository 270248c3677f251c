"""Everything that is known of a run before anything is trained: rows, model, head, tokens and the two trainings."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from nxm.compress.encode import Encoded, encode, encode_images, encode_questions, readable_length
from nxm.compress.examples import Examples, read_examples, read_more_examples, strata
from nxm.compress.model import Origin, find_model, fitting_classes, load_image_processor, load_start, load_tokenizer
from nxm.compress.score import held_out_outcomes, metric_names
from nxm.compress.settings import ANSWERS, IMAGES, Compression
from nxm.compress.split import contradictions, hold_out, without
from nxm.compress.tables import read_held_out_split, read_table
from nxm.compress.train import Course, require_steps
from nxm.errors import UserError
from nxm.export.images import FORMATS, image_size, load_trained_on_images
from nxm.export.trained import Answer, Trained, load_trained
from nxm.files import sha256_tree
from nxm.machine import versions
from nxm.models.targets import find_targets, validate_targets
from nxm.sets import parse_set
from nxm.sets.base import ConstraintSet
from nxm.sets.integers import Integers
from nxm.sets.nm import NM

WIDE = 512  # hidden size above which learning rates are those of the base models
LEARNING_RATES = {"small": (1e-4, 2e-4), "base": (4e-5, 8e-5)}  # dense, compressed; studies glue and plus-base
WARMUP = {"dense": 0.1, "compress": 0.3}  # at these learning rates compression needs the slow one
FEW_STEPS = 100  # the studies' shortest trainings have some 300


@dataclass
class Notes:
    """Remarks on data and plan, printed when they are made and repeated in the report."""

    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Print a remark and remember it."""
        print(f"note: {text}", flush=True)
        self.lines.append(text)


@dataclass(frozen=True)
class Prepared:
    """A run before it trains.

    Attributes:
        train_rows, test_rows: examples with the classes in the order of the model's outputs.
        held_out_place: where the held-out rows came from.
        head_fits: the model has a head for these labels.
        processor: the tokenizer, or the processor of images.
        train, test: the rows as the Trainer takes them.
        image_size: channels, height and width of what the model reads; None for texts.
        dense_course, course: of the fine-tuning and of the compression.
        metrics: the names of the metrics, the one to compare first.
    """

    settings: Compression
    constraint: ConstraintSet
    origin: Origin
    processor: Any
    train_rows: Examples
    test_rows: Examples
    held_out_place: str
    head_fits: bool
    train: Encoded
    test: Encoded
    image_size: tuple[int, int, int] | None
    dense_course: Course
    course: Course
    metrics: tuple[str, ...]
    notes: Notes

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.settings.folder

    @property
    def task(self) -> str:
        """The task, one of `nxm.compress.settings.TASKS`."""
        return self.train_rows.task

    @property
    def fine_tunes(self) -> bool:
        """True if a dense model is fine-tuned first."""
        return not self.head_fits or self.settings.fine_tune

    def load_start(self) -> PreTrainedModel:
        """Return the user's model with its head, a new one the same each time."""
        return load_start(self.origin, self.train_rows, not self.head_fits, self.settings.seed)

    def load_saved(self, folder: Path) -> Trained:
        """Return a model that this run saved. Raises UserError if it is damaged or has left its set."""
        if isinstance(self.processor, BaseImageProcessor):
            return load_trained_on_images(folder, self.processor)
        return load_trained(folder)

    def outcomes(self, answer: Answer) -> np.ndarray:
        """Return the outcomes (`nxm.compress.score`) of a model, or of another form of it, on the held-out rows."""
        return held_out_outcomes(self.test_rows, self.test, answer)

    def identity(self) -> dict[str, Any]:
        """Return, as JSON, all that decides the result: settings, checksums of data and model, versions."""
        settings = self.settings
        return {
            "settings": settings.deciding(),
            "files": {
                "sha256 of --train": sha256_tree(settings.train),
                "sha256 of --test": sha256_tree(settings.test) if settings.test else None,
                "sha256 of MODEL": self.origin.sha256,
                **({"sha256 of the images": self._images()} if self.task == IMAGES else {}),
            },
            "versions": versions(),
        }

    def _images(self) -> str:
        """Return a checksum of all images, which a table only names."""
        pictures = [picture for rows in (self.train_rows, self.test_rows) for (picture,) in rows.inputs]
        return hashlib.sha256("".join(picture.digest for picture in pictures).encode()).hexdigest()


def prepare(settings: Compression) -> tuple[Prepared, PreTrainedModel]:
    """Read the data and the model, and print what was found; return it, and the model with its head.

    Raises:
        UserError: settings, data or model cannot be used, or do not fit each other.
    """
    notes = Notes()
    constraint = parse_set(settings.to)
    refuse_export(settings.export, constraint)
    train_rows, test_rows, place = read_rows(settings, notes)
    images = train_rows.task == IMAGES
    if images:
        refuse_export_of_images(settings.export)
    origin = find_model(settings.model, train_rows.task)
    classes = fitting_classes(origin.config, train_rows)
    if classes is not None:
        train_rows, test_rows = train_rows.with_classes(classes), test_rows.with_classes(classes)
    metrics = metric_names(train_rows.task, train_rows.classes, settings.metric)
    processor: Any = load_image_processor(origin) if images else load_tokenizer(origin, train_rows.task)
    start = load_start(origin, train_rows, classes is None, settings.seed)
    validate_targets(find_targets(start), constraint)
    size = image_size(start, processor, origin.place) if images else None
    if images and settings.max_length is not None:
        raise UserError(f"max_length = {settings.max_length}: is for texts; images have the size that the model reads")
    if images:
        train, test = encode_images(train_rows, processor), encode_images(test_rows, processor)
    else:
        length = readable_length(start, processor, settings.max_length)
        train, test = (_encode(rows, processor, start, length, notes) for rows in (train_rows, test_rows))
    dense_course, course = _courses(settings, start)
    prepared = Prepared(
        settings,
        constraint,
        origin,
        processor,
        train_rows,
        test_rows,
        place,
        classes is not None,
        train,
        test,
        size,
        dense_course,
        course,
        metrics,
        notes,
    )
    require_steps(len(train), course, 2)  # ADMM's half must have a projection
    steps = course.steps_per_epoch(len(train)) * course.epochs
    if steps < FEW_STEPS:
        notes.add(f"only {steps} optimizer steps of compression: more epochs or rows would do better")
    _announce(prepared)
    return prepared, start


def read_rows(settings: Compression, notes: Notes) -> tuple[Examples, Examples, str]:
    """Return the rows to train on, the held-out ones, and where these came from.

    No text, context or image is on both sides.

    Raises:
        UserError: see `nxm.compress.tables` and `nxm.compress.examples`; or no row is left on one side.
    """
    table = read_table(settings.train, settings.encoding)
    examples = read_examples(table, settings)
    for remark in table.remarks:
        notes.add(remark)
    what = {IMAGES: "image", ANSWERS: "context"}.get(examples.task, "text")
    if differing := contradictions(examples.inputs, examples.labels):
        row, label = ("questions", "answers") if examples.task == ANSWERS else (f"{what}s", "labels")
        notes.add(f"{differing} {row} occur more than once with different {label}")
    held = (
        read_table(settings.test, settings.encoding)
        if settings.test
        else read_held_out_split(settings.train, settings.encoding)
    )
    if held is None:
        rows, held_rows = hold_out(examples.keys, strata(examples), settings.held_out, settings.seed)
        return examples.take(rows), examples.take(held_rows), f"of {settings.train}"
    test = read_more_examples(held, examples)
    rows = without(examples.keys, test.keys)
    if len(rows) == 0:
        raise UserError(f"{settings.train}: every {what} is in {held.place} too: nothing is left to train on")
    if len(rows) < len(examples):
        notes.add(f"{len(examples) - len(rows)} training rows are left out: their {what}s are held out too")
    return examples.take(rows), test, held.place


def refuse_export(form: str | None, constraint: ConstraintSet) -> None:
    """Raise UserError, before hours of training, for an export that this set or this machine cannot have."""
    if form is None:
        return
    if form in ("packed", "onnx-weight-only") and not isinstance(constraint, Integers):
        raise UserError(f"--export {form}: is for integers, such as --to '2:4 int8', not for {constraint}")
    if form == "torch-2of4":
        mask = constraint.mask if isinstance(constraint, Integers) else constraint
        if not (isinstance(mask, NM) and mask.group_size == 4 and mask.n_nonzero <= 2):
            raise UserError(f"--export torch-2of4: is for --to 2:4 or 1:4, not for {constraint}")
    needed = {
        "openvino": ["openvino"],
        "openvino-int8": ["openvino"],
        "torch-int8": ["torchao"],
        "torch-2of4": [],
        "packed": [],
    }
    for package in needed.get(form, ["onnx", "onnxruntime", "onnxscript"]):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--export {form}: needs the package {package}: pip install 'nxm[export]'")


def refuse_export_of_images(form: str | None) -> None:
    """Raise UserError, before hours of training, for a format in which models of images cannot be written."""
    if form not in (None, *FORMATS):
        raise UserError(f"--export {form}: is for models of texts; images have {', '.join(FORMATS)}")


def _encode(examples: Examples, tokenizer: Any, model: PreTrainedModel, length: int, notes: Notes) -> Encoded:
    if examples.task == ANSWERS:
        encoded = encode_questions(examples, tokenizer, model, length)
        if encoded.cut:
            notes.add(
                f"{examples.place}: {encoded.cut} of {len(examples)} contexts are read in windows of {length} tokens"
            )
        return encoded
    encoded = encode(examples, tokenizer, model, length)
    if encoded.cut:
        notes.add(
            f"{examples.place}: {encoded.cut} of {len(examples)} texts are longer than {length} tokens and are cut"
        )
    return encoded


def _courses(settings: Compression, start: PreTrainedModel) -> tuple[Course, Course]:
    wide = getattr(start.config.get_text_config(), "hidden_size", WIDE) > WIDE
    dense_rate, rate = LEARNING_RATES["base" if wide else "small"]

    def course(title: str, epochs: int, learning_rate: float, warmup: float) -> Course:
        return Course(title, epochs, learning_rate, warmup, settings.batch_size, settings.seed)

    return (
        course("fine-tune", settings.dense_epochs, settings.dense_learning_rate or dense_rate, WARMUP["dense"]),
        course(f"compress to {settings.to}", settings.epochs, settings.learning_rate or rate, WARMUP["compress"]),
    )


def _announce(prepared: Prepared) -> None:
    rows = prepared.train_rows
    classes = f", {len(rows.classes)} classes: {_some(rows.classes)}" if rows.classes else ""
    what = "image" if rows.task == IMAGES else "text"
    print(f"task: {rows.task}{classes} ({what}: {_some(rows.columns.text)}; label: {_some(rows.columns.label)})")
    print(f"rows: {len(rows)} to train, {len(prepared.test_rows)} held out ({prepared.held_out_place})")
    head = "is fine-tuned first" if prepared.fine_tunes else "has a head for these labels: start and teacher"
    print(f"model: {prepared.origin.place}; {head}", flush=True)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
