"""Export to ONNX in fp32 and with integer weights, verified in ONNX Runtime.

A model that was trained on integers keeps them: `write_int8` and `write_weight_only` store the codes and scales of
`nxm.export.codes` in initialisers `<matrix>.codes`, (in, out) as ONNX multiplies, and `<matrix>.scales`, (out,). All
its other weights stay in fp32.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from nxm.errors import UserError
from nxm.export.codes import Codes, by_values, trained_codes, values_of
from nxm.export.trained import EXAMPLES, MARK, Answer, Example, Judge, Trained, outputs, without_cache, write_compared
from nxm.models.activations import Claimed

ONNX_TOLERANCE = 1e-4  # relative error of the outputs; the order of fp32 sums differs
INT8_TOLERANCE = 0.1  # 8 bits for weights and activations
LARGEST = 2**31 - 2**24  # bytes of weights in an ONNX file of at most 2 GiB, with room for the graph
INT4_OPSET = 21  # the first with 4-bit integers


def write_onnx(
    trained: Trained,
    path: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write the model as ONNX in fp32, for any batch size and length.

    Inputs are the tokenizer's outputs that the model takes, int64 `(batch, length)`; outputs have the names of
    transformers (`logits`, ...).

    Args:
        examples: sentences or pairs of sentences, on which ONNX Runtime's outputs are compared with the model's.
        force: replace an ONNX file at `path` that this module wrote.
        judge: as in `write_compared`.

    Returns: the relative error of the outputs.

    Raises:
        UserError: there is something at `path`, it cannot be written, the model is not supported or has over 2 GiB of
            weights, or the error exceeds `ONNX_TOLERANCE`; nothing is written then.
    """
    _check_size(trained)

    def make(temporary: Path) -> None:
        onnx.save(_to_onnx(trained, examples), temporary)

    room = trained.fp32_bytes
    return _write(trained, path, examples, make, ONNX_TOLERANCE, "ONNX model", room, force, judge)


