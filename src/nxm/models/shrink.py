"""Removal of dead heads and FFN rows: a masked model becomes a smaller ordinary one, and a folder that loads again.

    small = shrink(model, structure_of(model), multiple=8)
    small.save_pretrained("small")  # config.json has `nxm_structure`: heads and rows by layer
    small = nxm.load("small")

The attention of these architectures infers the number of heads from the width of Q, K and V, so that smaller Linear
layers are all it needs. MPNet alone adds a bias by head that all layers share; there each layer's attention gets a
forward pre-hook that selects its heads. No class is changed.

Plain `AutoModel.from_pretrained` cannot build such a model in transformers 5 (tried with 5.23). It reads one number of
heads and one FFN width for all layers. It raises a RuntimeError that lists the matrices of another size; with
`ignore_mismatched_sizes=True` it loads the rest and draws those matrices *at random*. `per_layer_config`, a key of
config.json since transformers 5, is read by the config but by none of these architectures: with it the model's
constructor raises `AmbiguousGlobalPerLayerAttributeError`. A masked model that was not shrunk loads everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from nxm.errors import UserError
from nxm.models import cost
from nxm.models.roles import Block, find_blocks, find_roles
from nxm.models.structure import Structure, validate_structure
from nxm.sets.saved import load_config, load_matrices, load_model, model_class, stored_tensors

Model = TypeVar("Model", bound=PreTrainedModel)


def shrink(model: Model, structure: Structure, multiple: int = 1) -> Model:
    """Return a smaller copy of a model, which has the heads and rows of a structure alone.

    Its function is that of the model in which all others are zero (`nxm.models.structure.mask_`), and so the model's
    own for `structure_of(model)`.

    Args:
        model: an encoder of BERT's, RoBERTa's, ELECTRA's, DistilBERT's or MPNet's architecture; not changed.
        structure: the heads and rows to retain.
        multiple: each FFN width is rounded up to a multiple of it with rows and columns of zeros, which leave the
            function as it is; 8, 16 or 32 suit the kernels. A width never exceeds the model's own.

    Returns: a model of the same class, device and dtype. Its config has `nxm_structure` (see `read_structure`) and no
        `nxm_sparsity`: a pattern such as 2:4 does not survive the removal of columns, so prune into it afterwards.

    Raises:
        UserError: the architecture has no entry in `nxm.models.roles`, the structure does not fit
            (`validate_structure`), or the multiple is smaller than 1.
    """
    if multiple < 1:
        raise UserError(f"multiple = {multiple}: widths are rounded up to a multiple of 1 or more")
    blocks = find_blocks(model)
    validate_structure(blocks, structure)
    before = read_structure(model.config) or {"heads": [list(range(block.n_heads)) for block in blocks]}
    small = copy.deepcopy(model)
    widths = [
        min(-(-len(rows) // multiple) * multiple, block.n_rows)
        for rows, block in zip(structure.rows, blocks, strict=True)
    ]
    _cut_(small, structure, widths)
    small.config.nxm_structure = {
        "heads": [[before["heads"][i][head] for head in heads] for i, heads in enumerate(structure.heads)],
        "rows": widths,
    }
    if hasattr(small.config, "nxm_sparsity"):
        del small.config.nxm_sparsity
    return small


def read_structure(config: PretrainedConfig) -> dict[str, Any] | None:
    """Return the `nxm_structure` of a shrunk model's config, None for another model.

    It is plain JSON: `heads`, for each layer the indices that its heads had in the dense model, and `rows`, for each
    layer the width of its FFN. `num_attention_heads` and the FFN's width in the config are still the dense model's.

    Raises:
        UserError: it is not of this form.
    """
    written = getattr(config, "nxm_structure", None)
    if written is None:
        return None
    try:
        heads, rows = [list(map(int, layer)) for layer in written["heads"]], list(map(int, written["rows"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"config.json: nxm_structure is {str(written)[:80]}; it needs 'heads', a list of indices by layer, and "
            "'rows', a width by layer"
        ) from None
    return {"heads": heads, "rows": rows}


@dataclass(frozen=True)
class Remaining:
    """The sizes of a model's layers, shrunk or not, compared with those of its dense architecture.

    heads, rows: the number of heads and the width of the FFN in each layer.
    dense_heads, dense_rows: the same of each dense layer.
    share: the weights of the layers' six matrices, zero or not, over those of the dense layers.
    """

    heads: tuple[int, ...]
    rows: tuple[int, ...]
    dense_heads: int
    dense_rows: int
    share: float


def remaining(model: PreTrainedModel) -> Remaining:
    """Return what is left of a model's dense architecture. Raises UserError as `find_blocks` does."""
    with torch.device("meta"):
        dense = type(model)(model.config)
    blocks, whole = find_blocks(model), find_blocks(dense)[0]
    heads, rows = tuple(block.n_heads for block in blocks), tuple(block.n_rows for block in blocks)
    table = cost.weights(dense)
    share = table.of_counts(heads, rows) / table.dense(len(blocks))
    return Remaining(heads, rows, whole.n_heads, whole.n_rows, share)


