"""One training of a study, from prepared data and a starting model to a results file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedModel

from nxm import machine
from nxm.data.prepare import load_prepared
from nxm.data.tasks import get_task, paper_metric
from nxm.environment import SHARED_GPU
from nxm.errors import Diverged, UserError
from nxm.files import sha256_file, sha256_tree
from nxm.methods.callback import MethodCallback, SparsityCallback
from nxm.models import shrink
from nxm.models.save import save_model
from nxm.models.targets import find_targets
from nxm.sets import parse_set
from nxm.sets.saved import load_matrices, read_patterns, report
from nxm.study.plan import Training, chosen_path, composed
from nxm.study.results import (
    Failure,
    Result,
    predictions_path,
    read_chosen,
    result_path,
    write_predictions,
    write_result,
)
from nxm.study.settings import Allocate, Run, Study
from nxm.training.build import Parts, build, describe_source, describe_start
from nxm.training.energy import EnergyMeter
from nxm.training.trainer import Trained, train


def run(study: Study, training: Training) -> Path:
    """Train, measure and write the results file; return its path. The working directory is the study's folder.

    A whole run saves its model too, without dead heads and rows if its method is structured pruning; a run or variant
    that is compared saves its predictions on dev. If the values of a variant or trial make training diverge or exceed
    the GPU's memory, its result is a `Failure` and the rest of the study continues. (With several processes this is an
    error, since the others would wait forever.)

    An interrupted training resumes from its last complete checkpoint if settings, data, weights, code and versions are
    the same, and ends with the same result. All processes of `accelerate launch` call this.

    Raises:
        UserError: an input is missing, a whole run diverged, or the memory of a GPU is full that other jobs use too.
        torch.OutOfMemoryError: of a whole run alone on its GPU, or of a training with several processes.
    """
    started, energy = time.perf_counter(), EnergyMeter()
    # without `cpu`, processes on a CPU do not form a group
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    machine.use_cores()
    task = get_task(training.task)
    values = composed(study, training, read_chosen(chosen_path(training), training) if training.chosen else None)
    prepared = Path("data/prepared", task.name)
    data = load_prepared(prepared)
    labels = data["train"]["labels"]
    parts = build(study, training, values, sum(labels) / len(labels) if task.regression else None, data["train"])

    hashes = {"data_sha256": sha256_tree(prepared), "weights_sha256": sha256_file(parts.start / "model.safetensors")}
    checkpoints = Path("checkpoints", training.path)
    scratch = checkpoints / _fingerprint(study, training, values, hashes, parts)
    if state.is_main_process:
        _remove_others(scratch)
    state.wait_for_everyone()
    try:
        trained = train(parts, task, data, values, study.trainer, training.seed, scratch)
    except (Diverged, torch.OutOfMemoryError) as error:
        failure = _failure(error, study, training, values, time.perf_counter() - started)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return failure
    path = result_path("", training)
    if state.is_main_process:
        folder = Path("models", training.path) if training.whole else scratch / "model"
        save_model(trained.model, parts.tokenizer, folder)
        check_saved(folder)
        # unknown after a resumption: the meter counts this process alone
        joules = None if trained.seconds_before else energy.joules()
        seconds = trained.seconds_before + time.perf_counter() - started
        provenance = {"model_sha256": sha256_file(folder / "model.safetensors"), **hashes}
        result = _result(study, training, values, trained, parts.callback, provenance, seconds, joules)
        if training.compared and not training.trial:
            write_predictions(predictions_path(path), trained.predictions)
        write_result(path, result)
        score = f"{task.metric} {result.metric.value:.2f}"
        print(f"{training.name} on {task.name}, {_which(training)}: {score} -> {path}")
        shutil.rmtree(checkpoints)
    state.wait_for_everyone()
    return path


def check_saved(folder: Path) -> None:
    """Assert that the saved matrices of a model are in the constraint set that its config names.

    Raises:
        AssertionError: one is not.
    """
    from transformers import AutoConfig

    for constraint, names in read_patterns(AutoConfig.from_pretrained(folder, local_files_only=True)):
        broken = [matrix.name for matrix in report(load_matrices(folder, names), constraint) if not matrix.holds]
        if broken:
            raise AssertionError(
                f"{folder}: saved matrices leave {constraint}: {', '.join(broken[:3])}: please report this"
            )


def _which(training: Training) -> str:
    return f"{training.trial}, seed {training.seed}" if training.trial else f"seed {training.seed}"


def _remove_others(scratch: Path) -> None:
    """Remove the checkpoints of other settings, from which this training cannot resume."""
    if scratch.parent.is_dir():
        for folder in scratch.parent.iterdir():
            if folder.name != scratch.name:
                shutil.rmtree(folder)


def _failure(error: Exception, study: Study, training: Training, values: Run, seconds: float) -> Path:
    """Write the failure of a variant or trial as its result and return the path; raise that of a whole run."""
    name = f"{training.name} on {training.task}, {_which(training)}"
    if isinstance(error, torch.OutOfMemoryError) and SHARED_GPU in os.environ:
        raise UserError(
            f"{name}: the GPU's memory is full, perhaps of the jobs side by side with this one: run again with fewer "
            f"jobs (JOBS=1 shows whether it fits alone): {_first_line(error)}"
        ) from None
    if training.whole or PartialState().num_processes > 1:
        raise error
    path = result_path("", training)
    failure = Failure.model_validate(
        _place(study, training)
        | {
            "hyperparameters": values.model_dump(mode="json"),
            "failure": _first_line(error),
            "wall_seconds": seconds,
        }
    )
    if training.compared and not training.trial:
        write_predictions(predictions_path(path), {})  # DVC expects the file
    write_result(path, failure)
    print(f"{name}: failed: {failure.failure} -> {path}")
    return path


def _place(study: Study, training: Training) -> dict[str, Any]:
    fields = ("task", "run", "variant", "trial", "seed")
    return {"study": study.study} | {name: getattr(training, name) for name in fields}


def _result(
    study: Study,
    training: Training,
    values: Run,
    trained: Trained,
    callback: MethodCallback | None,
    hashes: dict[str, str],
    seconds: float,
    joules: float | None,
) -> Result:
    task, config = get_task(training.task), trained.model.config
    record = callback.record() if callback else None
    return Result.model_validate(
        _place(study, training)
        | {
            "metric": {"name": task.metric, "value": paper_metric(task, trained.metrics)},
            "metrics": trained.metrics,
            "heldout": trained.heldout and {"name": task.metric, "value": trained.heldout[task.metric]},
            "hyperparameters": values.model_dump(mode="json"),
            "epochs": trained.epochs,
            "admm": record if values.method == "admm" else None,
            "structure": _structure(trained.model, values, record),
            "allocation": _allocation(callback, values),
            "sparsity": _sparsity(trained.model, study, values),
            "model": {"layers": config.num_hidden_layers, "hidden_size": config.hidden_size},
            "wall_seconds": seconds,
            "train_seconds": trained.seconds,
            "peak_memory_mib": machine.peak_memory_mib(),
            "energy_joules": joules,
            "provenance": {
                "machine": machine.machine(),
                "precision": machine.precision(),
                "versions": machine.versions(),
                "weights": describe_start(study, values),
                "data": describe_source(study.data),
                **trained.rows,
                **hashes,
            },
        }
    )


def _structure(model: PreTrainedModel, run: Run, record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the sizes of a pruned or shrunk model's layers, and how they came about; None for a dense architecture."""
    structured = run.method == "structured"
    if not structured and shrink.read_structure(model.config) is None:
        return None
    pruning = None
    if structured and record is not None:
        settings = run.method_settings.model_dump(include={"budget", "cost", "units"}) if run.method_settings else {}
        course = [{"step": entry["step"], "share": entry["share"]} for entry in record["course"]]
        pruning = settings | {"share": record["share"], "course": course}
    return asdict(shrink.remaining(model)) | {"pruning": pruning}


