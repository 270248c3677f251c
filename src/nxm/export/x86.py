"""Export to 8-bit integers for x86 CPUs by PyTorch (PT2E: quantised after `torch.export`, compiled by Inductor).

Only Linear layers are quantised. Weights are quantised symmetrically per output channel, so that zeros stay zeros and
the integers obey an N:M pattern too; activations per tensor, with ranges measured once on examples. The file is a
program of `torch.export`; `open_x86` compiles it for this machine, which takes seconds and needs a C++ compiler.

A model that was trained on integers keeps its codes and scales, and its other layers stay in fp32. PyTorch's observers
would not find them: they take the largest weight of a row / 127.5 as its scale. The scales are therefore given to the
quantiser, as parameters that are derived from nothing, and the codes are compared after it.
"""

from __future__ import annotations

import io
import operator
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86_inductor
from torch import Tensor, fx, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import DerivedQuantizationSpec, FixedQParamsQuantizationSpec

from nxm.errors import UserError
from nxm.export.codes import Codes, by_values, trained_codes, values_of
from nxm.export.trained import EXAMPLES, MARK, Example, Judge, Trained, without_cache, write_compared
from nxm.models.activations import Claimed

X86_TOLERANCE = 0.1  # relative error of the outputs, with 8 bits for weights and activations

Program = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


def write_x86(
    trained: Trained,
    path: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write the model as an exported program with 8-bit Linear layers, for any batch size and length.

    Args:
        examples: sentences or pairs of sentences like those that the model will read; the ranges of activations are
            measured and the outputs compared on them.
        force: replace a program at `path` that this function wrote.
        judge: as in `write_compared`.

    Returns: the relative error of the outputs.

    Raises:
        UserError: there is something at `path`, it cannot be written, the model is not supported, the error exceeds
            `X86_TOLERANCE`, or PyTorch cannot compile the program here; nothing is written then.
    """

    def make(temporary: Path) -> None:
        archive = io.BytesIO()  # a write to a full disk would abort the process inside torch
        torch.export.save(_quantised(trained, examples), archive, extra_files={MARK: "1"})
        temporary.write_bytes(archive.getbuffer())

    return write_compared(
        trained,
        path,
        examples,
        make,
        open_x86,
        X86_TOLERANCE,
        "INT8 program",
        room=trained.fp32_bytes,
        is_own=is_own,
        force=force,
        judge=judge,
        rounded=trained_codes(trained),
    )


def is_own(path: Path) -> bool:
    """Return whether a file is one that `write_x86` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(f"/extra/{MARK}") for name in archive.namelist())


