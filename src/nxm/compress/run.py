"""The whole run: plan, dense model, compression and report. Each part that is done is found again after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets.utils import logging as datasets_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from nxm.compress import card, folder
from nxm.compress.plan import Plan, after_dense, make_plan, measure_speed
from nxm.compress.prepare import Prepared, prepare
from nxm.compress.report import make_report
from nxm.compress.settings import make_settings
from nxm.compress.train import train
from nxm.durations import say_duration
from nxm.errors import UserError
from nxm.export.trained import outputs
from nxm.files import check_room, new_file, write_json, write_text
from nxm.methods.admm.callback import AdmmCallback
from nxm.methods.admm.settings import BEST_ADMM, Admm
from nxm.models.save import save_model

# The paper's own algorithm, at the rho that the embedded study runs it with
PAPER = Admm(recipe="paper", rho=6e-3)
NOISE = 0.3  # NxM+'s in the study glue; DistillationTrainer has it for one label per text
NOISY = ("classification", "regression")


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        folder: the output folder.
        plan: the epochs, and the seconds estimated beforehand.
        report: the numbers of report.json; None for a dry run.
    """

    folder: Path
    plan: Plan
    report: dict[str, Any] | None

    @property
    def passed(self) -> bool:
        """True unless the score dropped by more than `max_drop` or the export was refused."""
        return self.report is None or bool(self.report["gate"]["passed"])

    @property
    def model(self) -> Path:
        """The compressed model, a `from_pretrained` folder."""
        return self.folder / "model"


def compress_model(
    model: str | Path, train: str | Path, *, force: bool = False, dry_run: bool = False, **options: Any
) -> Outcome:
    """Fine-tune a model if it needs it, compress it, check and measure it, and write a report card.

    Example: `compress_model("distilbert-base-uncased", "reviews.csv", to="2:4 int8", max_drop=1.0)`.

    After a kill the same call goes on, and ends with the same weights and scores as without.

    Args:
        model, train: see `Compression`.
        force: start again where the output folder holds an earlier run.
        dry_run: print the plan; write and train nothing.
        options: further settings of `Compression`, which describes them with their units.

    Returns: the outcome. Its scores are in points (x 100), its times in seconds. A drop beyond `max_drop` is no error:
        `passed` is then False.

    Raises:
        UserError: a setting, the data or the model cannot be used, or the output folder belongs to something else. The
            message names the setting or file, the value and what would be right; nothing was lost.
    """
    settings = make_settings({"model": str(model), "train": train, **options})
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by accelerate launch
        raise UserError("nxm compress runs in one process: start it without accelerate launch or torchrun")
    with _quiet():
        prepared, start = prepare(settings)
        identity, known = prepared.identity(), None
        if not dry_run:
            known = folder.find_plan(prepared.out, identity, force=force, source=prepared.origin.folder)
        plan = _make_plan(prepared, start) if known is None else Plan(**known)
        if dry_run:
            print("dry run: nothing was trained or written")
            return Outcome(prepared.out, plan, None)
        if known is None:
            folder.begin(prepared.out, identity, dataclasses.asdict(plan))
        else:
            print(f"{prepared.out}: goes on with an earlier run", flush=True)
        dense = _fine_tune(prepared, start, plan)
        plan = _settle(prepared, plan)
        if prepared.fine_tunes and plan.dense_epochs < settings.dense_epochs:
            prepared.notes.add(f"the budget left {plan.dense_epochs} of {settings.dense_epochs} epochs of fine-tuning")
        if plan.epochs < settings.epochs:
            prepared.notes.add(f"the budget left {plan.epochs} of {settings.epochs} epochs of compression")
        compressed = _compress(prepared, plan)
        report = make_report(prepared, plan, dense, compressed)
        shutil.rmtree(prepared.out / "work", ignore_errors=True)
    print(card.verdict(report))
    print(f"report: {prepared.out}/report.md, .html and .json; compressed model: {prepared.out}/model")
    return Outcome(prepared.out, plan, report)


