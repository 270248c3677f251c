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
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nxm.errors import UserError
from nxm.export.cusparselt import PATTERN, SEARCH_ROWS, Linear24, why_no_gpu, why_not
from nxm.export.int8 import Int8Linear, use_int8
from nxm.export.trained import (
    EXAMPLES,
    Example,
    Judge,
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
from nxm.replay import fastest
from nxm.sets.integers import Integers
from nxm.sets.saved import Claim, report, write_pattern

HALF_TOLERANCE = 0.05  # relative error of the outputs in bf16 or fp16, compared with fp32
INT8_TOLERANCE = 0.1  # with 8 bits for weights and activations, the rest in bf16
SMALL_ERROR = 1e-3  # of a packed model's outputs, in any precision
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}  # of the products with target matrices
STORED = DTYPES | {"int8": torch.bfloat16}  # of the stored model and of all other operations


def pack(model: PreTrainedModel, names: Iterable[str], dtype: str, rows: int = SEARCH_ROWS) -> None:
    """Replace the Linear layers of the named weights, in half precision on a GPU, by 2:4 ones, in place, for inference.

    Args:
        dtype: the model's type, or "int8" to convert weights and their inputs to integers (`nxm.export.int8`).
        rows: of the layers' inputs (batch x length), for which the fastest algorithm is searched.

    Raises:
        UserError: a shape does not fit or a matrix is not 2:4, with its name; the model may then be packed in part.
    """
    if dtype == "int8":
        use_int8(model, names, sparse=True, rows=rows)
        return
    for name in names:
        module = name.removesuffix(".weight")
        model.set_submodule(module, Linear24(model.get_submodule(module), rows=rows, where=name))


def is_faster(out_features: int, in_features: int, tokens: int, dtype: str) -> bool:
    """Measure whether on this GPU a Linear layer takes less time with a 2:4 kernel (the rule of `--auto`).

    Both layers are compiled and captured in a CUDA graph, as they are best deployed.

    Args:
        tokens: rows of the layer's input, batch x length.
        dtype: with "int8" the layer converts its inputs to integers and is compared with the dense layer in bf16.

    Raises:
        UserError: the device has no 2:4 kernels, or they do not take this shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := why_no_gpu(device):
        raise UserError(f"--auto: {reason}")
    dense = nn.Linear(in_features, out_features, bias=False, device=device, dtype=STORED[dtype]).requires_grad_(False)
    sparse = copy.deepcopy(dense)
    sparse.weight.copy_(PATTERN.project(dense.weight.float()).Z)
    packed = Int8Linear(sparse, sparse=True, rows=tokens) if dtype == "int8" else Linear24(sparse, rows=tokens)
    x = torch.randn(tokens, in_features, device=device, dtype=STORED[dtype])
    layers = {"dense": torch.compile(dense, dynamic=False), "2:4": torch.compile(packed, dynamic=False)}
    with torch.inference_mode():
        seconds = fastest({name: [_applied(layer, x)] for name, layer in layers.items()}, device)
    return seconds["2:4"] < seconds["dense"]


def _applied(layer: Callable[[torch.Tensor], object], x: torch.Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def write_2of4(
    trained: Trained,
    folder: Path,
    dtype: str = "bf16",
    only: Callable[[int, int], bool] | None = None,
    examples: Sequence[Example] = EXAMPLES,
    *,
    force: bool = False,
    judge: Judge | None = None,
) -> dict[str, str]:
    """Write a folder with weights in half precision, to be packed by `load_2of4`.

    Args:
        dtype: type of the products: "bf16", "fp16", or "int8", with weights in bf16, converted when the folder is
            loaded.
        only: given a matrix's numbers of outputs and inputs, returns whether to pack it (`is_faster`); None: pack all
            that fit a kernel.
        examples: as in `write_onnx`.
        force: replace a folder that this function wrote, if it holds nothing else.
        judge: as in `nxm.export.trained.write_compared`; its program is a dense copy with the same arithmetic.

    Returns: the matrices that stay dense, with the reason.

    Raises:
        UserError: there is something at `folder`, it cannot be written, no pattern of the model is 2:4, the model is
            not supported, its outputs change by more than `HALF_TOLERANCE` or `INT8_TOLERANCE`, or `judge` refuses;
            nothing is written then.
    """
    if not trained.claims:
        raise UserError(f"{trained.folder}: config.json names no sparsity pattern; there is nothing to pack")
    with new_folder(folder, refusal(is_own, force), trained.folder) as written:
        check_room(folder, trained.fp32_bytes / 2)
        exact = own_outputs(trained, examples)
        reasons = _stay_dense(trained, dtype, only)
        half_model = copy.deepcopy(trained.model).to(STORED[dtype])
        names = [name for name in trained.sparse if name not in reasons]
        program = partial(outputs, _unpacked(half_model, names, dtype))
        tolerance = INT8_TOLERANCE if dtype == "int8" else HALF_TOLERANCE
        error = relative_error(program(trained.encode(examples)), exact)
        assert_agreement(error, tolerance, folder, f"{dtype} model")
        if judge is not None:
            judge(program)
        _claim_zeros(half_model.config, trained.claims)
        half_model.config.nxm_2of4 = {"dtype": dtype, "matrices": names}
        half_model.save_pretrained(written)
        trained.tokenizer.save_pretrained(written)
    return reasons


def _claim_zeros(config: PretrainedConfig, claims: Sequence[Claim]) -> None:
    """Claim of sets of integers the zero pattern alone: half precision rounds a code times its scale off the grid."""
    if not any(isinstance(constraint, Integers) for constraint, _ in claims):
        return
    del config.nxm_sparsity
    for constraint, names in claims:
        zeros = constraint.mask if isinstance(constraint, Integers) else constraint
        if zeros is not None:
            write_pattern(config, zeros, names)


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
        if reason := why_not(W.shape, DTYPES[dtype]):
            reasons[name] = reason
        elif only is not None and not only(*W.shape):
            reasons[name] = "its dense product is faster"
    return reasons


def load_2of4(folder: Path, device: str | torch.device = "cuda", rows: int = SEARCH_ROWS) -> PreTrainedModel:
    """Load a folder written by `write_2of4` on a GPU and pack its matrices.

    The outputs of the packed model are compared with those of the dense one in the same precision.

    Args:
        rows: batch x length of the inputs, for which the fastest algorithm is searched.

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
    pack(model, plan["matrices"], plan["dtype"], rows)
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

    Both copies have the same precision and differ only in the order of sums, so their errors must be of similar size;
    of a few numbers one of the two may be small by chance, hence SMALL_ERROR.
    """
    found, expected = relative_error(sparse, exact), relative_error(dense, exact)
    if not found <= 2.0 * expected + SMALL_ERROR:
        raise UserError(f"{where}: the 2:4 output is wrong: relative error {found:.1e}, dense kernels {expected:.1e}")
