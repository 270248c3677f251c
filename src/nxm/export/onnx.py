"""Export to ONNX in fp32 and with 8-bit weights, verified in ONNX Runtime."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from nxm.export.trained import EXAMPLES, MARK, Example, Trained, outputs, without_cache, write_compared

ONNX_TOLERANCE = 1e-4  # relative error of the outputs; the order of fp32 sums differs
INT8_TOLERANCE = 0.1  # 8 bits for weights and activations
LARGEST = 2**31 - 2**24  # bytes of weights in an ONNX file of at most 2 GiB, with room for the graph


def write_onnx(trained: Trained, path: Path, examples: Sequence[Example] = EXAMPLES, *, force: bool = False) -> float:
    """Write the model as ONNX in fp32, for any batch size and length.

    Inputs are the tokenizer's outputs that the model takes, int64 `(batch, length)`; outputs have the names of
    transformers (`logits`, ...).

    Args:
        examples: sentences or pairs of sentences, on which ONNX Runtime's outputs are compared with the model's.
        force: replace an ONNX file at `path` that this module wrote.

    Returns: the relative error of the outputs.

    Raises:
        UserError: there is something at `path`, it cannot be written, the model is not supported or has over 2 GiB of
            weights, or the error exceeds `ONNX_TOLERANCE`; nothing is written then.
    """
    _check_size(trained)

    def make(temporary: Path) -> None:
        onnx.save(_to_onnx(trained, examples), temporary)

    return write_compared(
        trained,
        path,
        examples,
        make,
        run_onnx,
        ONNX_TOLERANCE,
        "ONNX model",
        room=trained.fp32_bytes,
        is_own=is_own,
        force=force,
    )


def write_int8(trained: Trained, path: Path, examples: Sequence[Example] = EXAMPLES, *, force: bool = False) -> float:
    """Write the model as ONNX with 8-bit weights, for CPUs (ONNX Runtime's dynamic quantisation).

    Weights, including embeddings, are quantised once, symmetrically and per output channel, so that zeros stay zeros
    and the integers obey an N:M pattern too. Activations are quantised at each call, per tensor. Products of
    activations (attention) stay in fp32.

    Arguments, return value and errors are those of `write_onnx`, with `INT8_TOLERANCE`.
    """

    _check_size(trained)

    def make(temporary: Path) -> None:
        model = _to_onnx(trained, examples)
        del model.graph.value_info[:]  # shapes from before torch's optimizer; some contradict the graph
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=f"{temporary.name}.") as folder:
            plain, ready = Path(folder, "plain.onnx"), Path(folder, "ready.onnx")
            onnx.save(model, plain)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_dynamic(ready, temporary, per_channel=True, weight_type=QuantType.QInt8)

    return write_compared(
        trained,
        path,
        examples,
        make,
        run_onnx,
        INT8_TOLERANCE,
        "INT8 model",
        room=2.5 * trained.fp32_bytes,  # two temporary files in fp32
        is_own=is_own,
        force=force,
    )


def is_own(path: Path) -> bool:
    """Return whether a file is one that `write_onnx` or `write_int8` wrote."""
    if path.stat().st_size > 2**31:
        return False
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        return False
    return any(entry.key == MARK for entry in model.metadata_props)


def _check_size(trained: Trained) -> None:
    if trained.fp32_bytes > LARGEST:
        raise trained.unsupported(
            f"an ONNX file holds at most 2 GiB and the weights take {trained.fp32_bytes / 2**30:.1f} GiB in fp32"
        )


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Run an ONNX file and return its outputs by name."""
    session = open_session(path)
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return dict(zip((output.name for output in session.get_outputs()), found, strict=True))


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime on the CPU, with this number of threads; 0: all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that spin while waiting take cores from other sessions and from PyTorch
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _to_onnx(trained: Trained, examples: Sequence[Example]) -> onnx.ModelProto:
    # the exporter takes a dimension of size 1 as fixed, so show it two examples
    inputs = trained.encode([*examples[:2], *examples[:1]][:2])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=trained.max_length)
    with warnings.catch_warnings(), without_cache(trained.model):
        warnings.simplefilter("ignore")  # deprecations inside torch, and shared names of dimensions
        program = torch.onnx.export(
            trained.model,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(outputs(trained.model, inputs)),
            dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {MARK: "1"})
    return model
