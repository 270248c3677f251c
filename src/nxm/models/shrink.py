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
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from nxm.errors import UserError
from nxm.models.packed import is_packed, read_packed
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


def load(folder: str | Path) -> PreTrainedModel:
    """Load a model from a folder saved by `save_pretrained`, shrunk or not, or from a packed checkpoint.

    Tensors come from safetensors, in one file or in shards; no pickle is read and no code from the folder is run.

    Returns: the model on the CPU in eval mode, of the class that config.json names and with the tensors' dtype.

    Raises:
        UserError: a file is missing, damaged or (packed) edited, transformers has no such class, or the tensors do not
            have the sizes of config.json.
    """
    folder = Path(folder)
    config = load_config(folder)
    written = read_structure(config)
    packed = is_packed(folder)
    architecture = model_class(config)
    if architecture is None:
        name = (config.architectures or ["none"])[0]
        raise UserError(f"{folder}/config.json: architectures names '{name}', which is no model of transformers")
    if written is None and not packed:
        return load_model(folder, config).eval()
    weights = read_packed(folder) if packed else load_matrices(folder, list(stored_tensors(folder)))
    if written is None:
        return _with_weights(architecture, config, weights, folder).eval()
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced at once
        model = architecture(config)
    structure = Structure(tuple(map(tuple, written["heads"])), tuple(tuple(range(width)) for width in written["rows"]))
    validate_structure(find_blocks(model), structure)
    _cut_(model, structure, written["rows"])
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{folder}: the tensors do not have the sizes of config.json: {_first(error)}") from None
    model.tie_weights()
    missing = [name for name in missing if name not in model.all_tied_weights_keys]
    if missing or unexpected:
        problem = f"lacks '{missing[0]}'" if missing else f"has '{unexpected[0]}', which is unknown"
        raise UserError(f"{folder}: not the tensors of {architecture.__name__}: the folder {problem}")
    return model.eval()


def _with_weights(
    architecture: type[PreTrainedModel], config: PretrainedConfig, weights: dict[str, Tensor], folder: Path
) -> PreTrainedModel:
    """Return a model of a class with tensors by their names in files, which may be others than those in memory.

    Raises:
        UserError: a tensor is missing, unknown or of another size.
    """
    try:
        model, loading = architecture.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype="auto",
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load this model: {_first(error)}") from None
    problems = {
        "lacks '{}'": loading["missing_keys"],
        "has '{}', which is unknown": loading["unexpected_keys"],
        "has '{}' in another size than config.json asks for": [name for name, *_ in loading["mismatched_keys"]],
    }
    for problem, names in problems.items():
        if names:
            raise UserError(
                f"{folder}: not the tensors of {architecture.__name__}: the folder {problem.format(min(names))}"
            )
    return model


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