def open_x86(path: Path) -> Program:
    """Open a file written by `write_x86`.

    Open only files that you trust: PyTorch cannot load exported programs without allowing pickles, although the weights
    in files written here are not pickled.

    Returns: a function that takes the tokenizer's tensors and returns outputs by name, fp32. Its first call, and its
    first call with batch size 1, compile the program.

    Raises:
        UserError: the file is no exported program, or (at a call) PyTorch cannot compile it here.
    """
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no exported program: {error}") from None
    compiled = torch.compile(program.module(), dynamic=True)

    # Inductor has integer kernels for frozen weights alone, and may compile again for another batch size
    @inductor.patch(freezing=True)
    @torch.no_grad()
    def run(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        try:
            answers = compiled(dict(inputs))
        except (BackendCompilerFailed, InductorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"PyTorch could not compile the INT8 program here: {reason}") from None
        return {name: value.float().numpy() for name, value in answers.items()}

    return run


class _Answers(nn.Module):
    """A model whose outputs are a plain dictionary of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in self.model(**inputs).items() if isinstance(value, Tensor)}


@torch.no_grad()
def _quantised(trained: Trained, examples: Sequence[Example]) -> torch.export.ExportedProgram:
    # the exporter takes a dimension of size 1 as fixed, so show it two examples
    inputs = trained.encode([*examples[:2], *examples[:1]][:2])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=trained.max_length)
    shapes = ({name: {0: batch, 1: length} for name in inputs},)
    with without_cache(trained.model):
        graph = torch.export.export(_Answers(trained.model), (inputs,), dynamic_shapes=shapes).module()
    integers = trained_codes(trained)
    quantizer = _TrainedIntegers(integers, trained.activations) if integers else x86_inductor.X86InductorQuantizer()
    settings = x86_inductor.get_default_x86_inductor_quantization_config()
    quantizer.set_function_type_qconfig(torch.nn.functional.linear, settings)
    observed = prepare_pt2e(graph, quantizer)
    for first in range(0, len(examples), 8):
        observed(trained.encode(examples[first : first + 8]))
    converted = convert_pt2e(observed)
    _drop_unused(converted)
    program = torch.export.export(converted, (inputs,), dynamic_shapes=shapes)
    _assert_codes(trained, program, integers)
    return program


class _TrainedIntegers(x86_inductor.X86InductorQuantizer):
    """A quantiser that gives matrices of integers their trained scales, and quantises nothing else.

    Their inputs have the ranges that the model was trained with, if it was, and measured ones otherwise.
    """

    def __init__(self, integers: Mapping[str, Codes], activations: Claimed | None) -> None:
        super().__init__()
        self.integers, self.names, self.activations = integers, by_values(integers), activations

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        model = super().annotate(model)
        for node in model.graph.nodes:
            if node.target is not torch.ops.aten.linear.default:
                continue
            weight = node.args[1]
            W = operator.attrgetter(weight.target)(model)
            names = self.names.get(values_of(W.detach().numpy()))
            inputs = node.meta[x86_inductor.QUANT_ANNOTATION_KEY].input_qspec_map
            if names is None:
                inputs.clear()
                continue
            scales = torch.from_numpy(_positive(self.integers[names[0]].scales))
            inputs[weight] = DerivedQuantizationSpec(
                derived_from=[],
                derive_qparams_fn=lambda observers, scales=scales: (
                    scales,
                    torch.zeros_like(scales, dtype=torch.int64),
                ),
                dtype=torch.int8,
                quant_min=-128,
                quant_max=127,
                qscheme=torch.per_channel_symmetric,
                ch_axis=0,
            )
            if self.activations is not None and names[0] in self.activations.ranges:
                scale, zero_point = self.activations.grid(names[0])
                inputs[node.args[0]] = FixedQParamsQuantizationSpec(
                    dtype=torch.uint8,
                    scale=scale,
                    zero_point=zero_point,
                    quant_min=0,
                    quant_max=2**self.activations.bits - 1,
                    qscheme=torch.per_tensor_affine,
                )
        return model


def _positive(scales: np.ndarray) -> np.ndarray:
    """Return scales by which PyTorch can divide: 1 for a row of zeros."""
    return np.where(scales > 0, scales, np.float32(1.0))


def read_codes(program: torch.export.ExportedProgram) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return codes, int8 `(out, in)`, and scales, fp32 `(out,)`, of the matrices that a program has in integers."""
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    tensors = {node: program.state_dict[name] for node, name in names.items()}
    return [
        (tensors[node.args[0].name].numpy(), tensors[node.args[1].name].numpy())
        for node in program.graph.nodes
        if node.target is torch.ops.quantized_decomposed.dequantize_per_channel.default
    ]


def _assert_codes(trained: Trained, program: torch.export.ExportedProgram, integers: Mapping[str, Codes]) -> None:
    """Raise UserError unless a program has the model's own codes and scales, and of a matrix of integers no others."""
    if not integers:
        return
    wanted = {(own.codes.tobytes(), _positive(own.scales).tobytes()) for own in integers.values()}
    found = {(codes.tobytes(), scales.tobytes()) for codes, scales in read_codes(program)}
    if found != wanted:
        raise trained.unsupported(
            f"PyTorch's quantiser took over the trained integers of {len(found & wanted)} of {len(wanted)} matrices"
        )


def _drop_unused(graph: fx.GraphModule) -> None:
    """Remove the fp32 weights that integers have replaced; the converter leaves them, and they would be saved."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph.named_parameters()):
        if name not in used:
            owner, _, own = name.rpartition(".")
            delattr(graph.get_submodule(owner), own)
