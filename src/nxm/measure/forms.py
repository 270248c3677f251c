"""Latency, throughput, size and score of trained models in the forms in which they are deployed.

A form is a way to run a model: by PyTorch in eager mode (`fp32`, `bf16`, `fp16`), compiled by PyTorch, by ONNX Runtime
or OpenVINO, or in 8 bits (on a CPU by ONNX Runtime, OpenVINO and PyTorch's PT2E, on CUDA by `nxm.export.int8`). On
CUDA, PyTorch's forms also run with 2:4 kernels, either in all target matrices or in the feed-forward ones.

A unit is a form at a batch and length. All models in this form and the reference, the dense model in eager fp32, are
timed interleaved (`nxm.measure.timing`), so that a speed-up compares times of the same rounds; with 2:4 kernels the
dense model in the same type and way is a second reference. A form is absent, with the reason, if its outputs differ
from the model's or the machine cannot run it.
"""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nxm.data.prepare import load_prepared
from nxm.data.tasks import Task, compute_metrics, get_task, paper_metric
from nxm.errors import UserError, first_line
from nxm.export.cusparselt import PATTERN, Linear24, why_no_gpu
from nxm.export.int8 import Int8Linear, use_int8
from nxm.export.score import predict
from nxm.export.semi_structured import HALF_TOLERANCE, INT8_TOLERANCE, STORED, assert_sparse_is_as_exact, pack
from nxm.export.trained import EXAMPLES, Trained, assert_agreement, load_trained, outputs, relative_error
from nxm.files import sha256_file, write_json
from nxm.machine import cores, libraries, machine
from nxm.measure.journal import Journal
from nxm.measure.kernels import sparse_launches
from nxm.measure.proof import products, quietly_launched
from nxm.measure.timing import Row, Timer, paired_ratio, time_call, time_interleaved, with_spread
from nxm.models.targets import find_targets
from nxm.sets.saved import report
from nxm.study.settings import Deployment, Study

BUDGET_SECONDS = 4.0  # per unit, beyond five rounds
COMPILED_TOLERANCE = 1e-4  # relative error of the outputs; the order of fp32 sums differs
DTYPES = STORED | {"fp32": torch.float32}
FEED_FORWARD = ("intermediate.dense", "output.dense", "ffn.lin1", "ffn.lin2")  # in BERT and DistilBERT
ATTENTION_OUTPUT = "attention.output.dense"

Runner = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """A way to run a model. `way`: eager, compiled, onnx, openvino or pt2e; `kernel`: dense, 2:4 or 2:4 FFN."""

    way: str
    dtype: str
    kernel: str = "dense"

    @property
    def described(self) -> Row:
        return {"way": self.way, "dtype": self.dtype, "kernel": self.kernel}


REFERENCE = Form("eager", "fp32")
EXPORTED = ("onnx", "openvino", "pt2e")  # written to a file first; run on the CPU
COMPILED = ("compiled", "pt2e")
_CPU_FORMS = {
    "fp32": [REFERENCE],
    "bf16": [Form("eager", "bf16"), Form("eager", "bf16", "2:4")],  # the latter is absent, with the reason
    "fp16": [],  # the CPUs at hand have no fp16 arithmetic
    "compiled": [Form("compiled", "fp32")],
    "onnx": [Form("onnx", "fp32")],
    "int8": [Form("onnx", "int8"), Form("pt2e", "int8")],
    "openvino": [Form("openvino", "fp32")],
    "openvino_int8": [Form("openvino", "int8")],
}
_KERNELS = ("dense", "2:4", "2:4 FFN")
_CUDA_FORMS = {
    "fp32": [REFERENCE],
    "bf16": [Form("eager", "bf16", kernel) for kernel in _KERNELS],
    "fp16": [Form("eager", "fp16", kernel) for kernel in _KERNELS],
    "compiled": [Form("compiled", "bf16", kernel) for kernel in _KERNELS],
    "onnx": [],  # measured on the CPU, like OpenVINO
    "openvino": [],
    "openvino_int8": [],
    # eager, conversion to integers would take most of the time
    "int8": [Form("compiled", "int8", kernel) for kernel in _KERNELS],
}


class _AbsentError(Exception):
    """A form cannot be run; the message has the reason."""


