"""What sparsity costs in training and gains at inference, measured: latency, training step, projection.

All timings of one comparison are taken in rounds (`nxm.rounds`). What the device cannot do is written as absent with
the reason, never as a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from nxm.callbacks import AdmmCallback, SparsityCallback
from nxm.constraints import NM, Unstructured
from nxm.errors import UserError
from nxm.methods import get_method
from nxm.prepare import load_prepared
from nxm.provenance import machine, versions
from nxm.results import write_text
from nxm.rounds import Call, Row, Timer, paired_ratio, spread, summarise, time_call, time_in_rounds
from nxm.settings import AdmmTraining, Study, Training
from nxm.targets import find_targets

MODELS = ("dense", "nxm", "distil", "distil_nxm")
SPARSE_MODELS = ("nxm", "distil_nxm")
STEP_METHODS = ("dense", "asp", "nxm", "nxm_paper", "admm_unstructured")
PROJECTION_SHAPE = (3072, 768)  # FFN1 of BERT-base
PROJECTION_PATTERNS = (NM(2, 4), NM(1, 4), NM(2, 8), Unstructured(0.5))

# One comparison stops when it has taken this long, though never before rounds.MIN_ROUNDS: long sequences in large
# batches on two cores would otherwise take most of the study's time, and their spread is the smallest.
BUDGET_SECONDS = {"latency": 3.0, "training_step": 14.0, "projection": 5.0}

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_benchmark(study: Study, root: Path, timer: Timer | None = None) -> Path:
    """Measure everything for a trained study and write results/<study>/benchmark.json, all at once.

    Uses the models of the study's first task and of `benchmark.seeds`, on CUDA when there is a GPU, else on the CPU.

    Args:
        root: the repository, in which models/, data/ and results/ lie.
        timer: replaces `time_call`, for tests.

    Returns: the path of the file.

    Raises:
        UserError: the dense model or the prepared data are not there, or `benchmark.seeds` is empty.
    """
    timer = timer or time_call
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not study.benchmark.seeds:
        raise UserError("params: 'benchmark.seeds' names no seed whose models are to be measured")
    task, seed = study.tasks[0], study.benchmark.seeds[0]
    folders = {name: root / "models" / study.study / task / name / f"seed{seed}" for name in MODELS}
    if not (folders["dense"] / "config.json").is_file():
        raise UserError(f"{folders['dense']}: there is no dense model to compare with; run the stage baseline first")
    lengths = load_prepared(root / "data" / study.study / "prepared" / task)["train"]["length"]

    latency = measure_latency(folders, study, device, timer)
    training_step = measure_training_step(
        folders["dense"],
        study,
        task,
        length=max(1, round(float(np.mean(lengths)))),  # batches are grouped by length, so they hardly pad
        steps_per_epoch=max(1, len(lengths) // study.dense[task].batch_size),
        device=device,
        timer=timer,
    )
    projection = measure_projection(study, timer)
    benchmark = {
        "study": study.study,
        "provenance": {"machine": machine(), "versions": versions()},
        "latency": latency,
        "training_step": training_step,
        "projection": projection,
    }
    path = root / "results" / study.study / "benchmark.json"
    write_text(path, json.dumps(benchmark, indent=1, allow_nan=False) + "\n")
    return path


# --- latency -----------------------------------------------------------------------------------------------------


def measure_latency(folders: Mapping[str, Path], study: Study, device: torch.device, timer: Timer) -> list[Row]:
    """Time the encoder's forward pass of each model: inference mode, random tokens, no padding.

    The sparse models run with dense kernels (a sanity row: zeros cost as much as other numbers) and, where the device
    has them, with 2:4 kernels. Those are timed only after their output was found as near to the fp32 model's as the
    dense kernels' is.

    Args:
        folders: model name -> its folder; one that is not there becomes an absent row. "dense" must be there.
    """
    settings = study.benchmark
    present = {name: folder for name, folder in folders.items() if (folder / "config.json").is_file()}
    rows: list[Row] = [
        {"model": name, "kernel": "dense", "absent": "no model of this method was found"}
        for name in folders
        if name not in present
    ]
    for dtype in ("fp32",) if device.type == "cpu" else tuple(_DTYPES):
        encoders = {
            (name, "dense"): _encoder(_load(folder, device)).eval().to(_DTYPES[dtype])
            for name, folder in present.items()
        }
        for name in SPARSE_MODELS:
            try:
                if name in present:
                    encoders[name, "2:4"] = _with_2of4_kernels(present[name], study, device, dtype)
            except _No2of4KernelError as reason:
                rows.append({"model": name, "kernel": "2:4", "dtype": dtype, "absent": str(reason)})
        configs = [encoder.config for encoder in encoders.values()]
        vocabulary = min(config.vocab_size for config in configs)
        readable = min(config.max_position_embeddings for config in configs)
        if max(settings.lengths) > readable:
            raise UserError(
                f"benchmark.lengths has {max(settings.lengths)}, but the models read {readable} tokens at most"
            )
        points = [(batch, length) for batch in settings.batch_sizes for length in settings.lengths]
        total = len(points) * len(encoders) * (settings.warmup + settings.repeats)
        with tqdm(total=total, desc=f"latency {dtype}", unit=" calls") as bar:
            for batch, length in points:
                ids = _random_ids(vocabulary, batch, length, device)
                seconds = time_in_rounds(
                    {key: partial(_forward, encoder, ids) for key, encoder in encoders.items()},
                    warmup=settings.warmup,
                    repeats=settings.repeats,
                    budget=BUDGET_SECONDS["latency"],
                    device=device,
                    timer=timer,
                    bar=bar,
                )
                for (model, kernel), own in seconds.items():
                    rows.append(
                        {"model": model, "kernel": kernel, "dtype": dtype, "batch": batch, "length": length}
                        | summarise(own)
                        | {"spread": spread(own)}
                        | {"speedup_over_dense": paired_ratio(seconds["dense", "dense"], own)}
                    )
    return rows


class _No2of4KernelError(Exception):
    """2:4 kernels cannot be used; the message says why."""


@torch.inference_mode()
def _forward(encoder: PreTrainedModel, ids: Tensor) -> Tensor:
    # A 2:4 product arrives transposed in memory; its reader wants it in order, so that is part of its cost.
    return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.contiguous()


def _with_2of4_kernels(folder: Path, study: Study, device: torch.device, dtype: str) -> PreTrainedModel:
    """Load an encoder with its target matrices packed for 2:4 kernels. Raises _No2of4KernelError with the reason."""
    if device.type != "cuda":
        raise _No2of4KernelError(f"no 2:4 kernel in PyTorch for {device.type}")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise _No2of4KernelError(f"2:4 kernels need compute capability 8.0, this GPU has {major}.{minor}")
    if dtype == "fp32":
        raise _No2of4KernelError("2:4 kernels take fp16 or bf16, not fp32")
    exact, dense = _load(folder, device).eval(), _load(folder, device).eval().to(_DTYPES[dtype])
    sparse = _load(folder, device).eval().to(_DTYPES[dtype])
    targets = find_targets(sparse, study.targets.include, study.targets.exclude)
    # The packer silently drops what does not fit the pattern, so look first.
    broken = [name for name, W in targets.items() if W.shape[1] % 4 or not NM(2, 4).contains(W)]
    if broken:
        raise _No2of4KernelError(f"{len(broken)} of {len(targets)} matrices are not 2:4, first {broken[0]}")
    try:
        for name, W in targets.items():
            packed = torch.sparse.to_sparse_semi_structured(W.detach() + 0.0)  # a -0.0 would count as a value
            sparse.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(packed, requires_grad=False)
        ids = _random_ids(exact.config.vocab_size, 8, 32, device)
        reference, rounded, output = (_forward(_encoder(model), ids).float() for model in (exact, dense, sparse))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise _No2of4KernelError(f"PyTorch could not pack or multiply: {str(error).splitlines()[0]}") from None
    # Both round to the same dtype and differ in the order of sums alone, so their errors must be of one size.
    found, expected = _relative_error(output, reference), _relative_error(rounded, reference)
    if not found <= 2.0 * expected:
        raise _No2of4KernelError(f"its output is wrong: relative error {found:.1e}, with dense kernels {expected:.1e}")
    return _encoder(sparse)


def _relative_error(output: Tensor, reference: Tensor) -> float:
    return float((output - reference).norm() / reference.norm())


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    bar_was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # it would tear the benchmark's own bar
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a saved model: {error}") from None
    finally:
        if bar_was_on:
            transformers_logging.enable_progress_bar()
    return model.to(device)


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.base_model)


# --- training step -----------------------------------------------------------------------------------------------


def measure_training_step(
    folder: Path,
    study: Study,
    task: str,
    *,
    length: int,
    steps_per_epoch: int,
    device: torch.device,
    timer: Timer,
) -> list[Row]:
    """Time one optimizer step of each method in fp32: forward, backward, clipping, AdamW, and the method's callback.

    The dense step, what a method's callback does in each step, and its projection are timed apart, in turn within each
    round; a method's time in a round is dense step + callback + projection / interval, where interval is the method's
    number of steps between projections. (Whole steps, one method against another, differ by more than a callback costs
    from one second to the next on a shared machine.) ADMM counts as in its phase before the mask is frozen, with the
    study's bookkeeping for Figure 4. All methods work on the same network.

    Args:
        folder: the dense model.
        length: tokens in each sentence of the batch.
        steps_per_epoch: the interval of methods that project once an epoch.
    """
    batch_size = study.dense[task].batch_size
    model = _load(folder, device).train()
    args = TrainingArguments(
        output_dir=str(folder),  # nothing is written
        use_cpu=device.type == "cpu",
        learning_rate=study.dense[task].learning_rate,
        weight_decay=study.trainer.weight_decay,
        report_to=[],
    )
    optimizer_class, optimizer_settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = optimizer_class(model.parameters(), **optimizer_settings)
    batch = _random_batch(model, batch_size, length, device)
    # A run so long that the mask is never frozen.
    state = TrainerState(max_steps=1000 * steps_per_epoch, num_train_epochs=1000)
    control = TrainerControl()
    given = {"model": model, "optimizer": optimizer}
    callbacks = {name: _callback(study, task, name) for name in STEP_METHODS}
    Accelerator(cpu=args.device.type == "cpu")  # the callbacks ask accelerate's state how the model is spread
    for callback in callbacks.values():
        if callback is not None:
            callback.on_train_begin(args, state, control, **given)

    def step() -> None:
        """One dense step; leaves its gradients for the callbacks."""
        model.zero_grad()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), study.trainer.max_grad_norm)
        optimizer.step()

    def call_back(callback: SparsityCallback) -> None:
        """What the Trainer calls around the optimizer's step."""
        callback.on_pre_optimizer_step(args, state, control, **given)
        callback.on_optimizer_step(args, state, control, **given)

    def project(callback: AdmmCallback) -> None:
        """`on_step_end` of a step that projects; at all others it returns at once."""
        state.global_step = callback.interval
        callback.on_step_end(args, state, control, **given)

    admm = {name: callback for name, callback in callbacks.items() if isinstance(callback, AdmmCallback)}
    calls: dict[tuple[str, str], Call] = {
        ("dense", "step"): step,
        **{(name, "callback"): partial(call_back, callback) for name, callback in callbacks.items() if callback},
        **{(name, "projection"): partial(project, callback) for name, callback in admm.items()},
    }
    warmup = min(study.benchmark.warmup, 2)  # steps are long, and the first has made AdamW's state
    with tqdm(total=len(calls) * (warmup + study.benchmark.repeats), desc="training step", unit=" calls") as bar:
        seconds = time_in_rounds(
            calls,
            warmup=warmup,
            repeats=study.benchmark.repeats,
            budget=BUDGET_SECONDS["training_step"],
            device=device,
            timer=timer,
            bar=bar,
        )
    rows = []
    for name in STEP_METHODS:
        dense = seconds["dense", "step"]
        total, extra = dense, {}
        if callbacks[name] is not None:
            total = total + seconds[name, "callback"]
            extra = {"callback_ms": summarise(seconds[name, "callback"])["median_ms"]}
        if name in admm:
            projection, interval = seconds[name, "projection"], admm[name].interval
            total = total + projection / interval
            extra |= {"projection_ms": summarise(projection)["median_ms"], "interval": interval}
        rows.append(
            {"method": name, "batch": batch_size, "length": length}
            | summarise(total)
            | extra
            | {"ratio_to_dense": paired_ratio(total, dense)}
        )
    return rows