def _allocation(callback: MethodCallback | None, run: Run) -> dict[str, Any] | None:
    """Return the choice for each matrix and what it was chosen by; None for a run with one set or without any."""
    if not isinstance(run.set, Allocate):
        return None
    assert isinstance(callback, SparsityCallback)
    from nxm.training.sensitivity import allocation_record

    return allocation_record(callback.constraint, run)


def _sparsity(model: PreTrainedModel, study: Study, run: Run) -> dict[str, Any]:
    targets = find_targets(model, tuple(study.targets.include), tuple(study.targets.exclude))
    sizes = sum(W.numel() for W in targets.values())
    nonzero = {name: int(parameter.count_nonzero()) for name, parameter in model.named_parameters()}
    return {
        "pattern": str(parse_set(run.set) if isinstance(run.set, str) else run.set) if run.set else None,
        "targets": len(targets),
        "density": sum(nonzero[name] for name in targets) / sizes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "target_parameters": sizes,
        "nonzero_parameters": sum(nonzero.values()),
    }


def _fingerprint(study: Study, training: Training, values: Run, hashes: dict[str, str], parts: Parts) -> str:
    """Return a hash of all that determines a training's course: its checkpoints are resumed only if it is equal."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        if "report" not in path.parts:
            code.update(path.read_bytes())
    teacher = parts.teacher_path if parts.teacher else None
    latency = getattr(values, "latency", "")  # of structured pruning: the path of a measured table
    deciding = {
        "training": training.path,
        "values": values.model_dump(mode="json"),
        "study": study.model_dump(mode="json", include={"trainer", "targets"}),
        "teacher": sha256_file(teacher / "model.safetensors") if teacher else None,
        "latency": sha256_file(Path(latency)) if latency else None,
        "versions": machine.versions(),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "precision": machine.precision(),
        "device": torch.cuda.is_available(),
        "code": code.hexdigest(),
        **hashes,
    }
    if isinstance(values.set, Allocate) and isinstance(parts.callback, SparsityCallback):
        deciding["sets"] = str(sorted((name, str(own)) for name, own in parts.callback.constraint.sets.items()))
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
