"""The constraint set that a saved model's config.json claims, and the check that its weights lie in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from nxm.errors import UserError
from nxm.sets import all_sets, kind_of
from nxm.sets.base import ConstraintSet


def load_config(folder: Path) -> PretrainedConfig:
    """Read a saved model's config.json.

    Raises:
        UserError: it is missing, or transformers knows no such model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model folder here (config.json is missing)")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: no config of a model that transformers knows ({error})") from None


def write_pattern(config: PretrainedConfig, constraint: ConstraintSet, names: Iterable[str]) -> None:
    """Put the constraint set and the names of its matrices into a config as `nxm_sparsity`, plain JSON."""
    config.nxm_sparsity = {"kind": kind_of(constraint), **asdict(constraint), "targets": list(names)}


def read_pattern(config: PretrainedConfig) -> tuple[ConstraintSet, list[str]] | None:
    """Return the constraint set and the names of its matrices that a config claims; None for a dense model.

    Raises:
        UserError: `nxm_sparsity` names no set that nxm knows.
    """
    written: dict[str, Any] | None = getattr(config, "nxm_sparsity", None)
    if written is None:
        return None
    fields = {key: value for key, value in written.items() if key not in ("kind", "targets")}
    try:
        return all_sets()[written["kind"]](**fields), list(written["targets"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json: nxm_sparsity {fields} is not a pattern that nxm knows: {error}") from None


@dataclass(frozen=True)
class MatrixReport:
    """The check of one target matrix.

    density: the share of non-zeros.
    holds: whether it lies in the constraint set.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    holds: bool


@torch.no_grad()
def report(weights: dict[str, Tensor] | dict[str, nn.Parameter], constraint: ConstraintSet) -> list[MatrixReport]:
    """Check each matrix. Raises UserError when the shape of one does not fit the set."""
    reports = []
    for name, W in weights.items():
        constraint.validate(W.shape, name)
        density = float((W != 0).sum()) / W.numel()
        reports.append(MatrixReport(name, tuple(W.shape), density, constraint.contains(W)))
    return reports


def load_matrices(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named tensors from a model folder's model.safetensors.

    Raises:
        UserError: the file is missing or damaged, or lacks one of the tensors.
    """
    path = folder / "model.safetensors"
    stored = set(stored_names(path))
    if missing := [name for name in names if name not in stored]:
        raise UserError(f"{path}: no tensor '{missing[0]}'; the config's targets are not this model's")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def stored_names(path: Path) -> list[str]:
    """Return the names of a safetensors file's tensors. Raises UserError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder saved by save_pretrained") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None