def run_deployment(study: Study, device_name: str, folder: Path, timer: Timer | None = None) -> Path:
    """Measure a study's models on one device and write results/deployment/<device>.json.

    The models are those of `deployment.models`, of the study's first task and of `deployment.seeds`. A killed run
    continues after its last complete unit. On a machine without the device the file has the reason.

    Args:
        device_name: "cpu" or "cuda".
        folder: the study's folder, in which models/, data/ and results/ are.
        timer: replaces `nxm.measure.timing.time_call`, for tests.

    Returns: the path of the file.

    Raises:
        UserError: there is no dense model to compare with, or a length exceeds what a model can read.
    """
    timer = timer or time_call
    settings = study.deployment
    path = folder / "results" / "deployment" / f"{device_name}.json"
    written: dict[str, Any] = {"study": study.study, "device": device_name}
    if device_name == "cuda" and not torch.cuda.is_available():
        write_json(path, written | {"absent": "no CUDA device where this was run", "rows": [], "scores": []})
        return path
    device, task, seed = torch.device(device_name), get_task(study.tasks[0]), settings.seeds[0]
    torch.set_num_threads(cores())
    folders = {name: folder / "models" / task.name / name / f"seed{seed}" for name in settings.models}
    models = {name: load_trained(saved) for name, saved in folders.items() if (saved / "config.json").is_file()}
    if "dense" not in models:
        raise UserError(f"{folders['dense']}: there is no dense model to compare with; run the stage baseline first")
    readable = min(trained.max_length for trained in models.values())
    if max(settings.lengths) > readable:
        raise UserError(
            f"deployment.lengths has {max(settings.lengths)}, but the models read {readable} tokens at most"
        )
    data = load_prepared(folder / "data" / "prepared" / task.name) if settings.scores else None
    missing: list[Row] = [
        {"model": name, "absent": "no model of this method was found"} for name in settings.models if name not in models
    ]
    journal = Journal(
        folder / "checkpoints" / f"deployment-{device_name}",
        {
            "deployment": settings.model_dump(mode="json"),
            "models": {name: sha256_file(trained.folder / "model.safetensors") for name, trained in models.items()},
        },
    )
    score = None if data is None else partial(_scores, task=task, data=data, device=device)
    measured = measure_forms(models, "dense", settings, device, journal, timer, score)
    rows, scores = [*missing, *measured.rows], measured.scores
    provenance = {"machine": machine(), "versions": libraries()}
    write_json(path, written | {"provenance": provenance, "rows": rows, "scores": scores})
    journal.clear()
    return path


@dataclass
class Measured:
    """The outcome of a measurement: rows of times or of the reason for none, rows of scores, and units left out."""

    rows: list[Row]
    scores: list[Row]
    left_out: int


def measure_forms(
    models: Mapping[str, Trained],
    reference: str,
    settings: Deployment,
    device: torch.device,
    journal: Journal,
    timer: Timer = time_call,
    score: Callable[[Mapping[str, _Running], Form], list[Row]] | None = None,
    deadline: float = math.inf,
) -> Measured:
    """Measure models in all forms of `settings` at all its batches and lengths; a unit in the journal is not repeated.

    Args:
        reference: the model that in eager fp32, and with 2:4 kernels in the same form too, is what speed-ups are over.
        score: returns the scores of models in a form.
        deadline: on the clock `time.monotonic`; units that have not begun by then are left out.
    """
    found = Measured([], [], 0)
    known = _CPU_FORMS if device.type == "cpu" else _CUDA_FORMS
    forms = [form for name in settings.forms for form in known[name]]
    points = [(batch, length) for batch in settings.batch_sizes for length in settings.lengths]
    plain = _Running(models[reference], REFERENCE, device)
    # Beyond its limit of programs from the same code PyTorch would silently run a model uncompiled. On CUDA each point
    # has a program of its own, since shapes are fixed there
    programs = 8 + len(models) * len(points)
    loud = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=programs)
    with loud, tqdm(total=len(forms) * (len(points) + 1), desc=f"deployment {device.type}", unit=" units") as bar:
        for form in forms:
            bar.set_postfix_str(f"{form.way} {form.dtype} {form.kernel}")
            units = [f"{form} {point}" for point in points] + [f"{form} scores"]
            left = [unit for unit in units if journal.get(unit) is None]
            if left and time.monotonic() > deadline:
                found.left_out += len(left)
            elif left:
                running, absent = _prepare(models, form, device)
                rival = _rival(models[reference], form, device) if running else None
                for point, unit in zip(points, units, strict=False):
                    if journal.get(unit) is None:
                        journal.add(unit, _measure(running, plain, rival, form, point, device, settings, timer))
                        bar.update()
                if journal.get(units[-1]) is None:
                    journal.add(units[-1], [*absent, *(score(running, form) if score else [])])
                    bar.update()
            for unit in units[:-1]:
                found.rows += journal.get(unit) or []
            for row in journal.get(units[-1]) or []:
                (found.rows if "absent" in row else found.scores).append(row)
    return found


