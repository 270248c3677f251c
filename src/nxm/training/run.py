"""One run of a study: from prepared data and a starting model to a trained model and its results file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from transformers import PreTrainedModel

from nxm import machine as provenance
from nxm.data.prepare import load_prepared
from nxm.data.tasks import get_task, paper_metric
from nxm.errors import Diverged, UserError
from nxm.files import sha256_file, sha256_tree
from nxm.machine import SHARED_GPU
from nxm.methods.admm.callback import AdmmCallback
from nxm.methods.callback import SparsityCallback
from nxm.models.permute import permute_
from nxm.models.student import every_other_layer, set_dropout_
from nxm.models.targets import find_targets
from nxm.sets.saved import read_pattern, report
from nxm.study.results import Failure, Result, predictions_path, result_path, write_predictions, write_result
from nxm.study.settings import Extras, Start, Study, Taught, Training
from nxm.training.assemble import get_method, get_pattern
from nxm.training.energy import EnergyMeter
from nxm.training.trainer import load_model, load_tokenizer, save_model, train


@dataclass(frozen=True)
class Cell:
    """Which run of the study: a task, a method and a seed; a cell of a grid also has a name and changed values.

    dense_seed: of the dense model that the run starts from or learns from; None: the run's own seed.
    """

    task: str
    method: str
    seed: int
    name: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    dense_seed: int | None = None

    def folder(self, root: str, study: str) -> Path:
        """Below `root` ("models" or "checkpoints"): `<root>/<study>/<task>/<method>[/<cell>]/seed<k>`."""
        parts = [root, study, self.task, self.method, *([self.name] if self.name else []), f"seed{self.seed}"]
        return Path(*parts)


def run(study: Study, cell: Cell, keep_model: bool = True, keep_predictions: bool = True) -> Path:
    """Train one cell and write its results file; returns the file's path.

    It may also leave its predictions on dev beside that file. A cell of a grid (one that has a name) whose values make
    training diverge, or need more than the GPU's memory, leaves a `Failure` as its result: it is done, and the rest of
    the grid goes on. (Not with several processes, of which the others would wait for ever: there it is an error.)

    A run that was killed resumes from its last whole checkpoint, if settings, data, weights, code and versions are
    still the same, and ends with the same result. Safe to call in every process of `accelerate launch`.

    Args:
        keep_model: also save the trained model below models/ (a grid's cells are only measured).
        keep_predictions: also write the logits on dev, for the bootstrap.

    Raises:
        UserError: something needed is missing, a whole run diverged, or the memory of a GPU that other jobs use too is
            full (by whom, cannot be told).
        torch.OutOfMemoryError: a whole run, alone on its GPU, or one with several processes.
    """
    started, energy = time.perf_counter(), EnergyMeter()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # else processes on a CPU would not join
    provenance.use_cores()
    task, method = get_task(cell.task), get_method(cell.method)
    training = _training(study, cell)
    source, prepared = Path("data", study.study, "source"), Path("data", study.study, "prepared", cell.task)
    data = load_prepared(prepared)
    dense_seed = cell.seed if cell.dense_seed is None else cell.dense_seed
    seeds = Cell(cell.task, "dense", dense_seed), Cell(cell.task, "distil", cell.seed)
    dense, distilled = (seeded.folder("models", study.study) for seeded in seeds)
    from_hub = study.student.source != "teacher"
    origin = training.start if isinstance(training, Start) else method.start
    starts = {
        "pretrained": source / "weights",
        "dense": dense,
        "student": source / "student" if from_hub else dense,
        "distilled": source / "student" if from_hub else distilled,
    }
    start = starts[origin]
    fresh_head = start.parent == source
    set_seed(cell.seed)  # the head's values, then dropout
    mean_label = sum(data["train"]["labels"]) / len(data["train"]) if task.regression else None
    model = load_model(start, task, fresh_head, mean_label if study.trainer.mean_label_bias else None)
    if method.start == "student" and not from_hub:
        model = every_other_layer(model)
    if isinstance(training, Extras) and training.permute:
        permute_(model, get_pattern(study, training), study.targets.include, study.targets.exclude)
    if isinstance(training, Taught) and training.dropout is not None:
        set_dropout_(model, training.dropout)
    distillation = training.distillation if method.teacher else None
    teacher = load_model(dense, task, False) if distillation is not None and distillation.has_teacher else None
    tokenizer = load_tokenizer(start)
    callback = method.callback(study, training) if method.callback else None

    hyperparameters = training.model_dump(mode="json", exclude=None if method.teacher else {"distillation"})
    hashes = {"data_sha256": sha256_tree(prepared), "weights_sha256": sha256_file(start / "model.safetensors")}
    fingerprint = _fingerprint(study, cell, hyperparameters, hashes, dense if teacher else None)
    checkpoints = cell.folder("checkpoints", study.study)
    scratch = checkpoints / fingerprint
    if state.is_main_process and checkpoints.is_dir():
        for stale in checkpoints.iterdir():  # of other settings: nothing can resume from them
            if stale.name != fingerprint:
                shutil.rmtree(stale)
    state.wait_for_everyone()

    path = result_path("", study.study, cell.task, cell.method, cell.seed, cell.name)
    try:
        trained = train(
            model,
            tokenizer,
            task,
            data,
            training,
            study.trainer,
            cell.seed,
            scratch,
            [callback] if callback else [],
            teacher,
            distillation,
            training.noise if isinstance(training, Taught) else 0.0,
        )
    except (Diverged, torch.OutOfMemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) and SHARED_GPU in os.environ:
            raise UserError(
                f"{cell.method} on {cell.task}, seed {cell.seed}: the GPU's memory is full, perhaps of the jobs beside "
                f"this one: run again with fewer jobs (JOBS=1 shows whether it fits alone): {_first_line(error)}"
            ) from None
        if cell.name is None or state.num_processes > 1:
            raise
        seconds = time.perf_counter() - started
        failure = {"hyperparameters": hyperparameters, "failure": _first_line(error), "wall_seconds": seconds}
        place = {"task": cell.task, "method": cell.method, "seed": cell.seed, "cell": cell.name}
        if keep_predictions:
            write_predictions(predictions_path(path), {})  # DVC expects the file
        write_result(path, Failure.model_validate({"study": study.study} | place | failure))
        print(f"{cell.method} on {cell.task}, {cell.name}, seed {cell.seed}: failed: {failure['failure']} -> {path}")
        shutil.rmtree(checkpoints, ignore_errors=True)
        return path
    if state.is_main_process:
        folder = cell.folder("models", study.study) if keep_model else scratch / "model"
        save_model(trained.model, tokenizer, folder)
        check_saved(folder)
        result = Result.model_validate(
            {
                "study": study.study,
                "task": cell.task,
                "method": cell.method,
                "seed": cell.seed,
                "cell": cell.name,
                "metric": {"name": task.metric, "value": paper_metric(task, trained.metrics)},
                "metrics": trained.metrics,
                "heldout": trained.heldout and {"name": task.metric, "value": trained.heldout[task.metric]},
                "hyperparameters": hyperparameters,
                "epochs": trained.epochs,
                "admm": _admm_record(callback),
                "sparsity": _sparsity(trained.model, study, callback),
                "model": {
                    "layers": trained.model.config.num_hidden_layers,
                    "hidden_size": trained.model.config.hidden_size,
                },
                "wall_seconds": trained.seconds_before + time.perf_counter() - started,
                "train_seconds": trained.seconds,
                "peak_memory_mib": provenance.peak_memory_mib(),
                "energy_joules": None if trained.seconds_before else energy.joules(),  # of a killed part nobody knows
                "provenance": {
                    "machine": provenance.machine(),
                    "precision": provenance.precision(),
                    "versions": provenance.versions(),
                    "weights": _origin(study, origin),
                    "data": _describe(study.data),
                    "model_sha256": sha256_file(folder / "model.safetensors"),
                    "train_examples": len(data["train"]),
                    "dev_examples": sum(len(data[split]) for split in task.evaluation),
                    "heldout_examples": len(data["heldout"]) if "heldout" in data else 0,
                    **hashes,
                },
            }
        )
        if keep_predictions:
            write_predictions(predictions_path(path), trained.predictions)
        write_result(path, result)
        print(f"{cell.method} on {cell.task}, seed {cell.seed}: {task.metric} {result.metric.value:.2f} -> {path}")
        shutil.rmtree(checkpoints)
    state.wait_for_everyone()
    return path


def check_saved(folder: Path) -> None:
    """Assert on the files that a saved model obeys the pattern that its config claims.

    Raises:
        AssertionError: it does not.
    """
    from transformers import AutoConfig

    from nxm.sets.saved import load_matrices

    claimed = read_pattern(AutoConfig.from_pretrained(folder, local_files_only=True))
    if claimed is None:
        return
    constraint, names = claimed
    broken = [matrix.name for matrix in report(load_matrices(folder, names), constraint) if not matrix.holds]
    if broken:
        raise AssertionError(
            f"{folder}: saved matrices leave {constraint}: {', '.join(broken[:3])}: please report this"
        )


def _training(study: Study, cell: Cell) -> Training:
    """The block of params.yaml with the cell's own values in it, checked again."""
    block = getattr(study, get_method(cell.method).block)
    if cell.task not in block:
        raise UserError(f"params: '{get_method(cell.method).block}' has no block for task '{cell.task}'")
    changes = dict(cell.changes)
    values = block[cell.task].model_dump() | changes
    if changes.get("recipe") == "paper":
        values |= {"schedule": "constant", "dual_step": "full", "freeze_at": 1.0}  # what the paper does
    return type(block[cell.task]).model_validate(values)


def _fingerprint(
    study: Study, cell: Cell, hyperparameters: dict[str, Any], hashes: dict[str, str], dense: Path | None
) -> str:
    """Everything that decides a run's course; a checkpoint of another one is never resumed."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if "report" not in path.parts:
            code.update(path.read_bytes())
    deciding = {
        "cell": [cell.task, cell.method, cell.seed, cell.name],
        "hyperparameters": hyperparameters,
        "study": study.model_dump(mode="json", include={"trainer", "pattern", "density", "targets"}),
        "teacher": sha256_file(dense / "model.safetensors") if dense else None,
        "versions": provenance.versions(),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "precision": provenance.precision(),
        "device": torch.cuda.is_available(),
        "code": code.hexdigest(),
        **hashes,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _admm_record(callback: SparsityCallback | None) -> dict[str, Any] | None:
    if not isinstance(callback, AdmmCallback):
        return None
    return {name: getattr(callback, name) for name in ("iterations", "frozen_at_step", "swaps", "example")}


def _sparsity(model: PreTrainedModel, study: Study, callback: SparsityCallback | None) -> dict[str, Any]:
    targets = find_targets(model, tuple(study.targets.include), tuple(study.targets.exclude))
    sizes = sum(W.numel() for W in targets.values())
    nonzero = {name: int(parameter.count_nonzero()) for name, parameter in model.named_parameters()}
    return {
        "pattern": str(callback.constraint) if callback else None,
        "targets": len(targets),
        "density": sum(nonzero[name] for name in targets) / sizes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "target_parameters": sizes,
        "nonzero_parameters": sum(nonzero.values()),
    }


def _origin(study: Study, start: str) -> str:
    """Whose weights a run started from, in words."""
    if start == "dense":
        return "the fine-tuned dense model"
    return _describe(study.weights if start == "pretrained" else study.student)


def _describe(source: Any) -> str:
    return "every other layer of the dense model" if source.source == "teacher" else f"{source.name} ({source.source})"
