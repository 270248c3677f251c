"""Cost of the methods: training steps compared with dense ones, projections compared with torch.ao's.

Timings are interleaved (`nxm.measure.timing`). `nxm.measure.forms` measures the gain at inference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

from nxm.data.prepare import load_prepared
from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.files import write_json
from nxm.machine import libraries, machine
from nxm.measure.timing import Call, Row, Timer, paired_ratio, summarise, time_call, time_interleaved
from nxm.methods.admm.callback import AdmmCallback, steps_between_projections
from nxm.methods.callback import SparsityCallback
from nxm.sets.nm import NM
from nxm.sets.unstructured import Unstructured
from nxm.study.settings import Run, Study
from nxm.training.build import make_callback
from nxm.training.load import load_model

STEP_RUNS = ("dense", "asp", "nxm", "nxm_paper", "admm_unstructured")  # nxm_paper: nxm with PAPER_RECIPE
PAPER_RECIPE = {
    "recipe": "paper",
    "schedule": "constant",
    "dual_step": "full",
    "freeze_at": 1.0,
    "importance": "none",
    "relaxation": 1.0,
}
PROJECTION_SHAPE = (3072, 768)  # FFN1 of BERT-base
PROJECTION_PATTERNS = (NM(2, 4), NM(1, 4), NM(2, 8), Unstructured(0.5))

# per comparison, beyond nxm.measure.timing.MIN_ROUNDS
BUDGET_SECONDS = {"training_step": 14.0, "projection": 5.0}


def run_benchmark(study: Study, folder: Path, timer: Timer | None = None) -> Path:
    """Measure training steps and projections of a trained study and write results/benchmark.json.

    Uses the dense model of the study's first task and of `benchmark.seeds`, on a GPU if there is one.

    Args:
        folder: the study's folder, in which models/, data/ and results/ are.
        timer: replaces `time_call`, for tests.

    Returns: the path of the file.

    Raises:
        UserError: the dense model or the prepared data is missing, or `benchmark.seeds` is empty.
    """
    timer = timer or time_call
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not study.benchmark.seeds:
        raise UserError("params: 'benchmark.seeds' names no seed whose model is to be measured")
    task, seed = study.tasks[0], study.benchmark.seeds[0]
    dense = folder / "models" / task / "dense" / f"seed{seed}"
    lengths = load_prepared(folder / "data" / "prepared" / task)["train"]["length"]

    training_step = measure_training_step(
        dense,
        study,
        task,
        length=max(1, round(float(np.mean(lengths)))),  # batches are grouped by length and hardly padded
        steps_per_epoch=max(1, len(lengths) // study.run("dense", task).batch_size),
        device=device,
        timer=timer,
    )
    projection = measure_projection(study, timer)
    benchmark = {
        "study": study.study,
        "provenance": {"machine": machine(), "versions": libraries()},
        "training_step": training_step,
        "projection": projection,
    }
    path = folder / "results" / "benchmark.json"
    write_json(path, benchmark)
    return path


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
    """Time one optimizer step of each run in fp32: forward, backward, clipping, AdamW and the method's callback.

    The dense step, a method's callback in each step and its projection are timed separately within each round. The time
    of a run in a round is dense step + callback + projection / interval, with its number of steps between projections
    as interval. (On a shared machine complete steps vary from one second to the next by more than a callback costs.)
    ADMM is timed in its phase before the mask is frozen, with the study's records for Figure 4. Each method works on a
    copy of the same network, as it is after one step.

    Args:
        folder: the dense model.
        length: tokens in each sentence of the batch.
        steps_per_epoch: of the study's training; it determines intervals that are not numbers.

    Returns: a row per run of STEP_RUNS.
    """
    dense_run = study.run("dense", task)
    batch_size = dense_run.batch_size
    model = load_model(folder, get_task(task), fresh_head=False).to(device).train()
    args = TrainingArguments(
        output_dir=str(folder),  # required; nothing is written
        use_cpu=device.type == "cpu",
        learning_rate=dense_run.learning_rate,
        weight_decay=study.trainer.weight_decay,
        report_to=[],
    )
    batch = _random_batch(model, batch_size, length, device)
    control = TrainerControl()
    callbacks = {name: _callback(study, task, name, steps_per_epoch) for name in STEP_RUNS}
    given: dict[str, dict[str, Any]] = {}
    Accelerator(cpu=args.device.type == "cpu")  # the callbacks read accelerate's state

    def step(name: str) -> None:
        """Take the step of a run's own network, without the callback; its gradients stay."""
        network, optimizer = given[name]["model"], given[name]["optimizer"]
        network.zero_grad()
        network(**batch).loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), study.trainer.max_grad_norm)
        if callbacks[name] is None:
            optimizer.step()

    def call_back(name: str) -> None:
        """Call what the Trainer calls around the optimizer's step."""
        callbacks[name].on_pre_optimizer_step(args, control=control, **given[name])
        callbacks[name].on_optimizer_step(args, control=control, **given[name])

    def project(name: str) -> None:
        """Call `on_step_end` of a step that projects; in other steps it does nothing."""
        given[name]["state"].global_step = callbacks[name].interval
        callbacks[name].on_step_end(args, control=control, **given[name])

    for name, callback in callbacks.items():
        network = copy.deepcopy(model)
        optimizer_class, optimizer_settings = Trainer.get_optimizer_cls_and_kwargs(args, network)
        given[name] = {
            # a run so long that the mask is never frozen
            "state": TrainerState(max_steps=1000 * steps_per_epoch, num_train_epochs=1000),
            "model": network,
            "optimizer": optimizer_class(network.parameters(), **optimizer_settings),
        }
        if callback is not None:
            callback.on_train_begin(args, control=control, train_dataloader=range(steps_per_epoch), **given[name])
        step(name)

    admm = {name: callback for name, callback in callbacks.items() if isinstance(callback, AdmmCallback)}
    calls: dict[tuple[str, str], Call] = {
        ("dense", "step"): partial(step, "dense"),
        **{(name, "callback"): partial(call_back, name) for name, callback in callbacks.items() if callback},
        **{(name, "projection"): partial(project, name) for name in admm},
    }
    warmup = min(study.benchmark.warmup, 2)  # steps are long, and the first creates AdamW's state
    with tqdm(total=len(calls) * (warmup + study.benchmark.repeats), desc="training step", unit=" calls") as bar:
        seconds = time_interleaved(
            calls,
            warmup=warmup,
            repeats=study.benchmark.repeats,
            budget=BUDGET_SECONDS["training_step"],
            device=device,
            timer=timer,
            bar=bar,
        )
    rows = []
    for name in STEP_RUNS:
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


