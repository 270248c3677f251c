"""PyTorch's 2:4 kernels: which matrices they take, which of them they are faster for, and models packed for them.

Packed tensors are laid out for one kind of GPU and one library version, and PyTorch stores them by pickle alone. So
the export is a plain `from_pretrained` folder in half precision whose config.json says, as `nxm_2of4`, which matrices
are to be packed and in what they are multiplied; `load_2of4` packs them on the GPU that will run them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.export.int8 import Int8Linear, quantise, use_int8
from nxm.export.trained import (
    EXAMPLES,
    Example,
    Trained,
    assert_agreement,
    assert_pattern,
    load_trained,
    outputs,
    relative_error,
)
from nxm.models.save import save_model
from nxm.sets.nm import NM

HALF_TOLERANCE = 0.05  # relative error of the outputs in bf16 or fp16 beside fp32
INT8_TOLERANCE = 0.1  # with 8 bits for weights and activations, the rest in bf16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}  # what target matrices are multiplied in
STORED = DTYPES | {"int8": torch.bfloat16}  # what the model is stored in, and all else computed
BACKENDS: dict[str, type[SparseSemiStructuredTensor]] = {
    "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": SparseSemiStructuredTensorCUTLASS,
}
PATTERN = NM(2, 4)


def why_not(shape: tuple[int, int] | torch.Size, dtype: torch.dtype, backend: str) -> str | None:
    """Why a matrix of this shape cannot be packed, by PyTorch's own limits; None where it can."""
    limits = BACKENDS[backend]._DTYPE_SHAPE_CONSTRAINTS  # no public name says them
    if dtype not in limits:
        return f"{backend} has no 2:4 kernel for {dtype}"
    rows, columns = limits[dtype].sparse_min_rows, limits[dtype].sparse_min_cols
    if shape[0] % rows or shape[1] % columns:
        return f"{backend} takes multiples of {rows} x {columns}, not {shape[0]} x {shape[1]}"
    return None


def why_no_gpu(device: torch.device) -> str | None:
    """Why this device cannot run 2:4 kernels; None where it can."""
    if device.type != "cuda":
        return f"no 2:4 kernel in PyTorch for {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0, this GPU has {major}.{minor}"
    return None


def pack_matrix(W: Tensor, backend: str, where: str = "matrix", algorithm: int = 0) -> SparseSemiStructuredTensor:
    """Pack a 2:4 matrix of fp16, bf16 or int8 on a GPU for its kernels.

    Args:
        algorithm: cuSPARSELt's number for a way to multiply, as its search gives it; 0 is its own choice.

    Raises:
        UserError: the device has no such kernels, the shape does not fit, or W is not 2:4 (the packer would drop what
            does not fit without a word).
    """
    if reason := why_no_gpu(W.device) or why_not(W.shape, W.dtype, backend):
        raise UserError(f"{where}: {reason}")
    assert_pattern({where: W}, PATTERN, where)
    values = W.detach() + 0.0 if W.is_floating_point() else W.detach()  # a -0.0 would count as a value
    return BACKENDS[backend].from_dense(values.contiguous(), alg_id=algorithm)


def pack(model: PreTrainedModel, names: Iterable[str], dtype: str, backend: str = "cusparselt") -> None:
    """Replace the named weights of a half-precision model on a GPU by packed ones, in place; for inference alone.

    Args:
        dtype: "int8" also turns them, and their inputs, into integers (`nxm.export.int8`); else the model's own.

    Raises:
        UserError: as `pack_matrix`, naming the matrix, or for integers without cuSPARSELt; the model may then be
            packed in part.
    """
    if dtype == "int8":
        if backend != "cusparselt":
            raise UserError(f"2:4 products of 8-bit integers are cuSPARSELt's; PyTorch offers none through {backend}")
        use_int8(model, names, lambda name: partial(_packed_integers, where=name))
        return
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        packed = pack_matrix(module.weight, backend, name)
        module.weight = nn.Parameter(packed, requires_grad=False)


def _packed_integers(W: Tensor, where: str) -> Tensor:
    packed = pack_matrix(W, "cusparselt", where).packed
    assert packed is not None
    return packed


def survives_packing(W: Tensor) -> bool:
    """Whether a matrix of fp16, bf16 or int8 comes back equal from CUTLASS's packed layout: the proof where no GPU is.

    By torch's own reference conversion, which runs on any device.
    """
    packed, meta = sparse_semi_structured_from_dense_cutlass(W)
    return torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), W)


