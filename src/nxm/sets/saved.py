"""The sparsity that a saved model claims, written into its config.json, and whether its weights keep it."""

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
from nxm.sets.base import SparseSet
from nxm.sets.nm import NM
from nxm.sets.unstructured import Unstructured

_KINDS: dict[str, type[SparseSet]] = {"nm": NM, "unstructured": Unstructured}


def load_config(folder: Path) -> PretrainedConfig:
    """The config.json of a saved model. Raises UserError when it is missing or transformers knows no such model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model folder here (config.json is missing)")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: no config of a model that transformers knows ({error})") from None


def write_pattern(config: PretrainedConfig, constraint: SparseSet, names: Iterable[str]) -> None:
    """Put the constraint set and the names of its matrices into the config, as `nxm_sparsity`; plain JSON."""
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(constraint, cls))
    config.nxm_sparsity = {"kind": kind, **asdict(constraint), "targets": list(names)}


def read_pattern(config: PretrainedConfig) -> tuple[SparseSet, list[str]] | None:
    """What `write_pattern` wrote, or None for a dense model. Raises UserError when it makes no sense."""
    written: dict[str, Any] | None = getattr(config, "nxm_sparsity", None)
    if written is None:
        return None
    values = {key: value for key, value in written.items() if key not in ("kind", "targets")}
    try:
        return _KINDS[written["kind"]](**values), list(written["targets"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json: nxm_sparsity {values} is not a pattern that nxm knows: {error}") from None


@dataclass(frozen=True)
class MatrixReport:
    """One target matrix: its density (share of non-zeros) and whether it lies in the constraint set."""

    name: str
    shape: tuple[int, ...]
    density: float
    holds: bool


@torch.no_grad()
def report(weights: dict[str, Tensor] | dict[str, nn.Parameter], constraint: SparseSet) -> list[MatrixReport]:
    """Look at each matrix. Raises ValueError when one's shape cannot lie in the set."""
    reports = []
    for name, W in weights.items():
        constraint.validate(W.shape, name)
        density = float((W != 0).sum()) / W.numel()
        reports.append(MatrixReport(name, tuple(W.shape), density, constraint.contains(W)))
    return reports


def load_matrices(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named tensors of a model folder's model.safetensors.

    Raises:
        UserError: the file is missing or damaged, or has no such tensor.
    """
    path = folder / "model.safetensors"
    stored = set(stored_names(path))
    if missing := [name for name in names if name not in stored]:
        raise UserError(f"{path}: no tensor '{missing[0]}'; the config's targets are not this model's")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def stored_names(path: Path) -> list[str]:
    """The names of a safetensors file's tensors. Raises UserError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder saved by save_pretrained") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None