# --- forms -------------------------------------------------------------------------------------------------------


class _Running:
    """A model in a form, ready to run.

    Attributes:
        size: bytes of its weights in memory or of its file.
        packed: the layers with 2:4 kernels.
        proof: returns the entries of a row that show what multiplies: the operators of an ONNX file, the kernels of a
            call in OpenVINO; None in other forms, whose calls PyTorch's profiler sees.
    """

    def __init__(self, trained: Trained, form: Form, device: torch.device) -> None:
        self.trained = trained
        self.packed: list[Linear24 | Int8Linear] = []
        self.proof: Callable[[], Row] | None = None
        if form.way in ("onnx", "openvino"):
            self._call, self.size, self.proof = (_onnx if form.way == "onnx" else _openvino)(trained, form)
        elif form.way == "pt2e":
            self._call, self.size = _pt2e(trained, form)
        else:
            model = _torch_model(trained, form, device)
            converted = [module for module in model.modules() if isinstance(module, (Linear24, Int8Linear))]
            stored = [*model.parameters(), *(own for module in converted for own in module.buffers())]
            self.packed = [module for module in converted if isinstance(module, Linear24) or module.sparse]
            self.size = sum(tensor.numel() * tensor.element_size() for tensor in stored)
            self._call = partial(_forward, _compiled(model, device) if form.way == "compiled" else model)
        if form.way in COMPILED:
            try:
                for batch in (2, 1):  # batch size 1 is compiled separately; compile both before timing
                    self.answer(_on(trained.encode(EXAMPLES[:batch]), device, form))
            except Exception as error:  # a compiler, or its absence, may raise anything
                raise _AbsentError(f"PyTorch could not compile: {first_line(error)}") from None

    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, fp32."""
        return {name: np.asarray(value, dtype=np.float32) for name, value in self._call(inputs).items()}

    def call(self, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
        """Return the call that is timed."""
        return partial(self._call, inputs)


def _compiled(model: PreTrainedModel, device: torch.device) -> Callable[..., Any]:
    """Compile a model: on CUDA for fixed shapes and in CUDA graphs, as it is fastest, on a CPU for any shape."""
    if device.type == "cuda":
        return torch.compile(model, dynamic=False, mode="reduce-overhead")
    return torch.compile(model, dynamic=True)


def _rival(dense: Trained, form: Form, device: torch.device) -> _Running | None:
    """Return the dense model in the type and way of a form with 2:4 kernels; None if the machine cannot run it."""
    if form.kernel == "dense":
        return None
    try:
        return _Running(dense, Form(form.way, form.dtype), device)
    except (_AbsentError, RuntimeError):
        return None


def _prepare(models: Mapping[str, Trained], form: Form, device: torch.device) -> tuple[dict[str, _Running], list[Row]]:
    """Return the models in this form whose outputs are right, and rows with the reason for absent ones."""
    running, absent = {}, []
    torch.compiler.reset()  # programs of earlier forms would count towards PyTorch's limit of eight
    for name, trained in models.items():
        if form.kernel != "dense" and not trained.claims:
            continue  # a dense model has no 2:4 matrices
        try:
            running[name] = _Running(trained, form, device)
            _assert_right(running[name], trained, form, device)
        except (_AbsentError, UserError, RuntimeError) as reason:
            running.pop(name, None)
            absent.append({"model": name} | form.described | {"absent": first_line(reason)})
    return running, absent


def _assert_right(running: _Running, trained: Trained, form: Form, device: torch.device) -> None:
    inputs = trained.encode(EXAMPLES)
    exact, found = outputs(trained.model, inputs), running.answer(_on(inputs, device, form))
    if form.kernel != "dense":
        dense = _torch_model(trained, Form("eager", form.dtype), device)
        assert_sparse_is_as_exact(found, outputs(dense, inputs), exact, str(trained.folder))
    elif form.way not in EXPORTED:  # exports have compared their outputs already
        tolerance = {"fp32": COMPILED_TOLERANCE, "int8": INT8_TOLERANCE}.get(form.dtype, HALF_TOLERANCE)
        assert_agreement(relative_error(found, exact), tolerance, trained.folder, f"{form.way} {form.dtype} model")


def _torch_model(trained: Trained, form: Form, device: torch.device) -> PreTrainedModel:
    model = copy.deepcopy(trained.model).to(device, DTYPES[form.dtype])
    names = trained.sparse or list(find_targets(trained.model))
    chosen = {"2:4": _packable(trained), "2:4 FFN": list(filter(is_feed_forward, _packable(trained)))}
    sparse = chosen.get(form.kernel, [])
    if form.dtype == "int8":
        use_int8(model, [name for name in names if name not in sparse])
    if form.kernel != "dense" and not sparse:
        raise _AbsentError("no matrix of it is 2:4")
    if sparse:
        if reason := why_no_gpu(device):
            raise _AbsentError(reason)
        try:
            pack(model, sparse, form.dtype)
            outputs(model, trained.encode(EXAMPLES[:2]))
        except (RuntimeError, NotImplementedError) as error:
            raise _AbsentError(f"PyTorch could not pack or multiply: {first_line(error)}") from None
    return model


def _packable(trained: Trained) -> list[str]:
    """Return the matrices for a 2:4 kernel: those with a pattern, and of a model with several sets those with 2:4."""
    if len(trained.claims) < 2:
        return trained.sparse
    weights = dict(trained.model.named_parameters())
    return [own.name for own in report({name: weights[name] for name in trained.sparse}, PATTERN) if own.holds]


def is_feed_forward(name: str) -> bool:
    """Return whether a target matrix, by its name, belongs to a feed-forward layer (models like BERT, DistilBERT)."""
    module = name.removesuffix(".weight")
    return module.endswith(FEED_FORWARD) and not module.endswith(ATTENTION_OUTPUT)


def _onnx(trained: Trained, form: Form) -> tuple[Callable[..., dict[str, np.ndarray]], int, Callable[[], Row]]:
    try:
        import onnx

        from nxm.export.onnx import open_session, write_int8, write_onnx
    except ImportError as missing:
        raise _AbsentError(f"the package {missing.name} is not installed: pip install 'nxm[export]'") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        (write_int8 if form.dtype == "int8" else write_onnx)(trained, path)
        session, size = open_session(path, cores()), path.stat().st_size
        operators = products(sorted({node.op_type for node in onnx.load(path).graph.node}))
    names = [output.name for output in session.get_outputs()]

    def call(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, found, strict=True))

    return call, size, lambda: {"kernels": operators}


def _openvino(trained: Trained, form: Form) -> tuple[Callable[..., dict[str, np.ndarray]], int, Callable[[], Row]]:
    try:
        from nxm.export.openvino import open_openvino, write_int8, write_openvino
    except ImportError as missing:
        raise _AbsentError(f"the package {missing.name} is not installed: pip install 'nxm[export]'") from None
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        (write_int8 if form.dtype == "int8" else write_openvino)(trained, folder)
        program, size = open_openvino(folder, cores()), sum(path.stat().st_size for path in folder.iterdir())

    def proof() -> Row:
        row: Row = {"kernels": sorted(program.kernels())}
        if form.dtype == "int8":
            row |= {"integer_products": program.integer_products(), "integer_matrices": program.integer_matrices}
        return row

    return program, size, proof


def _pt2e(trained: Trained, form: Form) -> tuple[Callable[..., dict[str, np.ndarray]], int]:
    try:
        from nxm.export.x86 import open_x86, write_x86
    except ImportError as missing:
        raise _AbsentError(f"the package {missing.name} is not installed: pip install 'nxm[export]'") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        write_x86(trained, path)
        return open_x86(path), path.stat().st_size


@torch.inference_mode()
def _forward(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    answers = model(**inputs)
    # copy to the CPU, as a user would: the GPU's work is then complete
    return {name: value.float().cpu() for name, value in answers.items() if isinstance(value, Tensor)}


def _on(inputs: Mapping[str, Tensor], device: torch.device, form: Form) -> dict[str, Tensor]:
    return dict(inputs) if form.way in EXPORTED else {name: tensor.to(device) for name, tensor in inputs.items()}


# --- one unit ----------------------------------------------------------------------------------------------------


def _measure(
    running: Mapping[str, _Running],
    reference: _Running,
    rival: _Running | None,
    form: Form,
    point: tuple[int, int],
    device: torch.device,
    settings: Deployment,
    timer: Timer,
) -> list[Row]:
    """Return a row per model; when the machine cannot run the form at this point, each with the reason."""
    if not running:
        return []
    batch, length = point
    try:
        for own in running.values():
            for layer in own.packed:
                layer.tune(batch * length)
        calls = {"reference": reference.call(_full(reference.trained, point, device, REFERENCE))}
        if rival is not None:
            calls["rival"] = rival.call(_full(rival.trained, point, device, form))
        calls |= {name: own.call(_full(own.trained, point, device, form)) for name, own in running.items()}
        seconds = time_interleaved(
            calls,
            warmup=settings.warmup,
            repeats=settings.repeats,
            budget=BUDGET_SECONDS,
            device=device,
            timer=timer,
        )
    except RuntimeError as reason:  # such as too little memory on a GPU
        where = form.described | {"batch": batch, "length": length}
        return [{"model": name} | where | {"absent": first_line(reason)} for name in running]
    rows: list[Row] = []
    for name, own in running.items():
        median = float(np.median(seconds[name]))
        row = {"model": name} | form.described | {"batch": batch, "length": length} | with_spread(seconds[name])
        row |= {"speedup_over_dense_fp32": paired_ratio(seconds["reference"], seconds[name])}
        if rival is not None:
            row |= {"speedup_over_dense_same_form": paired_ratio(seconds["rival"], seconds[name])}
        row |= {"sentences_per_second": round(batch / median, 2), "tokens_per_second": round(batch * length / median)}
        row |= {"size_mib": round(own.size / 2**20, 2)}
        if form.kernel != "dense":
            found = quietly_launched(calls[name], device)
            proof = {"sparse_launches": sparse_launches(found), "packed": len(own.packed)}
            row |= {"kernels": sorted({each.name for each in found})} | proof
            row |= {"sparse_kernels": proof["sparse_launches"] == proof["packed"]}
        elif own.proof is not None:
            row |= own.proof()
        else:
            row |= {"kernels": sorted(products(each.name for each in quietly_launched(calls[name], device)))}
        rows.append(row)
    return rows


def _full(trained: Trained, point: tuple[int, int], device: torch.device, form: Form) -> dict[str, Tensor]:
    """Return inputs without padding. On CUDA they have no mask either, without which attention takes faster kernels."""
    inputs = _on(random_inputs(trained, *point), device, form)
    return {name: tensor for name, tensor in inputs.items() if device.type == "cpu" or name != "attention_mask"}


def random_inputs(trained: Trained, batch: int, length: int) -> dict[str, Tensor]:
    """Return random tokens without padding, with all inputs that the model takes from its tokenizer."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(trained.model.config.vocab_size, (batch, length), generator=draw)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    accepted = inspect.signature(trained.model.forward).parameters
    return {name: given[name] for name in trained.tokenizer.model_input_names if name in accepted}


def _answer(running: _Running, form: Form, device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return running.answer(_on(inputs, device, form))


def _scores(
    running: Mapping[str, _Running], form: Form, *, task: Task, data: DatasetDict, device: torch.device
) -> list[Row]:
    """Return a row per model with its score on dev in this form, in percent points."""
    rows = []
    for name, own in running.items():
        metrics: dict[str, float] = {}
        for split, suffix in task.evaluation.items():
            logits = predict(own.trained, partial(_answer, own, form, device), data[split])
            metrics |= {
                f"{metric}{suffix}": value
                for metric, value in compute_metrics(task, logits, np.asarray(data[split]["labels"])).items()
            }
        score = round(paper_metric(task, metrics), 4)
        rows.append({"model": name} | form.described | {"metric": task.metric, "score": score})
    return rows