def _callback(study: Study, task: str, name: str) -> SparsityCallback | None:
    """What the study's method adds to a training. nxm_paper is nxm with the paper's penalty in the gradient."""
    method = get_method(name)
    if method.callback is None:
        return None
    training: Training = getattr(study, method.block)[task]
    if name == "nxm_paper":  # its rho does not matter for time
        shared = ("epochs", "learning_rate", "batch_size", "rho", "interval")
        training = AdmmTraining(recipe="paper", **{key: getattr(training, key) for key in shared})
    return method.callback(study, training)


def _random_batch(model: PreTrainedModel, batch_size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    ids = _random_ids(model.config.vocab_size, batch_size, length, device)
    labels = torch.zeros(batch_size, device=device)
    if model.config.num_labels > 1:
        labels = labels.long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _random_ids(vocabulary: int, batch: int, length: int, device: torch.device) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


# --- projection --------------------------------------------------------------------------------------------------


def measure_projection(study: Study, timer: Timer, shape: tuple[int, int] = PROJECTION_SHAPE) -> list[Row]:
    """Time mask and projection of an fp32 matrix on the CPU beside two other ways to the same mask.

    For each pattern: `torch.ao`, PyTorch's own sparsifier; `topk`, the usual few lines, which leave ties to chance;
    `nxm mask` and `nxm project`. Speed-ups are over torch.ao at the same pattern.
    """
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    calls: dict[tuple[str, NM | Unstructured], Call] = {}
    for pattern in PROJECTION_PATTERNS:
        calls["torch.ao", pattern] = torch_ao_masker(W, pattern)
        calls["topk", pattern] = partial(topk_mask, W, pattern)
        calls["nxm mask", pattern] = partial(pattern.mask, W)
        calls["nxm project", pattern] = partial(pattern.project, W)
    warmup = min(study.benchmark.warmup, 2)
    with tqdm(total=len(calls) * (warmup + study.benchmark.repeats), desc="projection", unit=" calls") as bar:
        seconds = time_in_rounds(
            calls,
            warmup=warmup,
            repeats=study.benchmark.repeats,
            budget=BUDGET_SECONDS["projection"],
            device=torch.device("cpu"),
            timer=timer,
            bar=bar,
        )
    return [
        {"method": f"{way} {pattern}", "shape": list(shape)}
        | summarise(own)
        | {"speedup_over_torch_ao": paired_ratio(seconds["torch.ao", pattern], own)}
        for (way, pattern), own in seconds.items()
    ]


def torch_ao_masker(W: Tensor, pattern: NM | Unstructured) -> Callable[[], Tensor]:
    """Return what computes the mask (float, 0 and 1) of W by torch.ao's WeightNormSparsifier, through its `step()`."""
    if isinstance(pattern, NM):
        block, zeros, level = (1, pattern.group_size), pattern.group_size - pattern.n_nonzero, 1.0
    else:
        block, zeros, level = (1, 1), 1, 1.0 - pattern.density
    linear: Any = nn.Linear(W.shape[1], W.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(W)
    model = nn.Sequential(linear)
    sparsifier = WeightNormSparsifier(sparsity_level=level, sparse_block_shape=block, zeros_per_block=zeros)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    parametrization = linear.parametrizations.weight[0]

    @torch.no_grad()
    def compute() -> Tensor:
        parametrization.mask.fill_(1.0)  # else it would time the ranking of what the last call left
        sparsifier.step()
        return parametrization.mask

    return compute


def topk_mask(W: Tensor, pattern: NM | Unstructured) -> Tensor:
    """The mask as most code takes it: `topk` of the magnitudes in each group; which of equal ones stays is open."""
    if isinstance(pattern, NM):
        groups, keep = W.abs().reshape(-1, pattern.group_size), pattern.n_nonzero
    else:
        groups, keep = W.abs().reshape(1, -1), pattern.n_nonzero(W.shape)
    mask = torch.zeros(groups.shape, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(keep, dim=1).indices, True).reshape(W.shape)
