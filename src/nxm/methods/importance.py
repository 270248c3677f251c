"""Importance: the cost of a change of each weight, the measure of the projection in place of the Euclidean one.

With costs v >= 0 the projection (eq. 4) minimises sum v (Z - W - U)^2 over S. Where S is a set of zero patterns, the
largest sqrt(v) |W + U| survive. Both measures here are by-products of training:

- `AdamSecondMoment`: v is Adam's running mean of the squared gradient, a diagonal Fisher estimate of the loss's
  curvature (as SAFE+ scores weights, arXiv 2506.06866).
- `ActivationNorms`: v is the mean square of the input that a weight multiplies, so that sqrt(v) |W| is Wanda's score
  (arXiv 2306.11695): the change of the layer's own output.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.models.targets import find_targets, unwrap


class Importance:
    """A measure that watches a training and gives, at each projection, the cost of a squared change of each weight.

    `nxm.methods.callback.SparsityCallback` calls it: `begin`, `measure` at each projection, `end` when the choice is
    final, and the two for checkpoints.
    """

    def begin(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        """Start watching a model, whose targets are those of `nxm.models.targets.find_targets`."""

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        """Return name -> cost v, fp32, of the weight's shape or (1, in_features); None before there is any data.

        A weight of which nothing is known, since its layer took no part, is left out. The same in every process. Called
        once per projection.
        """
        raise NotImplementedError

    def end(self) -> None:
        """Stop watching; may be called more than once."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that must survive a restart, under names that begin with 'I.'."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`, found among other tensors; called after `begin`."""


def make_importance(which: Importance | str) -> Importance | None:
    """Return the importance of a name (`nxm.methods.ImportanceName`; none: None), or the object given.

    Raises:
        UserError: the name is unknown.
    """
    if isinstance(which, Importance):
        return which
    known = {"none": lambda: None, "adam": AdamSecondMoment, "activations": ActivationNorms}
    if which not in known:
        raise UserError(f"importance '{which}' is unknown; known are {', '.join(known)}")
    return known[which]()


class AdamSecondMoment(Importance):
    """Adam's second moment of the gradient, `exp_avg_sq`; its bias correction, one factor for all, is left out."""

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        """Return the second moments. Raises UserError for an optimizer that has none."""
        measured = {}
        for name, W in targets.items():
            state = optimizer.state[W]
            if not state and "betas" in optimizer.param_groups[0]:
                continue  # Adam without a gradient of this weight, or in fp16, whose steps were all skipped so far
            if "exp_avg_sq" not in state:
                raise UserError(f"the optimizer has no second moment (exp_avg_sq) of {name}: use Adam or AdamW")
            if state["exp_avg_sq"].any():  # all zero: a fused Adam in fp16, whose steps were all skipped so far
                measured[name] = state["exp_avg_sq"]
        return measured or None


class ActivationNorms(Importance):
    """The mean square of each input over all tokens seen in training so far.

    Tokens since the last projection alone would be fewer, and more of the mask would move by chance. Padding is left
    out where the model gets an `attention_mask`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (in_features,) fp32, of this process
        self._tokens: Tensor = torch.zeros(())
        self._real: Tensor | None = None  # (batch, length), of the current batch
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        self.end()
        targets = find_targets(model, include, exclude)
        self._sums = {name: torch.zeros(W.shape[1], device=W.device) for name, W in targets.items()}
        self._tokens = torch.zeros(len(targets))
        self._hooks = [unwrap(model).register_forward_pre_hook(self._read_mask, with_kwargs=True)]
        for place, name in enumerate(targets):
            layer = unwrap(model).get_submodule(name.removesuffix(".weight"))
            self._hooks.append(layer.register_forward_pre_hook(self._watch(name, place)))

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        tokens, sums = self._totals()
        seen = [(name, count) for name, count in zip(targets, tokens.tolist(), strict=True) if count > 0]
        return {name: sums[name][None, :] / count for name, count in seen} or None

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._real = [], None

    def state_dict(self) -> dict[str, Tensor]:
        tokens, sums = self._totals()
        return {"I.tokens": tokens} | {f"I.{name}": total for name, total in sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        share = float(PartialState().is_main_process)  # the saved totals of all processes continue in one of them
        self._tokens = state["I.tokens"] * share
        self._sums = {name: state[f"I.{name}"].to(total.device) * share for name, total in self._sums.items()}

    def _totals(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return tokens and sums over all processes, each of which has seen its own part of the batches."""
        if PartialState().num_processes == 1:
            return self._tokens, self._sums
        device = next(iter(self._sums.values())).device
        tokens = reduce(self._tokens.to(device), reduction="sum").cpu()
        return tokens, {name: reduce(total, reduction="sum") for name, total in self._sums.items()}

    def _read_mask(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._real = named.get("attention_mask")

    def _watch(self, name: str, place: int) -> Any:
        @torch.no_grad()
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                tokens = inputs[0].detach()
                if self._real is not None and self._real.shape == tokens.shape[:-1]:
                    tokens = tokens[self._real.bool()]
                tokens = tokens.reshape(-1, tokens.shape[-1]).float()
                self._sums[name] += tokens.square().sum(dim=0)
                self._tokens[place] += len(tokens)

        return add
