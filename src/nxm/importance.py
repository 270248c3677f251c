"""What a change of each weight costs: the measure in which ADMM may project (eq. 4) instead of the Euclidean one.

With costs v >= 0 the projection minimises sum v (Z - W - U)^2 over S. Where S is a choice of entries, those with the
largest sqrt(v) |W + U| stay. Both measures here are by-products of training:

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
from nxm.targets import find_targets, unwrap


class Importance:
    """Watches a training and says, at each projection, what a squared change of each weight costs."""

    def begin(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        """Training begins on this model, whose targets are those of `nxm.targets.find_targets`."""

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        """The costs v by name, fp32, of the weight's shape or (1, in_features); None where nothing was seen yet.

        The same in every process. Called once an ADMM iteration.
        """
        raise NotImplementedError

    def end(self) -> None:
        """Training is over."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a restart, under names that begin with 'I.'."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, among other tensors; called after `begin`."""


class AdamSecondMoment(Importance):
    """Adam's second moment of the gradient, `exp_avg_sq`; its bias correction is one factor for all and left out.

    Raises UserError, when it measures, for an optimizer that keeps none.
    """

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        measured = {}
        for name, W in targets.items():
            state = optimizer.state[W]
            if "exp_avg_sq" not in state:
                raise UserError(f"the optimizer keeps no second moment (exp_avg_sq) of {name}: use Adam or AdamW")
            measured[name] = state["exp_avg_sq"]
        return measured


class ActivationNorms(Importance):
    """The mean square of each input over all tokens seen in training since the last projection (padding included)."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (in_features,) fp32
        self._tokens: Tensor = torch.zeros(())
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        targets = find_targets(model, include, exclude)
        self._sums = {name: torch.zeros(W.shape[1], device=W.device) for name, W in targets.items()}
        self._tokens = torch.zeros(len(targets))
        for place, name in enumerate(targets):
            layer = unwrap(model).get_submodule(name.removesuffix(".weight"))
            self._hooks.append(layer.register_forward_pre_hook(self._watch(name, place)))

    def measure(self, targets: dict[str, nn.Parameter], optimizer: Any) -> dict[str, Tensor] | None:
        tokens, sums = self._tokens, self._sums
        if PartialState().num_processes > 1:  # each process has seen its own part of the batches
            tokens = reduce(tokens.to(next(iter(sums.values())).device), reduction="sum").cpu()
            sums = {name: reduce(total, reduction="sum") for name, total in sums.items()}
        seen = bool((tokens > 0).all())
        measured = {name: sums[name][None, :] / tokens[i].item() for i, name in enumerate(targets)} if seen else None
        self._sums = {name: torch.zeros_like(total) for name, total in self._sums.items()}
        self._tokens = torch.zeros_like(self._tokens)
        return measured

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Tensor]:
        return {"I.tokens": self._tokens} | {f"I.{name}": total for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._tokens = state["I.tokens"].clone()
        self._sums = {name: state[f"I.{name}"].to(total.device) for name, total in self._sums.items()}

    def _watch(self, name: str, place: int) -> Any:
        @torch.no_grad()
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                tokens = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
                self._sums[name] += tokens.square().sum(dim=0)
                self._tokens[place] += len(tokens)

        return add
