"""Export to OpenVINO's format (IR) in fp32 and with 8-bit integers, verified in OpenVINO on the CPU.

`write_int8` stores 8-bit codes with one scale per output row, and puts a FakeQuantize with a fixed range before each
product. From this OpenVINO's CPU plugin makes products of 8-bit integers. Without the ranges it would unpack the codes
and multiply in fp32, or, with its dynamic quantisation, round activations in groups at each call, which was slower on
the CPU that we tried (docs/export.md).

A model that was trained on integers keeps them: codes and scales are the constants `<matrix>.codes`, (out, in), and
`<matrix>.scales`, (out, 1). All its other weights stay in fp32.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from nxm.errors import UserError
from nxm.export.codes import Codes, by_values, trained_codes, values_of
from nxm.export.int8 import quantise
from nxm.export.trained import EXAMPLES, MARK, Example, Judge, Trained, outputs, without_cache, write_compared
from nxm.files import stray_files

XML, BIN = "openvino_model.xml", "openvino_model.bin"  # as optimum-intel names them
FP32_TOLERANCE = 1e-4  # relative error of the outputs; the order of fp32 sums differs
INT8_TOLERANCE = 0.1  # 8 bits for weights and activations
WEIGHTS = {"MatMul": 1, "Gather": 0}  # operators of Linear layers and embeddings, and the input that has the matrix
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")  # layers of the CPU plugin that multiply
TELEMETRY = "openvino_telemetry"


def _import_openvino() -> ModuleType:
    """Import OpenVINO so that it reports nothing.

    When it is imported it reports that to Google Analytics and leaves files in the user's home, unless its package for
    telemetry is missing. None in sys.modules makes Python say that it is.
    """
    known = TELEMETRY in sys.modules
    if not known:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if not known:
            del sys.modules[TELEMETRY]


ov = _import_openvino()


def write_openvino(
    trained: Trained,
    folder: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write the model as a folder with OpenVINO's format in fp32, for any batch size and length.

    Inputs are the tokenizer's outputs that the model takes, int64 `(batch, length)`; outputs have the names of
    transformers (`logits`, ...).

    Args:
        examples: sentences or pairs of sentences, on which OpenVINO's outputs are compared with the model's.
        force: replace a folder at `folder` that this module wrote, if it holds nothing else.
        judge: as in `write_compared`.

    Returns: the relative error of the outputs.

    Raises:
        UserError: there is something at `folder`, it cannot be written, the model is not supported, or the error
            exceeds `FP32_TOLERANCE`; nothing is written then.
    """

    def make(temporary: Path) -> None:
        _save(_converted(trained, examples), temporary, folder)

    return _write(trained, folder, examples, make, FP32_TOLERANCE, "OpenVINO model", force, judge)


def write_int8(
    trained: Trained,
    folder: Path,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> float:
    """Write the model as a folder with OpenVINO's format and products of 8-bit integers, for CPUs.

    Weights of a model without trained integers are quantised once: the matrices of Linear layers and embeddings
    symmetrically and per row, so that zeros stay zeros and the integers obey an N:M pattern too. In a model that was
    trained on integers those matrices have their own codes and scales, a code in 8 bits, and all other weights stay in
    fp32. Activations are quantised per tensor, with ranges measured on the examples, or, in a model that was trained
    with integer activations and weights, with its own ranges. Products of activations (attention) stay in fp32.

    Args:
        examples: as in `write_openvino`; the ranges of activations are measured on them too.

    Other arguments, return value and errors are those of `write_openvino`, with `INT8_TOLERANCE`.
    """
    integers = trained_codes(trained)

    def make(temporary: Path) -> None:
        model = _converted(trained, examples)
        names = _quantise(trained, model, integers, examples)
        _save(model, temporary, folder)
        _assert_codes(temporary, integers, names)

    return _write(trained, folder, examples, make, INT8_TOLERANCE, "OpenVINO INT8 model", force, judge, integers)


def _write(
    trained: Trained,
    folder: Path,
    examples: Sequence[Example],
    make: Callable[[Path], None],
    tolerance: float,
    what: str,
    force: bool,
    judge: Judge | None,
    rounded: Collection[str] = (),
) -> float:
    return write_compared(
        trained,
        folder,
        examples,
        make,
        open_openvino,
        tolerance,
        what,
        room=trained.fp32_bytes,
        is_own=is_own,
        force=force,
        judge=judge,
        folder=True,
        rounded=rounded,
    )


# --- running ------------------------------------------------------------------------------------------------------


class Program:
    """A compiled model: a function that takes the tokenizer's tensors and returns outputs by name, fp32.

    Attributes:
        integer_matrices: the number of products in its file whose weights are 8-bit integers.
    """

    def __init__(self, compiled: ov.CompiledModel, integer_matrices: int) -> None:
        self.compiled, self.integer_matrices = compiled, integer_matrices
        self.names = [output.get_any_name() for output in compiled.outputs]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        found = self.compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: found[i] for i, name in enumerate(self.names)}

    def kernels(self) -> Counter[str]:
        """Return the kernels of all layers that multiply, with their number, such as `brgemm_avx512_i8`.

        They are those of the last call: for inputs of any shape OpenVINO chooses kernels when it knows the shape.
        """
        layers = [node.get_rt_info() for node in self.compiled.get_runtime_model().get_ops()]
        return Counter(
            layer["primitiveType"].astype(str) for layer in layers if layer["layerType"].astype(str) in PRODUCTS
        )

    def integer_products(self) -> int:
        """Return the number of products that the last call computed in 8-bit integers, by the names of the kernels."""
        return sum(count for kernel, count in self.kernels().items() if kernel.lower().endswith(("_i8", "_u8")))


