"""Export for PyTorch's 2:4 kernels: their limits, their speed, and models packed for them.

The layout of packed tensors depends on the GPU and the library's version, and PyTorch stores them by pickle alone. The
export is therefore a plain `from_pretrained` folder in half precision. The entry `nxm_2of4` of its config.json lists
the matrices to pack and the type of their products; `load_2of4` packs them on the GPU that will run them.
"""

from __future__ import annotations

import copy
import json
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
    own_outputs,
    refusal,
    relative_error,
)
from nxm.files import check_room, new_folder
from nxm.models.save import no_saved_model
from nxm.sets.nm import NM
from nxm.sets.saved import report

HALF_TOLERANCE = 0.05  # relative error of the outputs in bf16 or fp16, compared with fp32
INT8_TOLERANCE = 0.1  # with 8 bits for weights and activations, the rest in bf16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}  # of the products with target matrices
STORED = DTYPES | {"int8": torch.bfloat16}  # of the stored model and of all other operations
BACKENDS: dict[str, type[SparseSemiStructuredTensor]] = {
    "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": SparseSemiStructuredTensorCUTLASS,
}
PATTERN = NM(2, 4)


def why_not(shape: tuple[int, int] | torch.Size, dtype: torch.dtype, backend: str) -> str | None:
    """Return the reason why PyTorch cannot pack a matrix of this shape, or None if it can."""
    limits = BACKENDS[backend]._DTYPE_SHAPE_CONSTRAINTS  # they have no public name
    if dtype not in limits:
        return f"{backend} has no 2:4 kernel for {dtype}"
    rows, columns = limits[dtype].sparse_min_rows, limits[dtype].sparse_min_cols
    if shape[0] % rows or shape[1] % columns:
        return f"{backend} takes multiples of {rows} x {columns}, not {shape[0]} x {shape[1]}"
    return None


def why_no_gpu(device: torch.device) -> str | None:
    """Return the reason why this device cannot run 2:4 kernels, or None if it can."""
    if device.type != "cuda":
        return f"no 2:4 kernel in PyTorch for {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0, this GPU has {major}.{minor}"
    return None


def pack_matrix(W: Tensor, backend: str, where: str = "matrix", algorithm: int = 0) -> SparseSemiStructuredTensor:
    """Pack a 2:4 matrix in fp16, bf16 or int8 on a GPU for its kernels.

    Args:
        where: name of the matrix, for messages.
        algorithm: cuSPARSELt's number of an algorithm, as its search returns it; 0 is its default.

    Raises:
        UserError: the device has no 2:4 kernels, the shape does not fit, or W is not 2:4 (the packer would silently
            drop values).
    """
    if reason := why_no_gpu(W.device) or why_not(W.shape, W.dtype, backend):
        raise UserError(f"{where}: {reason}")
    assert_pattern({where: W}, PATTERN, where)
    values = W.detach() + 0.0 if W.is_floating_point() else W.detach()  # a -0.0 would count as a value
    return BACKENDS[backend].from_dense(values.contiguous(), alg_id=algorithm)