def load(folder: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load a model from a folder saved by `save_pretrained`, shrunk or not.

    Tensors come from safetensors, in one file or in shards; no pickle is read and no code from the folder is run.

    Args:
        dtype: of the weights, as torch.float16 or "float16"; "auto": that of the files.

    Returns: the model in eval mode, of the class that config.json names.

    Raises:
        UserError: a file is missing or damaged, transformers has no such class, or the tensors do not have the sizes
            of `nxm_structure`; or `dtype` is no type of weights.
    """
    dtype = read_dtype(dtype)
    folder = Path(folder)
    config = load_config(folder)
    if read_structure(config) is None:
        _architecture(config, str(folder))
        return load_model(folder, config, dtype).eval()
    weights = load_matrices(folder, list(stored_tensors(folder)))
    if isinstance(dtype, torch.dtype):
        weights = cast(weights, dtype)
    return from_tensors(config, weights, str(folder))


def read_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """Return a type of weights, which may be given by PyTorch's name of it; or "auto", if it is that.

    Raises:
        UserError: PyTorch has no such type, or it is no type of floating-point numbers.
    """
    if dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise UserError(
            f"dtype = {dtype!r}: no type of floating-point numbers; give 'float32', 'bfloat16', 'float16' or another "
            "by PyTorch's name, or 'auto' for that of the files"
        )
    return found


def cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors by name with those of floating-point numbers in another type."""
    return {name: W.to(dtype) if W.is_floating_point() else W for name, W in weights.items()}


def from_tensors(config: PretrainedConfig, weights: Mapping[str, Tensor], where: str) -> PreTrainedModel:
    """Return the shrunk model of a config, in eval mode, with these tensors by name.

    Args:
        config: has `nxm_structure`.
        where: the folder, for messages.

    Raises:
        UserError: as `load`.
    """
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced at once
        model = build(config, where)
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{where}: the tensors do not have the sizes of config.json: {_first(error)}") from None
    model.tie_weights()
    missing = [name for name in missing if name not in model.all_tied_weights_keys]
    if missing or unexpected:
        problem = f"lacks '{missing[0]}'" if missing else f"has '{unexpected[0]}', which is unknown"
        raise UserError(f"{where}: not the tensors of {type(model).__name__}: the folder {problem}")
    return model.eval()


def build(config: PretrainedConfig, where: str) -> PreTrainedModel:
    """Return a model of a config with random weights, shrunk if the config has `nxm_structure`.

    Args:
        where: the folder, for messages.

    Raises:
        UserError: transformers has no class of the config's name, or the structure does not fit it.
    """
    model = _architecture(config, where)(config)
    written = read_structure(config)
    if written is not None:
        rows = tuple(tuple(range(width)) for width in written["rows"])
        structure = Structure(tuple(map(tuple, written["heads"])), rows)
        validate_structure(find_blocks(model), structure)
        _cut_(model, structure, written["rows"])
    return model


def _architecture(config: PretrainedConfig, where: str) -> type[PreTrainedModel]:
    architecture = model_class(config)
    if architecture is None:
        name = (config.architectures or ["none"])[0]
        raise UserError(f"{where}/config.json: architectures names '{name}', which is no model of transformers")
    return architecture


class _BiasOfHeads:
    """A forward pre-hook of MPNet's attention: it selects the layer's heads in the position bias of all heads."""

    def __init__(self, heads: tuple[int, ...]) -> None:
        self.heads = list(heads)

    def __call__(self, attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, attention_mask, position_bias, *others = inputs
        return hidden_states, attention_mask, position_bias[:, self.heads], *others


@torch.no_grad()
def _cut_(model: PreTrainedModel, structure: Structure, widths: list[int]) -> None:
    """Remove all heads and rows outside a structure, in place, and fill the FFNs with zeros up to their widths."""
    roles = find_roles(model)
    for block, heads, rows, width in zip(find_blocks(model), structure.heads, structure.rows, widths, strict=True):
        if len(heads) < block.n_heads:
            _remove_heads_(block, heads)
            setattr(block.attention, roles.n_heads, len(heads))
            if hasattr(block.attention, "all_head_size"):
                block.attention.all_head_size = len(heads) * block.head_width
            if model.config.model_type == "mpnet":
                block.attention.register_forward_pre_hook(_BiasOfHeads(heads))
        index = torch.tensor(rows, device=block.ffn1.weight.device)
        _resize_(block.ffn1, index, 0, width)
        _resize_(block.ffn2, index, 1, width)


def _remove_heads_(block: Block, heads: tuple[int, ...]) -> None:
    channels = torch.arange(block.n_heads * block.head_width, device=block.query.weight.device)
    index = channels.view(block.n_heads, block.head_width)[list(heads)].reshape(-1)
    for layer in (block.query, block.key, block.value):
        _resize_(layer, index, 0, len(index))
    _resize_(block.output, index, 1, len(index))


def _resize_(layer: nn.Linear, index: Tensor, dim: int, width: int) -> None:
    """Retain the rows (dim 0) or columns (dim 1) at an index, followed by zeros up to a width."""

    def chosen(tensor: Tensor, dim: int) -> nn.Parameter:
        living = tensor.index_select(dim, index)
        padding = living.new_zeros([width - len(index) if i == dim else size for i, size in enumerate(living.shape)])
        return nn.Parameter(torch.cat([living, padding], dim), requires_grad=tensor.requires_grad)

    layer.weight = chosen(layer.weight, dim)
    if dim == 0:
        layer.out_features = width
        if layer.bias is not None:
            layer.bias = chosen(layer.bias, 0)
    else:
        layer.in_features = width


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)]