def open_openvino(folder: Path, threads: int = 0) -> Program:
    """Compile a folder written by this module for the CPU, with this number of threads; 0: as OpenVINO chooses.

    Raises:
        UserError: the folder holds no model of OpenVINO.
    """
    # fp32: on CPUs with bf16 OpenVINO would compute in bf16 what is stored in fp32. Threads that are bound to cores, as
    # they are by default, would wait there for other programs
    settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    settings["PERFORMANCE_HINT"] = "LATENCY"
    if threads:
        # a number of threads counts logical cores, as it does for PyTorch and ONNX Runtime
        settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True}
    model = _read(folder)
    return Program(ov.Core().compile_model(model, "CPU", settings), sum(map(_has_codes, model.get_ops())))


def is_own(folder: Path) -> bool:
    """Return whether a folder is one that this module wrote, with nothing else in it."""
    if not all((folder / name).is_file() for name in (XML, BIN)) or stray_files(folder, {XML, BIN}.__contains__):
        return False
    return f"<{MARK} " in (folder / XML).read_text(encoding="utf-8", errors="replace")


def read_codes(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return codes, int8 `(out, in)`, and scales, fp32 `(out,)`, of a folder's matrices of integers, by name.

    Of a model without trained integers the names are those of its graph.
    """
    constants = {node.get_friendly_name(): node for node in _read(folder).get_ops() if _is(node, "Constant")}
    names = [name.removesuffix(".codes") for name in constants if name.endswith(".codes")]
    return {
        name: (constants[f"{name}.codes"].data.copy(), constants[f"{name}.scales"].data[:, 0].copy()) for name in names
    }


def _read(folder: Path) -> ov.Model:
    path = folder / XML
    try:
        with path.open("rb") as file:  # OpenVINO would try every other format as well
            if file.read(5) != b"<?xml":
                raise UserError(f"{path}: no model of OpenVINO")
        return ov.Core().read_model(path, config={"ENABLE_MMAP": False})  # so that the files may be moved or removed
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: no model of OpenVINO: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return the last line of an error of OpenVINO, which begins with places in its source."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


# --- the graph ----------------------------------------------------------------------------------------------------


def _converted(trained: Trained, examples: Sequence[Example]) -> ov.Model:
    # the exporter takes a dimension of size 1 as fixed, so show it two examples
    inputs = trained.encode([*examples[:2], *examples[:1]][:2])
    shapes = trained.dynamic_shapes(inputs)
    with warnings.catch_warnings(), without_cache(trained.model), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.export.export(trained.model, (), kwargs=inputs, dynamic_shapes=shapes)
        try:
            model = ov.convert_model(program)
        except Exception as error:  # OpenVINO's have no other base
            raise trained.unsupported(f"OpenVINO cannot convert it: {_reason(error)}") from error
        names = outputs(trained.model, inputs)
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info("1", MARK)
    return model


def _save(model: ov.Model, temporary: Path, folder: Path) -> None:
    try:
        ov.save_model(model, temporary / XML, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's for a full disk as well
        raise UserError(f"{folder}: cannot be written: {_reason(error)}") from None


def _is(node: ov.Node, kind: str) -> bool:
    return node.get_type_name() == kind


def _source(node: ov.Node, port: int) -> ov.Node:
    return node.input_value(port).get_node()


def _matrix(node: ov.Node) -> ov.Node | None:
    """Return the constant, fp32 `(rows, columns)`, of a Linear layer or an embedding; None: the node is of neither."""
    port = WEIGHTS.get(node.get_type_name())
    if port is None or (_is(node, "MatMul") and not node.get_attributes()["transpose_b"]):
        return None
    constant = _source(node, port)
    is_matrix = _is(constant, "Constant") and constant.get_element_type() == ov.Type.f32 and len(constant.shape) == 2
    return constant if is_matrix else None


def _has_codes(node: ov.Node) -> bool:
    """Return whether a node multiplies by a matrix of 8-bit codes: MatMul <- Multiply <- Convert <- Constant."""
    if not (_is(node, "MatMul") and _is(_source(node, 1), "Multiply")):
        return False
    converted = _source(_source(node, 1), 0)
    return _is(converted, "Convert") and converted.input(0).get_element_type() == ov.Type.i8


def _quantise(
    trained: Trained, model: ov.Model, integers: Mapping[str, Codes], examples: Sequence[Example]
) -> list[str]:
    """Put codes times scales in the place of a model's matrices and round the inputs of their products, in place.

    Args:
        integers: trained codes by name, which alone are taken; {}: all matrices and embeddings are rounded.

    Returns: the names of the trained codes that the model has now.

    Raises:
        UserError: the graph has no product with a matrix of trained codes.
    """
    names = by_values(integers)
    found: list[str] = []
    trained_names: dict[str, str] = {}  # a constant's name in the graph -> the matrix's
    weights: dict[str, ov.Output] = {}  # a constant's name in the graph -> what takes its place
    products: list[ov.Node] = []
    lookups: list[ov.Node] = []
    for node in model.get_ordered_ops():
        constant = _matrix(node)
        if constant is None or (integers and _is(node, "Gather")):
            continue
        key = constant.get_friendly_name()
        if key not in weights and not integers:
            weights[key] = _unpacked(_rounded(constant.data), key)
        elif key not in weights:
            # of several equal matrices any will do
            unused = [name for name in names.get(values_of(constant.data), []) if name not in found]
            if unused:
                weights[key] = _unpacked(integers[unused[0]], unused[0])
                trained_names[key] = unused[0]
                found.append(unused[0])
        if key in weights:
            (products if _is(node, "MatMul") else lookups).append(node)
    for equal in names.values():
        if not set(equal) & set(found):
            raise trained.unsupported(f"the OpenVINO model has no product with the integers of {equal[0]}")
    grids = [_grid(*ends) for ends in _ranges(trained, model, products, examples)]
    levels = [256] * len(products)
    if (trained_with := trained.activations) is not None:
        for i, node in enumerate(products):
            name = trained_names.get(_source(node, 1).get_friendly_name(), "")
            if name in trained_with.ranges:
                scale, zero_point = trained_with.grid(name)
                levels[i] = 2**trained_with.bits
                grids[i] = -zero_point * scale, (levels[i] - 1 - zero_point) * scale
    rounded: dict[tuple[str, int, tuple[float, float]], ov.Output] = {}  # query, key and value read the same input
    for node, grid, count in zip(products, grids, levels, strict=True):
        source = node.input_value(0)
        key = source.get_node().get_friendly_name(), source.get_index(), grid
        if key not in rounded:
            ends = [ov.opset13.constant(np.float32(end)) for end in grid]
            rounded[key] = ov.opset13.fake_quantize(source, *ends, *ends, count).output(0)
        node.input(0).replace_source_output(rounded[key])
    for node in [*products, *lookups]:
        port = WEIGHTS[node.get_type_name()]
        node.input(port).replace_source_output(weights[_source(node, port).get_friendly_name()])
    model.validate_nodes_and_infer_types()
    return found


def _rounded(W: np.ndarray) -> Codes:
    """Return a matrix, fp32 `(rows, columns)`, in 8 bits, with the largest weight of each row at +-127."""
    codes, scales = quantise(torch.tensor(W))
    return Codes(8, codes.numpy(), scales.flatten().numpy())


def _unpacked(own: Codes, name: str) -> ov.Output:
    """Return codes times scales as nodes."""
    codes, scales = ov.opset13.constant(own.codes), ov.opset13.constant(own.scales[:, None])
    codes.set_friendly_name(f"{name}.codes")
    scales.set_friendly_name(f"{name}.scales")
    return ov.opset13.multiply(ov.opset13.convert(codes, "f32"), scales).output(0)


def _ranges(
    trained: Trained, model: ov.Model, products: Sequence[ov.Node], examples: Sequence[Example]
) -> list[tuple[float, float]]:
    """Return the smallest and the largest input of each product on the examples."""
    observed = model.clone()
    copies = {node.get_friendly_name(): node for node in observed.get_ops()}
    ends = []
    for node in products:
        flat = ov.opset13.reshape(copies[node.get_friendly_name()].input_value(0), [-1], False)
        ends += [ov.opset13.reduce_min(flat, [0]), ov.opset13.reduce_max(flat, [0])]
    observed.add_results([ov.opset13.result(end) for end in ends])
    compiled = ov.Core().compile_model(observed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for first in range(0, len(examples), 8):
        inputs = trained.encode(examples[first : first + 8])
        answers = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        found.append([float(answers[i]) for i in range(len(model.outputs), len(observed.outputs))])
    lows, highs = np.min(found, axis=0)[0::2], np.max(found, axis=0)[1::2]
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def _grid(low: float, high: float) -> tuple[float, float]:
    """Return the ends of 256 equal steps that cover a range and 0, with 0 on one of them."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, float(np.finfo(np.float32).tiny)) / 255
    zero = round(-low / step)
    return -zero * step, (255 - zero) * step


def _assert_codes(folder: Path, integers: Mapping[str, Codes], names: Sequence[str]) -> None:
    """Assert that a folder has the model's own codes and scales."""
    found = read_codes(folder)
    for name in names:
        codes, scales = found[name]
        assert np.array_equal(codes, integers[name].codes), f"{folder}: the codes of {name} changed: please report this"
        assert np.array_equal(scales, integers[name].scales), (
            f"{folder}: the scales of {name} changed: please report this"
        )
