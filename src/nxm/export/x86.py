"""Export to 8-bit integers for x86 CPUs by PyTorch (PT2E: quantised after `torch.export`, compiled by Inductor).

Only Linear layers are quantised. Weights are quantised symmetrically per output channel, so that zeros stay zeros and
the integers obey an N:M pattern too; activations per tensor, with ranges measured once on examples. The file is a
program of `torch.export`; `open_x86` compiles it for this machine, which takes seconds and needs a C++ compiler.
"""

from __future__ import annotations

import io
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

from nxm.errors import UserError
from nxm.export.trained import EXAMPLES, MARK, Example, Trained, without_cache, write_compared

X86_TOLERANCE = 0.1  # relative error of the outputs, with 8 bits for weights and activations

Program = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


def write_x86(trained: Trained, path: Path, examples: Sequence[Example] = EXAMPLES, *, force: bool = False) -> float:
    """Write the model as an exported program with 8-bit Linear layers, for any batch size and length.

    Args:
        examples: sentences or pairs of sentences like those that the model will read; the ranges of activations are
            measured and the outputs compared on them.
        force: replace a program at `path` that this function wrote.

    Returns: the relative error of the outputs.

    Raises:
        UserError: there is something at `path`, it cannot be written, the model is not supported, the error exceeds
            `X86_TOLERANCE`, or PyTorch cannot compile the program here; nothing is written then.
    """

    def make(temporary: Path) -> None:
        archive = io.BytesIO()  # a write to a full disk would abort the process inside torch
        torch.export.save(_quantised(trained, examples), archive, extra_files={MARK: "1"})
        temporary.write_bytes(archive.getbuffer())

    def answer(temporary: Path, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return open_x86(temporary)(inputs)

    return write_compared(
        trained,
        path,
        examples,
        make,
        answer,
        X86_TOLERANCE,
        "INT8 program",
        room=trained.fp32_bytes,
        is_own=is_own,
        force=force,
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
    quantizer = x86_inductor.X86InductorQuantizer()
    settings = x86_inductor.get_default_x86_inductor_quantization_config()
    quantizer.set_function_type_qconfig(torch.nn.functional.linear, settings)
    observed = prepare_pt2e(graph, quantizer)
    for first in range(0, len(examples), 8):
        observed(trained.encode(examples[first : first + 8]))
    converted = convert_pt2e(observed)
    _drop_unused(converted)
    return torch.export.export(converted, (inputs,), dynamic_shapes=shapes)


def _drop_unused(graph: fx.GraphModule) -> None:
    """Remove the fp32 weights that integers have replaced; the converter leaves them, and they would be saved."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph.named_parameters()):
        if name not in used:
            owner, _, own = name.rpartition(".")
            delattr(graph.get_submodule(owner), own)