def write_int8(
    trained: Trained,
    path: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write the model as ONNX with products of 8-bit integers, for CPUs (ONNX Runtime's dynamic quantisation).

    Weights of a model without trained integers are quantised once: matrices symmetrically and per output channel, so
    that zeros stay zeros and the integers obey an N:M pattern too; embeddings per tensor. In a model that was trained
    on integers those matrices have their own codes and scales, a code in 8 bits, and all other weights stay in fp32.
    Activations are quantised at each call, per tensor, or, in a model that was trained with integer activations and
    weights, with its own ranges. Products of activations (attention) stay in fp32.

    Arguments, return value and errors are those of `write_onnx`, with `INT8_TOLERANCE`.
    """
    _check_size(trained)
    integers = trained_codes(trained)

    def make(temporary: Path) -> None:
        if integers and trained.activations is not None:
            with _prepared(trained, examples, temporary) as ready:
                model = onnx.load(ready)
            names = _store_codes(trained, model, integers)
            _round_inputs(model, trained.activations)
            onnx.checker.check_model(model)
            onnx.save(model, temporary)
            _assert_codes(temporary, integers, names)
            return
        with _prepared(trained, examples, temporary) as ready:
            quantise = partial(quantize_dynamic, ready, temporary, per_channel=True, weight_type=QuantType.QInt8)
            if not integers:
                quantise()
                return
            model = onnx.load(ready)
            matrices = _find_matrices(trained, model, integers)
            quantise(nodes_to_quantize=[node.name for node in model.graph.node if _weight_of(node) in matrices])
        model = onnx.load(temporary)
        for weight, name in matrices.items():
            # what ONNX Runtime rounded anew, with a scale for the largest weight of each row
            _replace(model, f"{weight}{TENSOR_NAME_QUANT_SUFFIX}", _tensor(f"{name}.codes", integers[name].codes.T))
            _replace(model, f"{weight}_scale", _tensor(f"{name}.scales", integers[name].scales))
        onnx.save(model, temporary)
        _assert_codes(temporary, integers, matrices.values())

    room = 2.5 * trained.fp32_bytes  # two temporary files in fp32
    return _write(trained, path, examples, make, INT8_TOLERANCE, "INT8 model", room, force, judge, integers)


def write_weight_only(
    trained: Trained,
    path: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write a model that was trained on integers as ONNX with integer weights and fp32 arithmetic.

    Each matrix of integers is its codes, in 4 bits each if the set has 4 or fewer and in 8 bits otherwise, and a
    DequantizeLinear with the trained scale of each output. All other weights and all activations are fp32. ONNX Runtime
    merges product and DequantizeLinear into a kernel for few bits (MatMulNBits), and unless told otherwise, as
    `open_session` does, that kernel rounds activations to 8 bits.

    Arguments, return value and errors are those of `write_onnx`.

    Raises:
        UserError: config.json claims no integers.
    """
    _check_size(trained)
    integers = trained_codes(trained)
    if not integers:
        claimed = ", ".join(str(constraint) for constraint, _ in trained.claims) or "no set"
        raise UserError(
            f"{trained.folder}: config.json names {claimed}; this export takes over trained integers such as int4. "
            "For other models there are --to onnx and --to onnx-int8, which rounds"
        )

    def make(temporary: Path) -> None:
        with _prepared(trained, examples, temporary, opset=INT4_OPSET) as ready:
            model = onnx.load(ready)
        names = _store_codes(trained, model, integers, narrow=True)
        onnx.checker.check_model(model)
        onnx.save(model, temporary)
        _assert_codes(temporary, integers, names)

    room = 2.5 * trained.fp32_bytes  # two temporary files in fp32
    return _write(trained, path, examples, make, ONNX_TOLERANCE, "ONNX model", room, force, judge)


def _store_codes(
    trained: Trained, model: onnx.ModelProto, integers: Mapping[str, Codes], narrow: bool = False
) -> list[str]:
    """Put codes and a DequantizeLinear, whose output has the matrix's name, in the place of matrices of integers.

    Args:
        narrow: store up to 4 bits as int4; else every code is an int8.

    Returns: the names of the matrices.
    """
    matrices = _find_matrices(trained, model, integers)
    nodes = []
    for node in model.graph.node:
        if _weight_of(node) in matrices:
            for attribute in node.attribute:
                if attribute.name == "transB":
                    attribute.i = 0  # codes are stored (in, out)
    for weight, name in matrices.items():
        own = integers[name]
        narrowest = TensorProto.INT4 if narrow and own.bits <= 4 else TensorProto.INT8
        codes = _tensor(f"{name}.codes", own.codes.T, narrowest)
        scales = _tensor(f"{name}.scales", own.scales)
        _replace(model, weight, codes)
        model.graph.initializer.append(scales)
        inputs = [codes.name, scales.name]
        nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantise", axis=1))
        _rename(model, codes.name, name)
    for i, node in enumerate(nodes):
        model.graph.node.insert(i, node)
    return list(matrices.values())


def _round_inputs(model: onnx.ModelProto, activations: Claimed) -> None:
    """Put QuantizeLinear and DequantizeLinear, with the trained ranges, before the products that have one."""
    nodes: list[onnx.NodeProto] = []
    rounded: dict[tuple[str, float, int], str] = {}  # query, key and value read the same input
    for node in model.graph.node:
        name = _weight_of(node)
        if name in activations.ranges:
            scale, zero_point = activations.grid(name)
            key = (node.input[0], scale, zero_point)
            if key not in rounded:
                rounded[key] = f"{name}.input"
                nodes += _rounding(model, f"{name}.input", *key, activations.bits)
            node.input[0] = rounded[key]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rounding(
    model: onnx.ModelProto, name: str, source: str, scale: float, zero_point: int, bits: int
) -> list[onnx.NodeProto]:
    """Return the nodes that round a tensor to unsigned integers and back; the last has the output `name`."""
    model.graph.initializer.extend(
        [_tensor(f"{name}.scale", np.float32(scale)), _tensor(f"{name}.zero_point", np.uint8(zero_point))]
    )
    nodes = []
    if bits < 8:  # QuantizeLinear clamps to 8 bits
        ends = {"low": -zero_point * scale, "high": (2**bits - 1 - zero_point) * scale}
        model.graph.initializer.extend(_tensor(f"{name}.{end}", np.float32(value)) for end, value in ends.items())
        clip = [source, *(f"{name}.{end}" for end in ends)]
        nodes.append(onnx.helper.make_node("Clip", clip, [f"{name}.clipped"], name=f"{name}.clip"))
        source = f"{name}.clipped"
    grid = [f"{name}.scale", f"{name}.zero_point"]
    nodes += [
        onnx.helper.make_node("QuantizeLinear", [source, *grid], [f"{name}.codes8"], name=f"{name}.quantise"),
        onnx.helper.make_node("DequantizeLinear", [f"{name}.codes8", *grid], [name], name=f"{name}.dequantise"),
    ]
    return nodes


def _write(
    trained: Trained,
    path: Path,
    examples: Sequence[Example],
    make: Callable[[Path], None],
    tolerance: float,
    what: str,
    room: float,
    force: bool,
    judge: Judge | None,
    rounded: Collection[str] = (),
) -> float:
    return write_compared(
        trained,
        path,
        examples,
        make,
        open_onnx,
        tolerance,
        what,
        room=room,
        is_own=is_own,
        force=force,
        judge=judge,
        rounded=rounded,
    )


def read_codes(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return codes, int8 `(out, in)`, and scales, fp32 `(out,)`, of an ONNX file's matrices of integers, by name."""
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    names = [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]
    return {
        name: (
            numpy_helper.to_array(tensors[f"{name}.codes"]).astype(np.int8).T,
            numpy_helper.to_array(tensors[f"{name}.scales"]),
        )
        for name in names
    }


def _assert_codes(path: Path, integers: Mapping[str, Codes], names: Iterable[str]) -> None:
    """Assert that a file has the model's own codes and scales."""
    found = read_codes(path)
    assert found.keys() == set(names)
    for name, (codes, scales) in found.items():
        assert np.array_equal(codes, integers[name].codes), f"{path}: the codes of {name} changed: please report this"
        assert np.array_equal(scales, integers[name].scales), (
            f"{path}: the scales of {name} changed: please report this"
        )


@contextlib.contextmanager
def _prepared(trained: Trained, examples: Sequence[Example], near: Path, opset: int | None = None) -> Iterator[Path]:
    """Yield a temporary ONNX file of the model in fp32, with constants folded, as ONNX Runtime's quantisers want it."""
    model = _to_onnx(trained, examples, opset)
    del model.graph.value_info[:]  # shapes from before torch's optimizer; some contradict the graph
    with tempfile.TemporaryDirectory(dir=near.parent, prefix=f"{near.name}.") as folder:
        plain, ready = Path(folder, "plain.onnx"), Path(folder, "ready.onnx")
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        yield ready


def _weight_of(node: onnx.NodeProto) -> str | None:
    """Return the second input of a product, which is the weight of a Linear layer's."""
    return node.input[1] if node.op_type in ("MatMul", "Gemm") else None


def _find_matrices(trained: Trained, model: onnx.ModelProto, integers: Mapping[str, Codes]) -> dict[str, str]:
    """Return the initialisers that hold matrices of integers: name in the graph -> the matrix's own.

    The exporter names transposed weights by numbers, so that they are known by their values. Of several matrices with
    equal values it may store one.

    Raises:
        UserError: a matrix is not in the graph.
    """
    names = by_values(integers)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        weight = _weight_of(node)
        if weight in tensors and weight not in found:
            W = numpy_helper.to_array(tensors[weight])
            if not any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
                W = W.T
            if unused := [name for name in names.get(values_of(W), []) if name not in found.values()]:
                found[weight] = unused[0]
    for equal in names.values():
        if not set(equal) & set(found.values()):
            raise trained.unsupported(f"the ONNX model has no product with the integers of {equal[0]}")
    return found


def _tensor(name: str, values: np.ndarray, dtype: int | None = None) -> TensorProto:
    values = np.asarray(values, order="C")  # unlike ascontiguousarray it leaves a scalar one
    if dtype is None or dtype == TensorProto.INT8:
        return numpy_helper.from_array(values, name)
    return onnx.helper.make_tensor(name, dtype, values.shape, values.flatten())


def _replace(model: onnx.ModelProto, name: str, tensor: TensorProto) -> None:
    """Put another initialiser, of another name, in the place of one."""
    (former,) = [own for own in model.graph.initializer if own.name == name]
    assert list(former.dims) in ([*tensor.dims], [*tensor.dims][::-1])
    former.CopyFrom(tensor)
    _rename(model, name, tensor.name)


def _rename(model: onnx.ModelProto, before: str, after: str) -> None:
    """Rename an input of nodes."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == before:
                node.input[i] = after


def is_own(path: Path) -> bool:
    """Return whether a file is one that this module wrote."""
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


def open_onnx(path: Path) -> Answer:
    """Open an ONNX file in ONNX Runtime: a function that takes the tokenizer's tensors and returns outputs by name."""
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]

    def answer(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, found, strict=True))

    return answer


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Run an ONNX file and return its outputs by name."""
    return dict(open_onnx(path)(inputs))


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime on the CPU, with this number of threads; 0: all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that spin while waiting take cores from other sessions and from PyTorch
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # fp32: by default ONNX Runtime rounds activations to 8 bits where the weight is integers with DequantizeLinear
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _to_onnx(trained: Trained, examples: Sequence[Example], opset: int | None = None) -> onnx.ModelProto:
    # the exporter takes a dimension of size 1 as fixed, so show it two examples
    inputs = trained.encode([*examples[:2], *examples[:1]][:2])
    with warnings.catch_warnings(), without_cache(trained.model):
        warnings.simplefilter("ignore")  # deprecations inside torch, and shared names of dimensions
        program = torch.onnx.export(
            trained.model,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(outputs(trained.model, inputs)),
            dynamic_shapes=trained.dynamic_shapes(inputs),
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {MARK: "1"})
    return model