def pack(model: PreTrainedModel, names: Iterable[str], dtype: str, backend: str = "cusparselt") -> None:
    """Replace the named weights of a half-precision model on a GPU by packed ones, in place, for inference.

    Args:
        dtype: the model's type, or "int8" to convert weights and their inputs to integers (`nxm.export.int8`).

    Raises:
        UserError: as `pack_matrix`, with the name of the matrix, or "int8" with a backend other than cuSPARSELt; the
            model may then be packed in part.
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
    """Return whether a matrix in fp16, bf16 or int8 is unchanged after packing to CUTLASS's layout and unpacking.

    Uses torch's reference conversion, which needs no GPU.
    """
    packed, meta = sparse_semi_structured_from_dense_cutlass(W)
    return torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), W)


def is_faster(out_features: int, in_features: int, tokens: int, dtype: str, backend: str = "cusparselt") -> bool:
    """Measure whether on this GPU a Linear layer takes less time with a 2:4 kernel (the rule of `--auto`).

    Args:
        tokens: rows of the layer's input, batch x length.
        dtype: with "int8" the layer converts its inputs to integers and is compared with the dense layer in bf16.

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
    *,
    force: bool = False,
) -> dict[str, str]:
    """Write a folder with weights in half precision, to be packed by `load_2of4`.

    Args:
        dtype: type of the products: "fp16"; "bf16", which has more 2:4 kernels on Hopper; or "int8", with weights in
            bf16 that are converted when the folder is loaded.
        only: given a matrix's numbers of outputs and inputs, returns whether to pack it (`is_faster`); None: pack all
            that fit a kernel.
        examples: as in `write_onnx`.
        force: replace a folder that this function wrote, if it holds nothing else.

    Returns: the matrices that stay dense, with the reason.

    Raises:
        UserError: there is something at `folder`, it cannot be written, no pattern of the model is 2:4, the model is
            not supported, or its outputs change by more than `HALF_TOLERANCE` or `INT8_TOLERANCE`; nothing is written
            then.
    """
    if not trained.claims:
        raise UserError(f"{trained.folder}: config.json names no sparsity pattern; there is nothing to pack")
    with new_folder(folder, refusal(is_own, force), trained.folder) as partial:
        check_room(folder, trained.fp32_bytes / 2)
        exact = own_outputs(trained, examples)
        reasons = _stay_dense(trained, dtype, only)
        half_model = copy.deepcopy(trained.model).to(STORED[dtype])
        names = [name for name in trained.sparse if name not in reasons]
        answers = outputs(_unpacked(half_model, names, dtype), trained.encode(examples))
        tolerance = INT8_TOLERANCE if dtype == "int8" else HALF_TOLERANCE
        assert_agreement(relative_error(answers, exact), tolerance, folder, f"{dtype} model")
        half_model.config.nxm_2of4 = {"dtype": dtype, "matrices": names}
        half_model.save_pretrained(partial)
        trained.tokenizer.save_pretrained(partial)
    return reasons


def is_own(folder: Path) -> bool:
    """Return whether a folder is one that `write_2of4` wrote, with nothing else in it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "nxm_2of4" in config and no_saved_model(folder) is None


def _stay_dense(trained: Trained, dtype: str, only: Callable[[int, int], bool] | None) -> dict[str, str]:
    """Return the sparse matrices that are not to be packed, with the reason. Raises UserError if no claim is 2:4."""
    weights = dict(trained.model.named_parameters())
    reasons, own = {}, {}
    for constraint, names in trained.claims:
        matrices = {name: weights[name] for name in names}
        if len(trained.claims) > 1 and not all(matrix.holds for matrix in report(matrices, PATTERN)):
            reasons |= dict.fromkeys(names, f"it is {constraint}, not {PATTERN}")
        else:
            own |= matrices
    assert_pattern(own or {name: weights[name] for name in trained.sparse}, PATTERN, str(trained.folder))
    for name, W in own.items():  # 1:4 is also 2:4
        stored = W.detach().to(STORED[dtype])
        multiplied = quantise(stored)[0] if dtype == "int8" else stored
        if reason := why_not(W.shape, DTYPES[dtype], "cusparselt"):
            reasons[name] = reason
        elif only is not None and not only(*W.shape):
            reasons[name] = "its dense product is faster"
        elif why_not(W.shape, DTYPES[dtype], "cutlass") is None and not survives_packing(multiplied):
            raise AssertionError(f"{trained.folder}: {name} changes when it is packed: please report this")
    return reasons


def load_2of4(folder: Path, device: str | torch.device = "cuda", backend: str = "cusparselt") -> PreTrainedModel:
    """Load a folder written by `write_2of4` on a GPU and pack its matrices.

    The outputs of the packed model are compared with those of the dense one in the same precision.

    Raises:
        UserError: `write_2of4` did not write the folder, the device has no 2:4 kernels, or the outputs differ.
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
    """Return a model that computes as the packed one does but in dense kernels, on any device."""
    if dtype != "int8":
        return model
    model = copy.deepcopy(model)
    use_int8(model, names)
    return model


def assert_sparse_is_as_exact(
    sparse: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], where: str
) -> None:
    """Raise UserError if a packed model's error, compared with fp32, is over twice that of its dense copy.

    Both copies have the same precision and differ only in the order of sums, so their errors must be of similar size.
    """
    found, expected = relative_error(sparse, exact), relative_error(dense, exact)
    if not found <= 2.0 * expected:
        raise UserError(f"{where}: the 2:4 output is wrong: relative error {found:.1e}, dense kernels {expected:.1e}")
