"""Inputs of Linear layers rounded to integers of few bits in the forward pass, as kernels for integers round them.

An input x, of any shape, becomes

    s (clamp(round(x / s) + z, 0, 2^b - 1) - z),    s = (high - low) / (2^b - 1),    z = round(-low / s),

with one range [low, high] for the whole tensor, which contains 0 and is fixed in advance (static). The gradient passes
unchanged where x is inside the grid and is 0 elsewhere (straight-through; Jacob et al. 2018, arXiv 1712.05877). Such
inputs and integer weights are what products of 8-bit integers take: for matrices of trained integers exports use these
ranges in place of measured ones.

`config.json` names the ranges of a trained model: `nxm_activations` = {"bits": 8, "ranges": {matrix: [low, high]}}.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig

from nxm.errors import UserError

KEY = "nxm_activations"  # in config.json
_OWNER = "_nxm_inputs"  # attribute of a layer whose inputs are rounded
Ranges = dict[str, tuple[float, float]]  # name of a matrix -> low, high of its input


@dataclass(frozen=True)
class Claimed:
    """The integer activations that a model was trained with: the bits, and the range of the input of each matrix."""

    bits: int
    ranges: Ranges

    def grid(self, name: str) -> tuple[float, int]:
        """Return scale (an fp32 number) and zero point of the input of a matrix."""
        low, high = (torch.tensor(end) for end in self.ranges[name])
        scale, zero_point = grid(low, high, self.bits)
        return float(scale), int(zero_point)


def grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale, fp32, and zero point, int32, of a range, all 0-dimensional."""
    largest = 2**bits - 1
    scale = ((high - low) / largest).clamp_min(torch.finfo(torch.float32).eps)
    return scale, (-low / scale).round().clamp(0, largest).to(torch.int32)


class QuantisedInputs:
    """Rounds the inputs of a model's Linear layers and tracks their ranges, by hooks on these layers.

    Forward passes in train mode with gradients note the least and the largest input, toward which `step` moves the
    ranges; in eval mode they stay. Layers without a range, as before the first forward pass, round nothing. What
    rounded inputs of the model before is removed.

    Args:
        model: the model.
        names: full names of the weights whose inputs are meant (`nxm.models.targets.find_targets`).
        bits: of an activation, 2 to 8.
        averaging: the weight of a step's least and largest input in the moving averages.
        training: the training that this belongs to; None: it belongs to none.

    Attributes:
        active: True while the hooks round and track.
        ends: name -> low and high, fp32 (2,), on the layer's device; NaN before the first input.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], bits: int, averaging: float = 0.0, training: object = None
    ) -> None:
        release_inputs(model)
        self.bits, self.averaging, self.training, self.active = bits, averaging, training, False
        self.ends: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}  # in this step
        self._layers: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []
        for name in names:
            layer = model.get_submodule(name.rpartition(".")[0])
            setattr(layer, _OWNER, self)
            self._layers.append(layer)
            self.ends[name] = torch.full((2,), math.nan, device=next(layer.parameters()).device)
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))

    def remove(self) -> None:
        """Remove the hooks: the model computes with real activations again."""
        for handle in self._handles:
            handle.remove()
        for layer in self._layers:
            if vars(layer).get(_OWNER) is self:
                delattr(layer, _OWNER)
        self._handles, self._layers = [], []

    def ranges(self) -> Ranges:
        """Return the ranges that are known."""
        return {name: (float(ends[0]), float(ends[1])) for name, ends in self.ends.items() if not ends.isnan().any()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `ends`. Raises UserError where they are of other layers."""
        if tensors.keys() != self.ends.keys():
            other = min(tensors.keys() ^ self.ends.keys())
            raise UserError(f"the ranges of activations are of other matrices than the model's targets, first {other}")
        for name, ends in tensors.items():
            self.ends[name].copy_(ends)

    def step(self) -> None:
        """Move the ranges toward what the step's forward passes noted; all processes of a training get their mean."""
        for name, seen in self._seen.items():
            self.ends[name] += self.averaging * (seen - self.ends[name])
        self._seen = {}
        if not torch.distributed.is_initialized() or not self.active:
            return
        whole = torch.stack(list(self.ends.values()))
        known = (~whole.isnan()).float()
        whole = whole.nan_to_num()
        torch.distributed.all_reduce(whole)
        torch.distributed.all_reduce(known)
        for ends, mean in zip(self.ends.values(), whole / known, strict=True):  # 0 / 0: no process has seen one
            ends.copy_(mean)

    def _hook(self, name: str) -> Any:
        def round_input(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self.active:
                return None
            x, *others = arguments
            if layer.training and torch.is_grad_enabled():
                self._track(name, x.detach())
            return (self._rounded(name, x), *others)

        return round_input

    def _track(self, name: str, x: Tensor) -> None:
        seen = torch.stack(torch.aminmax(x)).float()
        seen = torch.stack([seen[0].clamp_max(0.0), seen[1].clamp_min(0.0)])  # zero is on the grid
        if name in self._seen:  # further parts of a batch, and layers that are called more than once
            low, high = torch.minimum(seen, self._seen[name]), torch.maximum(seen, self._seen[name])
            seen = torch.stack([low[0], high[1]])
        self._seen[name] = seen
        ends = self.ends[name]
        ends.copy_(torch.where(ends.isnan(), seen, ends))

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        ends = self.ends[name]
        if bool(ends.isnan().any()):
            return x
        scale, zero_point = grid(ends[0], ends[1], self.bits)
        rounded = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, 2**self.bits - 1)
        return rounded.to(x.dtype)


