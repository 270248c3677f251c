"""Saved models: the constraint sets that config.json claims, the check that weights lie in them, and checkpoints."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from nxm.errors import UserError, first_line
from nxm.sets import all_sets, kind_of
from nxm.sets.base import ConstraintSet

WHOLE, INDEX = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME  # a model's one file, or the index of its shards

Claim = tuple[ConstraintSet, list[str]]  # a set and the names of the matrices that lie in it


def load_config(folder: Path) -> PretrainedConfig:
    """Read a saved model's config.json.

    Raises:
        UserError: it is missing, or transformers knows no such model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model folder here (config.json is missing)")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: no config of a model that transformers knows ({error})") from None


def write_pattern(
    config: PretrainedConfig,
    constraint: ConstraintSet,
    names: Iterable[str],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Claim in a config that the named matrices lie in a constraint set; see `write_patterns`."""
    write_patterns(config, [(constraint, list(names))], weights)


def write_patterns(
    config: PretrainedConfig, claims: Iterable[Claim], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Claim in a config, as `nxm_sparsity` in plain JSON, that the named matrices lie in constraint sets.

    Claims on other matrices remain, so that a model may have several patterns. A matrix has one claim: the latest.

    Args:
        weights: the model's weights by name; claims on other matrices are dropped, with a warning, for those that left
            their set. None: they remain unchecked.
    """
    new = {constraint: list(names) for constraint, names in claims}
    try:
        earlier = read_patterns(config)
    except UserError as error:
        warnings.warn(f"the config's former pattern is replaced, since it cannot be read: {error}", stacklevel=2)
        earlier = []
    written: list[Claim] = []
    taken = {name for names in new.values() for name in names}
    for former, targets in earlier:
        remaining = [name for name in targets if name not in taken]
        if weights is not None:
            holding = [name for name in remaining if name in weights and _lies_in(weights[name], former)]
            if len(holding) < len(remaining):
                left = next(name for name in remaining if name not in holding)
                warnings.warn(
                    f"config.json no longer claims {former} for {len(remaining) - len(holding)} matrices that have "
                    f"left it, first {left}",
                    stacklevel=2,
                )
            remaining = holding
        if former in new:
            new[former] = remaining + new[former]
        elif remaining:
            written.append((former, remaining))
    entries = [
        {"kind": kind_of(claimed), **asdict(claimed), "targets": targets}
        for claimed, targets in [*written, *new.items()]
    ]
    config.nxm_sparsity = entries[0] if len(entries) == 1 else entries


def read_patterns(config: PretrainedConfig) -> list[Claim]:
    """Return the claims of a config: constraint sets, each with the names of its matrices; [] for a dense model.

    Raises:
        UserError: `nxm_sparsity` names no set that nxm knows, or no matrix.
    """
    written: Any = getattr(config, "nxm_sparsity", None)
    if written is None:
        return []
    entries = written if isinstance(written, list) else [written]
    if not entries:
        raise UserError("config.json: nxm_sparsity is an empty list; it should name a pattern and its matrices")
    return [_read_claim(entry) for entry in entries]


def read_pattern(config: PretrainedConfig) -> Claim | None:
    """Return the only claim of a config; None for a dense model.

    Raises:
        UserError: as `read_patterns`, or the config has several claims.
    """
    claims = read_patterns(config)
    if len(claims) > 1:
        sets = ", ".join(str(constraint) for constraint, _ in claims)
        raise UserError(f"config.json claims several patterns ({sets}) where one is expected")
    return claims[0] if claims else None


def _read_claim(entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise UserError(
            f"config.json: nxm_sparsity is {entry!r}, which is not a pattern with its matrices as nxm writes it: "
            '{"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": [...]}'
        )
    targets = entry.get("targets")
    if not (isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)):
        raise UserError(
            f"config.json: the targets of nxm_sparsity are {targets!r}; they should be the names of the sparse "
            "matrices, at least one"
        )
    fields = {key: value for key, value in entry.items() if key not in ("kind", "targets")}
    try:
        return all_sets()[entry["kind"]](**fields), list(targets)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json: nxm_sparsity {fields} is not a pattern that nxm knows: {error}") from None


@dataclass(frozen=True)
class MatrixReport:
    """The check of one target matrix.

    density: the share of non-zeros.
    holds: whether it lies in the constraint set; never if it has NaN or infinite entries.
    finite: whether all its entries are finite.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    holds: bool
    finite: bool = True


@torch.no_grad()
def report(weights: Mapping[str, Tensor], constraint: ConstraintSet) -> list[MatrixReport]:
    """Check each matrix. Raises UserError when one is no matrix, or its shape does not fit the set."""
    reports = []
    for name, W in weights.items():
        if W.ndim != 2:
            raise UserError(f"{name}: has the shape {tuple(W.shape)}; {constraint} is a pattern of matrices")
        constraint.validate(W.shape, name)
        density = float((W != 0).sum()) / W.numel()
        finite = bool(W.isfinite().all())
        reports.append(MatrixReport(name, tuple(W.shape), density, finite and constraint.contains(W), finite))
    return reports


def _lies_in(W: Tensor, constraint: ConstraintSet) -> bool:
    try:
        return report({"": W}, constraint)[0].holds
    except UserError:
        return False


def load_matrices(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named matrices of a saved model, in one file or in shards.

    Names are those of the model in memory. transformers saves some architectures, such as ViT, under other names; the
    model is then loaded on the CPU.

    Raises:
        UserError: a file is missing or damaged, or the model lacks one of the matrices.
    """
    files = stored_tensors(folder)
    if all(name in files for name in names):
        matrices = {}
        for name in names:
            with safe_open(files[name], framework="pt") as file:
                matrices[name] = file.get_tensor(name)
        return matrices
    weights = dict(load_model(folder, load_config(folder), needed=names).named_parameters())
    return {name: weights[name].detach() for name in names}


def model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that config.json names as its architecture; None if transformers does not have it."""
    named = getattr(transformers, (config.architectures or ["none"])[0], None)
    return named if isinstance(named, type) and issubclass(named, PreTrainedModel) else None


def load_model(
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype | str = "auto",
    needed: Sequence[str] | None = None,
) -> PreTrainedModel:
    """Load a saved model on the CPU, with the class that its config names, or the bare model of its type.

    Args:
        dtype: of the weights; "auto": that of the files.
        needed: names of weights that must come from the files; None: all weights.

    Raises:
        UserError: a file is missing or damaged, or lacks a weight.
    """
    stored_tensors(folder)  # names the file that is missing or damaged
    loader = model_class(config) or AutoModel
    try:
        model, loading = loader.from_pretrained(  # type: ignore[misc]  # a pair, because of output_loading_info
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{folder}: transformers cannot load this model: {error}") from None
    absent = set(loading["missing_keys"])
    weights = dict(model.named_parameters())
    if missing := sorted(absent) if needed is None else sorted(absent & set(needed) | set(needed) - weights.keys()):
        raise UserError(f"{folder}: no tensor '{missing[0]}' in its files for {type(model).__name__}")
    return model


@torch.no_grad()
def restore_renamed(model: nn.Module, folder: Path) -> None:
    """Load, in place, the weights of a Trainer's checkpoint that the Trainer has just failed to load.

    transformers saves some architectures, such as ViT, under other names than they have in memory. Its Trainer (5.23)
    looks for the latter, when it resumes and for `load_best_model_at_end`, and where it finds none it leaves the
    weights as they are. Names alone are compared, and a model that has all its names in the file is not touched.

    Raises:
        UserError: a file is damaged, or transformers cannot load the checkpoint with the model's class.
    """
    if not isinstance(model, PreTrainedModel) or not any((folder / name).is_file() for name in (WHOLE, INDEX)):
        return  # another model is saved under its own names, and another format has been loaded by its own means
    stored = stored_tensors(folder).keys() | set(model._keys_to_ignore_on_save or ())
    own = model.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for name, tensor in own.items():
        shared.setdefault(id(tensor), []).append(name)  # a file has one of the names of a shared weight
    lost = [names[0] for names in shared.values() if stored.isdisjoint(names)]
    if not lost:
        return
    loader: Any = type(model)
    try:
        with torch.random.fork_rng(devices=[]):  # a training must go on with the same random numbers
            loaded, loading = loader.from_pretrained(
                folder,
                config=copy.deepcopy(model.config),
                dtype=torch.promote_types(model.dtype, torch.float32),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{folder}: {len(lost)} weights of {type(model).__name__}, first {lost[0]}, have other names in this "
            f"checkpoint; the Trainer has not loaded them, and {type(model).__name__}.from_pretrained cannot either: "
            f"{first_line(error)}. Give the class a constructor that takes the config alone"
        ) from None
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in loading["missing_keys"]}
    for name in found.keys() & own.keys():
        own[name].copy_(found[name])
    if missing := [name for name in lost if name not in found]:
        warnings.warn(
            f"{folder}: {len(missing)} weights of {type(model).__name__} are not in this checkpoint, first "
            f"{missing[0]}: they stay as they are",
            stacklevel=2,
        )


def stored_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor of a saved model, by the tensor's name in the file.

    Raises:
        UserError: a file is missing or damaged.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() or not index.exists():
        return dict.fromkeys(_names(whole), whole)
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: no index of a model's files: {error!r}") from None
    return {name: folder / shard for shard in shards for name in _names(folder / shard)}


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder saved by save_pretrained") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None