def _make_plan(prepared: Prepared, start: PreTrainedModel) -> Plan:
    """Time a few steps, print the plan and return it. Raises UserError if the budget or the disk is too small."""
    settings, course = prepared.settings, prepared.course
    speed = measure_speed(start, prepared.train, len(prepared.test), course)
    steps, budget = course.steps_per_epoch(len(prepared.train)), settings.budget_seconds
    dense_epochs = settings.dense_epochs if prepared.fine_tunes else 0
    plan = make_plan(speed, steps, dense_epochs, settings.epochs, settings.recipe == "best", budget)
    print(
        f"plan: {plan.dense_epochs} epochs to fine-tune, {plan.epochs} to compress, {steps} steps each; about "
        f"{say_duration(plan.seconds)}" + (f" of {say_duration(budget)}" if budget else ""),
        flush=True,
    )
    # two checkpoints with the states of Adam and ADMM, and two models
    check_room(prepared.out / "work", 14 * 4 * sum(W.numel() for W in start.parameters()))
    return plan


def _fine_tune(prepared: Prepared, start: PreTrainedModel, plan: Plan) -> Path | None:
    """Return the dense model's folder, after fine-tuning it unless it is there; None: the user's model is dense."""
    if not prepared.fine_tunes:
        return None
    place, scratch = prepared.out / "dense", prepared.out / "work" / "dense"
    if not place.is_dir():
        course = dataclasses.replace(prepared.dense_course, epochs=plan.dense_epochs)
        seconds = train(start, prepared.processor, prepared.train, course, scratch)
        _write_seconds(prepared, "dense", seconds)
        save_model(start.cpu(), prepared.processor, place)
    shutil.rmtree(scratch, ignore_errors=True)
    return place


def _settle(prepared: Prepared, plan: Plan) -> Plan:
    """Return the plan after the fine-tuning, with fewer epochs if that took longer than estimated."""
    if (prepared.out / "work" / "settled").exists() or (prepared.out / "model").is_dir():
        return plan  # in an earlier run of this command
    known = folder.read_json(prepared.out / "work" / "dense.json") or {"seconds": 0.0}
    settled = after_dense(plan, known["seconds"], prepared.settings.budget_seconds)
    if settled != plan:
        write_json(prepared.out / folder.PLAN, dataclasses.asdict(settled))
    write_text(prepared.out / "work" / "settled", "")
    return settled


def _compress(prepared: Prepared, plan: Plan) -> Path:
    """Return the folder of the compressed model, which is trained unless it is there."""
    place, scratch = prepared.out / "model", prepared.out / "work" / "compress"
    if not place.is_dir():
        model, teacher = _dense(prepared), None
        if prepared.settings.recipe == "paper":  # starts from the weights that it is given, and has no teacher
            model = prepared.load_start()
        else:
            teacher = _dense(prepared)
        seconds = train(
            model,
            prepared.processor,
            prepared.train,
            dataclasses.replace(prepared.course, epochs=plan.epochs),
            scratch,
            callback=AdmmCallback(prepared.constraint, PAPER if teacher is None else BEST_ADMM),
            teacher=teacher,
            noise=NOISE if teacher is not None and prepared.task in NOISY else 0.0,
        )
        _write_seconds(prepared, "compress", seconds)
        # the report compares them with those of the saved model
        found = prepared.outcomes(partial(outputs, model.eval()))
        with new_file(prepared.out / "work" / folder.OUTCOMES) as path, path.open("wb") as file:
            np.save(file, found, allow_pickle=False)
        save_model(model.cpu(), prepared.processor, place)
    shutil.rmtree(scratch, ignore_errors=True)
    return place


def _dense(prepared: Prepared) -> PreTrainedModel:
    return prepared.load_saved(prepared.out / "dense").model if prepared.fine_tunes else prepared.load_start()


def _write_seconds(prepared: Prepared, name: str, seconds: float) -> None:
    write_json(prepared.out / "work" / f"{name}.json", {"seconds": seconds})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out, inside the block, progress and warnings of the libraries at every step of loading and saving."""
    verbosity = transformers_logging.get_verbosity()
    bars = [library for library in (transformers_logging, datasets_logging) if library.is_progress_bar_enabled()]
    transformers_logging.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for library in bars:
            library.enable_progress_bar()