def release_inputs(model: nn.Module, but: object = None) -> None:
    """Remove what rounds the inputs of a model's layers, unless it belongs to the training `but`."""
    for layer in model.modules():
        owner = vars(layer).get(_OWNER)
        if owner is not None and (but is None or owner.training is not but):
            owner.remove()


def quantise_inputs(model: nn.Module, only: Collection[str] | None = None) -> QuantisedInputs:
    """Make a saved model compute with the integer activations that it was trained with, until `remove`.

    Args:
        only: names of the weights whose inputs are rounded; None: of all that the config names.

    Raises:
        UserError: the model's config names none, or ranges of matrices that the model does not have.
    """
    claimed = read_ranges(model.config)
    if claimed is None:
        raise UserError(
            f"the config of {type(model).__name__} has no {KEY}: it was not trained with integer activations"
        )
    names = dict(model.named_parameters()).keys()
    if unknown := sorted(claimed.ranges.keys() - names):
        raise UserError(f"config.json: {KEY} names '{unknown[0]}', which {type(model).__name__} does not have")
    ranges = {name: ends for name, ends in claimed.ranges.items() if only is None or name in only}
    inputs = QuantisedInputs(model.eval(), ranges, claimed.bits)
    inputs.load({name: torch.tensor(ends) for name, ends in ranges.items()})
    inputs.active = True
    return inputs


def write_ranges(config: PretrainedConfig, bits: int, ranges: Ranges) -> None:
    """Name the ranges of integer activations in a config."""
    config.nxm_activations = {"bits": bits, "ranges": {name: list(ends) for name, ends in ranges.items()}}


def forget_ranges(config: Any) -> None:
    """Remove the ranges from a config, for a training that begins: its weights will be others."""
    if hasattr(config, KEY):
        delattr(config, KEY)


def read_ranges(config: PretrainedConfig) -> Claimed | None:
    """Return the integer activations that a config names; None without any.

    Raises:
        UserError: `nxm_activations` is not as `write_ranges` writes it.
    """
    written: Any = getattr(config, KEY, None)
    if written is None:
        return None
    try:
        bits, ranges = written["bits"], {str(name): (float(a), float(b)) for name, (a, b) in written["ranges"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unreadable(f"it is {str(written)[:80]}") from None
    if not (isinstance(bits, int) and 2 <= bits <= 8):
        raise _unreadable(f"bits is {bits!r}, not 2 to 8")
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0.0 <= high):
            raise _unreadable(f"the range of {name} is [{low}, {high}], which is not finite or does not contain 0")
    return Claimed(bits, ranges)


def _unreadable(problem: str) -> UserError:
    return UserError(
        f'config.json: {KEY} should be {{"bits": 8, "ranges": {{"<matrix>": [low, high], ...}}}} with ranges that '
        f"contain 0, but {problem}"
    )
