"""The structure of an encoder: the attention heads and FFN rows that live in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from nxm.errors import UserError
from nxm.models.roles import Block, find_blocks, find_roles
from nxm.models.targets import unwrap


@dataclass(frozen=True)
class Structure:
    """The living heads and FFN rows of a model, by layer.

    heads: layer -> indices of the living heads, ascending.
    rows: layer -> indices of the living rows of FFN1, which are columns of FFN2, ascending.

    Indices count the heads and rows of the model at hand; in a model that was shrunk they are its own.
    """

    heads: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def n_heads(self) -> tuple[int, ...]:
        """The number of living heads in each layer."""
        return tuple(map(len, self.heads))

    @property
    def n_rows(self) -> tuple[int, ...]:
        """The number of living rows in each layer."""
        return tuple(map(len, self.rows))

    @classmethod
    def from_masks(cls, heads: Sequence[Tensor], rows: Sequence[Tensor]) -> Structure:
        """Return the structure of bool masks: layer -> (heads,), and layer -> (rows,)."""
        return cls(*(tuple(tuple(mask.nonzero()[:, 0].tolist()) for mask in masks) for masks in (heads, rows)))


def full_structure(model: nn.Module) -> Structure:
    """Return the structure in which all heads and rows of a model live. Raises UserError as `find_blocks` does."""
    blocks = find_blocks(model)
    return Structure(
        tuple(tuple(range(block.n_heads)) for block in blocks), tuple(tuple(range(block.n_rows)) for block in blocks)
    )


@torch.no_grad()
def structure_of(model: nn.Module) -> Structure:
    """Return the heads and rows on which the function of a model depends, by the zeros in its weights.

    A head is dead if its columns of O are zero, or its rows and biases of V. A row is dead if its column of FFN2 is
    zero, or its row and bias of FFN1 and the activation maps 0 to 0.

    Raises:
        UserError: the architecture has no entry in `nxm.models.roles`.
    """
    zero = torch.zeros(1)
    keeps_zero = bool(ACT2FN[getattr(unwrap(model).config, find_roles(model).activation)](zero) == 0)
    heads, rows = [], []
    for block in find_blocks(model):
        per_head = (block.n_heads, block.head_width)
        heads.append(
            (_columns(block.output).view(per_head) & _rows(block.value).view(per_head).any(1, keepdim=True)).any(1)
        )
        living = _columns(block.ffn2)
        rows.append(living & _rows(block.ffn1) if keeps_zero else living)
    return Structure.from_masks(heads, rows)


@torch.no_grad()
def mask_(model: nn.Module, structure: Structure) -> None:
    """Set the weights and biases of all heads and rows outside a structure to zero, in place.

    Raises:
        UserError: the structure does not fit the model, see `validate_structure`.
    """
    blocks = find_blocks(model)
    validate_structure(blocks, structure)
    for i, block in enumerate(blocks):
        heads = living(structure.heads[i], block.n_heads, block.query.weight.device)
        channels, rows = (
            heads.repeat_interleave(block.head_width),
            living(structure.rows[i], block.n_rows, heads.device),
        )
        for first, second, mask in ((block.value, block.output, channels), (block.ffn1, block.ffn2, rows)):
            _zero_rows_(first, mask)
            second.weight[:, ~mask] = 0.0
        for layer in (block.query, block.key):
            _zero_rows_(layer, channels)


def living(indices: Sequence[int], n: int, device: torch.device | None = None) -> Tensor:
    """Return the bool mask, (n,), that is True at the indices."""
    mask = torch.zeros(n, dtype=torch.bool, device=device)
    mask[list(indices)] = True
    return mask


def validate_structure(blocks: Sequence[Block], structure: Structure) -> None:
    """Raise UserError if a model cannot have a structure.

    It needs the model's number of layers, in each at least one head and one row, and ascending indices that exist.
    """
    for what, layers, sizes in (
        ("heads", structure.heads, [block.n_heads for block in blocks]),
        ("rows", structure.rows, [block.n_rows for block in blocks]),
    ):
        if len(layers) != len(blocks):
            raise UserError(
                f"the structure names {what} of {len(layers)} layers, but the model has {len(blocks)} layers"
            )
        for i, (indices, n) in enumerate(zip(layers, sizes, strict=True)):
            if not indices:
                raise UserError(f"layer {i} has none of its {n} {what} left: a layer needs at least one")
            if list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < n:
                raise UserError(
                    f"layer {i}: {what} {_short(indices)} are not ascending indices below {n}, the number of {what}"
                )


def _short(indices: Sequence[int]) -> str:
    return str(list(indices)) if len(indices) <= 16 else f"[{', '.join(map(str, indices[:15]))}, ..., {indices[-1]}]"


def _columns(layer: nn.Linear) -> Tensor:
    """Return where a layer's columns have a non-zero: (in_features,) bool."""
    return (layer.weight != 0).any(dim=0)


def _rows(layer: nn.Linear) -> Tensor:
    """Return where a layer's rows or their biases have a non-zero: (out_features,) bool."""
    found = (layer.weight != 0).any(dim=1)
    return found if layer.bias is None else found | (layer.bias != 0)


def _zero_rows_(layer: nn.Linear, mask: Tensor) -> None:
    layer.weight[~mask] = 0.0
    if layer.bias is not None:
        layer.bias[~mask] = 0.0