def is_faster(out_features: int, in_features: int, tokens: int, dtype: str, backend: str = "cusparselt") -> bool:
    """The rule of `--auto`, by measuring: whether on this GPU the 2:4 product of a Linear layer takes less time.

    Args:
        tokens: rows of the layer's input, that is batch x length.
        dtype: with "int8" the layer that turns its inputs into integers is timed beside the dense one in bf16.

    Raises:
        UserError: the device has no 2:4 kernels, or they do not take this shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = nn.Linear(in_features, out_features, bias=False, device=device, dtype=STORED[dtype]).requires_grad_(False)
    dense.weight.copy_(PATTERN.project(torch.randn(out_features, in_features)).Z)
    sparse: nn.Module
    if dtype == "int8":
        sparse = Int8Linear(dense, partial(_packed_integers, where="matrix"))
    else:
        sparse = copy.deepcopy(dense)
        sparse.weight = nn.Parameter(pack_matrix(dense.weight, backend), requires_grad=False)
    x = torch.randn(tokens, in_features, device=device, dtype=STORED[dtype])
    seconds = [
        Timer("layer(x)", globals={"layer": layer, "x": x}).adaptive_autorange().median for layer in (dense, sparse)
    ]
    return seconds[1] < seconds[0]


def write_2of4(
    trained: Trained,
    folder: Path,
    dtype: str = "bf16",
    only: Callable[[int, int], bool] | None = None,
    examples: Sequence[Example] = EXAMPLES,
) -> dict[str, str]:
    """Write a folder that `load_2of4` packs: weights in half precision, all at once.

    Args:
        dtype: what the matrices are multiplied in: "bf16", which on Hopper has more 2:4 kernels than "fp16", or
            "int8", where the folder is in bf16 and integers are made when it is loaded.
        only: whether a matrix is to be packed, given its outputs and inputs (`is_faster`); None: all that fit a kernel.
        examples: as in `write_onnx`.

    Returns: the matrices that stay dense, with the reason.

    Raises:
        UserError: the model is not 2:4, or its outputs change by more than `HALF_TOLERANCE`, `INT8_TOLERANCE`.
    """
    if trained.pattern is None:
        raise UserError(f"{trained.folder}: config.json names no sparsity pattern; there is nothing to pack")
    weights = dict(trained.model.named_parameters())
    own = {name: weights[name] for name in trained.pattern[1]}
    assert_pattern(own, PATTERN, str(trained.folder))  # 1:4 is 2:4 as well
    reasons = {}
    for name, W in own.items():
        stored = W.detach().to(STORED[dtype])
        multiplied = quantise(stored)[0] if dtype == "int8" else stored
        if reason := why_not(W.shape, DTYPES[dtype], "cusparselt"):
            reasons[name] = reason
        elif only is not None and not only(*W.shape):
            reasons[name] = "its dense product is faster"
        elif why_not(W.shape, DTYPES[dtype], "cutlass") is None and not survives_packing(multiplied):
            raise AssertionError(f"{trained.folder}: {name} changes when it is packed: please report this")
    half_model = copy.deepcopy(trained.model).to(STORED[dtype])
    names = [name for name in own if name not in reasons]
    inputs = trained.encode(examples)
    answers = outputs(_unpacked(half_model, names, dtype), inputs)
    error = relative_error(answers, outputs(trained.model, inputs))
    assert_agreement(error, INT8_TOLERANCE if dtype == "int8" else HALF_TOLERANCE, folder, f"{dtype} model")
    half_model.config.nxm_2of4 = {"dtype": dtype, "matrices": names}
    save_model(half_model, trained.tokenizer, folder)
    return reasons


def load_2of4(folder: Path, device: str | torch.device = "cuda", backend: str = "cusparselt") -> PreTrainedModel:
    """Load a folder written by `write_2of4` on a GPU, with its matrices packed.

    The outputs of the packed model are compared with those of the dense one in the same precision.

    Raises:
        UserError: the folder is not such a one, the device has no 2:4 kernels, or the outputs differ.
    """
    device = torch.device(device)
    if reason := why_no_gpu(device):
        raise UserError(f"{folder}: {reason}")
    trained = load_trained(folder)
    plan = getattr(trained.model.config, "nxm_2of4", None)
    if plan is None:
        raise UserError(f"{folder}: not written by nxm.export (config.json has no nxm_2of4)")
    exact = outputs(trained.model, trained.encode(EXAMPLES))
    model = trained.model.to(device, STORED[plan["dtype"]])
    dense = outputs(_unpacked(model, plan["matrices"], plan["dtype"]), trained.encode(EXAMPLES))
    pack(model, plan["matrices"], plan["dtype"], backend)
    assert_sparse_is_as_exact(outputs(model, trained.encode(EXAMPLES)), dense, exact, str(folder))
    return model


def _unpacked(model: PreTrainedModel, names: Iterable[str], dtype: str) -> PreTrainedModel:
    """What computes as the packed model does, in dense kernels, on any device."""
    if dtype != "int8":
        return model
    model = copy.deepcopy(model)
    use_int8(model, names)
    return model


def assert_sparse_is_as_exact(
    sparse: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], where: str
) -> None:
    """Raise UserError when a packed model is further from fp32 than twice its dense self in the same precision.

    Both round alike and differ in the order of sums alone, so their errors must be of one size.
    """
    found, expected = relative_error(sparse, exact), relative_error(dense, exact)
    if not found <= 2.0 * expected:
        raise UserError(f"{where}: the 2:4 output is wrong: relative error {found:.1e}, dense kernels {expected:.1e}")