def _callback(study: Study, task: str, name: str, steps_per_epoch: int) -> SparsityCallback | None:
    """Return the callback of one of STEP_RUNS; None for the dense run."""
    run: Run = study.run("nxm" if name == "nxm_paper" else name, task)
    if run.method == "admm":  # its interval in the study's run, which is shorter than the one here
        interval = steps_between_projections(run.method_settings, run.epochs * steps_per_epoch, steps_per_epoch)
        run = run.model_copy(update={"interval": interval})
    if name == "nxm_paper":  # time does not depend on its rho
        run = run.model_copy(update=PAPER_RECIPE)
    return make_callback(study, run)


def _random_batch(model: PreTrainedModel, batch_size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch_size, length), generator=draw).to(device)
    labels = torch.zeros(batch_size, device=device)
    if model.config.num_labels > 1:
        labels = labels.long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


# --- projection --------------------------------------------------------------------------------------------------


def measure_projection(study: Study, timer: Timer, shape: tuple[int, int] = PROJECTION_SHAPE) -> list[Row]:
    """Time mask and projection of an fp32 matrix on the CPU, compared with two other computations of the mask.

    For each pattern: `torch.ao`, PyTorch's sparsifier; `topk`, the usual few lines, which leave the order of ties
    undefined; `nxm mask` and `nxm project`. Speed-ups are over torch.ao with the same pattern.
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
        seconds = time_interleaved(
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
    """Return a function that computes the mask (float, 0 and 1) of W by `step()` of torch.ao's WeightNormSparsifier."""
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
        parametrization.mask.fill_(1.0)  # otherwise it would rank the weights that the last call left
        sparsifier.step()
        return parametrization.mask

    return compute


def topk_mask(W: Tensor, pattern: NM | Unstructured) -> Tensor:
    """Return the mask as most code computes it, by `topk` of the magnitudes in each group; ties are undefined."""
    if isinstance(pattern, NM):
        groups, keep = W.abs().reshape(-1, pattern.group_size), pattern.n_nonzero
    else:
        groups, keep = W.abs().reshape(1, -1), pattern.n_nonzero(W.shape)
    mask = torch.zeros(groups.shape, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(keep, dim=1).indices, True).reshape(W.shape)
