"""Check a saved model: `nxm check FOLDER`.

Matrix by matrix, whether it lies in its constraint set; of a shrunk model, heads and FFN rows by layer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from nxm.errors import UserError
from nxm.models import shrink
from nxm.models.load import load
from nxm.models.packed import FILE, is_packed, read_packed, stored_bits
from nxm.models.targets import find_targets
from nxm.sets import parse_set
from nxm.sets.base import ConstraintSet
from nxm.sets.integers import Integers
from nxm.sets.saved import (
    Claim,
    MatrixReport,
    load_config,
    load_matrices,
    model_class,
    read_patterns,
    report,
    stored_tensors,
)


def check(folder: Path, pattern: str | None = None) -> bool:
    """Print for every target matrix its shape, its density and whether it obeys its pattern.

    Of a shrunk model (`nxm.models.shrink`) the heads and the FFN width of each layer are printed too, compared with the
    dense architecture; it needs no pattern.
    For integers the pattern and the grid are checked separately, and the bits are printed that a weight takes when the
    model is packed: codes, positions and scales. Large matrices of the model that have no pattern, such as those of a
    dense decoder, are counted and one is named.

    Args:
        folder: a from_pretrained folder with safetensors, in one file or in shards, or a packed checkpoint.
        pattern: a constraint set such as "2:4" or "50 %", to check the targets of any model; None: the sets in the
            folder's config.json, which nxm's callbacks write.

    Returns: whether every matrix obeys.

    Raises:
        UserError: the folder cannot be read, names no pattern and is not shrunk, lacks a matrix, or has a matrix whose
            shape does not fit the pattern or the sizes in config.json.
    """
    config = load_config(folder)
    shrunk = shrink.read_structure(config) is not None
    if shrunk:
        _print_structure(folder)
    if pattern is not None:
        try:
            constraint = parse_set(pattern)
        except UserError as error:
            raise UserError(f"--pattern: {error}") from None
        claims = [(constraint, list(find_targets(_skeleton(folder, config))))]
    else:
        claims = read_patterns(config)
        if shrunk and not claims:
            return True
        if not claims:
            raise UserError(f"{folder}: config.json names no sparsity pattern; give one with --pattern 2:4")
    matrices = _load(folder, [name for _, names in claims for name in names])
    obey = [_print_report(folder, constraint, {name: matrices[name] for name in names}) for constraint, names in claims]
    if all(obey):
        _print_size(folder, claims, matrices)
    if others := _without_pattern(folder, config, matrices.keys()):
        share = sum(others.values()) / (sum(others.values()) + sum(W.numel() for W in matrices.values()))
        what = "large matrix" if len(others) == 1 else "large matrices, the largest"
        print(
            f"{folder}: not checked, since without a pattern: {len(others)} other {what} "
            f"{max(others, key=others.__getitem__)} ({100 * share:.0f} % of the weights in large matrices)"
        )
    return all(obey)


def _print_structure(folder: Path) -> None:
    """Print heads and FFN width by layer. Raises UserError if the tensors do not have the sizes of config.json."""
    left = shrink.remaining(load(folder))
    table = pd.DataFrame(
        [
            {"layer": i, "heads": f"{heads} of {left.dense_heads}", "FFN width": f"{rows} of {left.dense_rows}"}
            for i, (heads, rows) in enumerate(zip(left.heads, left.rows, strict=True))
        ]
    )
    print(table.to_string(index=False))
    print(f"{folder}: shrunk, {100 * left.share:.1f} % of the dense layers' weights are left")


def _load(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    if not is_packed(folder):
        return load_matrices(folder, names)
    tensors = read_packed(folder)
    if missing := [name for name in names if name not in tensors]:
        raise UserError(f"{folder}: no tensor '{missing[0]}' in {FILE}")
    return {name: tensors[name] for name in names}


def _print_report(folder: Path, constraint: ConstraintSet, matrices: dict[str, torch.Tensor]) -> bool:
    reports = report(matrices, constraint)
    table = pd.DataFrame(
        [
            {"matrix": m.name, "shape": "x".join(map(str, m.shape)), "density": f"{m.density:.4f}"}
            | (_parts(m, matrices[m.name], constraint) if isinstance(constraint, Integers) else {})
            | {"obeys": m.holds if m.finite else "NaN or infinite"}
            for m in reports
        ]
    )
    print(table.to_string(index=False))
    obeying = sum(m.holds for m in reports)
    print(f"{folder}: {obeying} of {len(reports)} matrices obey {constraint}")
    return obeying == len(reports)


def _parts(matrix: MatrixReport, W: torch.Tensor, constraint: Integers) -> dict[str, object]:
    """Return the columns of a matrix of integers: whether it has the zeros and the grid, and its bits per weight."""
    parts: dict[str, object] = {}
    if constraint.mask is not None:
        parts[str(constraint.mask)] = matrix.finite and constraint.mask.contains(W)
    parts["grid"] = matrix.finite and Integers(constraint.bits).contains(W)
    bits = stored_bits(constraint, matrix.shape) / W.numel()
    return parts | {"bits a weight": f"{bits:.3f}" if matrix.holds else "-"}


def _print_size(folder: Path, claims: list[Claim], matrices: dict[str, torch.Tensor]) -> None:
    """Print the bits per weight of all matrices of integers, and the size of the model when they are packed."""
    integers = [
        (matrices[name], claimed) for claimed, names in claims if isinstance(claimed, Integers) for name in names
    ]
    if not integers:
        return
    bits = sum(stored_bits(constraint, W.shape) for W, constraint in integers)
    weights = sum(W.numel() for W, _ in integers)
    print(
        f"{folder}: {len(integers)} matrices of integers take {bits / weights:.3f} bits a weight, positions and scales "
        f"included: {32 * weights / bits:.2f} times smaller than in fp32, {16 * weights / bits:.2f} than in bf16"
    )
    if is_packed(folder):
        print(f"{folder}: the whole model, packed, takes {(folder / FILE).stat().st_size / 2**20:.2f} MiB")
        return
    now = sum(path.stat().st_size for path in set(stored_tensors(folder).values()))
    packed = now - sum(W.numel() * W.element_size() for W, _ in integers) + bits / 8
    print(f"{folder}: the whole model takes {now / 2**20:.2f} MiB, packed about {packed / 2**20:.2f} MiB")


def _skeleton(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Return the model without its weights."""
    try:
        with torch.device("meta"):
            if shrink.read_structure(config) is not None:
                return shrink.build(config, str(folder))
            return (model_class(config) or AutoModel.from_config)(config)
    except (ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder}/config.json: transformers cannot build this model: {error}") from None


def _without_pattern(folder: Path, config: PretrainedConfig, names: Collection[str]) -> dict[str, int]:
    """Return the sizes of the model's matrices, but for embeddings, that are not named and not smaller than those."""
    try:
        skeleton = _skeleton(folder, config)
    except UserError:
        return {}
    weights = dict(skeleton.named_parameters())
    if not weights.keys() >= set(names):  # a class that transformers does not have: its structure is unknown
        return {}
    smallest = min(weights[name].numel() for name in names)
    embeddings = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    return {
        name: W.numel()
        for name, W in weights.items()
        if name not in names and W.ndim >= 2 and W.numel() >= smallest and id(W) not in embeddings
    }
