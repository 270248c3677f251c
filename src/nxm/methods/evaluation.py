"""The projected network in eval mode, the training weights in train mode: what a look at the model in training sees.

While a method trains, its weights lie outside the constraint set. What is evaluated must be the projected network (the
paper's evaluation, section 4.2), what trains and is saved must not, whoever runs the model: the Trainer, a user's
callback, `generate`, a loss that calls a part of the model. So the weights follow the *mode* of their layer: `eval()`
puts the projected weights in, `train()` puts the training weights back. A state dict has the training weights in both
modes. Forward passes have no hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from nxm.errors import UserError

_CHILD = "nxm_projected_in_eval_"  # and the parameter's name in its layer

Project = Callable[[str, Tensor], Tensor | None]


class ProjectedInEval:
    """Makes layers run on projected weights in eval mode, until `detach`.

    An optimizer's step on the targets outside `update` means that an exception ended this training and the model is in
    other hands: everything is detached before that step.

    Memory: in eval mode two copies of each parameter that differs there.

    Args:
        model: the unwrapped model. A deep copy of it is a plain model with the values that the model shows.
        targets: full name -> parameter.
        project: (name, W) -> what W is in eval mode, a new tensor; None for W itself.
        training_value: name -> what to save in W's place; None: W as it is in train mode.
        training: an object that the callbacks of one training share, such as the `TrainerState`.
        on_taken: called after a detachment by another training, with its optimizer's class or its own, to undo what
            else this one left.

    Raises:
        UserError: another callback of the same training has one of the targets.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Parameter],
        project: Project,
        training_value: Callable[[str], Tensor | None],
        training: object,
        on_taken: Callable[[str], None],
    ) -> None:
        self._training = training
        self._on_taken = on_taken
        self._targets = {id(W) for W in targets.values()}
        self._stepped: set[int] | None = None  # the optimizers that stepped in the current update; None: no update
        self._handles: list[Any] = []
        self._places = {name: _place(model, name) for name in targets}
        self._followers: list[_FollowsMode] = []
        for name, (layer, attribute) in self._places.items():  # before anything is attached
            left = getattr(layer, _CHILD + attribute, None)
            if not isinstance(left, _FollowsMode):  # nothing, or what a copy of a model in training has
                continue
            if left.owner._training is training:
                raise UserError(f"{name} is a target of two callbacks: give them different `include` and `exclude`")
            left.owner.take(type(training).__name__)  # an exception ended that training
        self._handles.append(_watch_optimizers(self))
        for name, (layer, attribute) in self._places.items():
            follower = _FollowsMode(self, name, targets[name], project, training_value)
            layer.add_module(_CHILD + attribute, follower)
            for owner, own_name in _owners(model, targets[name]):
                hook = partial(_keep_training_value, follower, own_name)
                self._handles.append(owner.register_state_dict_post_hook(hook))
            self._followers.append(follower)
            follower.train(layer.training)

    def restore(self) -> None:
        """Put the training weights in, whatever the mode."""
        for follower in self._followers:
            follower.restore()

    @contextmanager
    def training_weights(self) -> Iterator[None]:
        """Hold the training weights in the model for the method's own work, whatever the mode."""
        self.restore()
        yield
        for follower in self._followers:
            if not follower.training:
                follower.project()

    def begin_update(self) -> None:
        """Expect the optimizer's step: from here to `end_update` the model holds the training weights."""
        self.restore()
        self._stepped = set()

    def end_update(self) -> None:
        """Expect no step any more."""
        self._stepped = None

    def detach(self) -> None:
        """Restore the training weights and leave the model as it was found; may be called more than once."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        for layer, attribute in self._places.values() if self._followers else ():
            delattr(layer, _CHILD + attribute)
        self._handles, self._followers = [], []

    def before_step(self, optimizer: Optimizer) -> None:
        """Called before a step of any optimizer in this process."""
        if not any(id(W) in self._targets for group in optimizer.param_groups for W in group["params"]):
            return
        if self._stepped is not None and id(optimizer) not in self._stepped:  # ours may be made of several
            self._stepped.add(id(optimizer))
            self.restore()
        else:
            self.take(type(optimizer).__name__)

    def take(self, by: str) -> None:
        """Detach, and undo what else this training left: the model is in other hands."""
        self.detach()
        self._on_taken(by)


def _watch_optimizers(owner: ProjectedInEval) -> RemovableHandle:
    reference = weakref.ref(owner)  # an abandoned model may be freed

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        owner = reference()
        if owner is not None:
            owner.before_step(optimizer)

    handle = register_optimizer_step_pre_hook(before_step)
    weakref.finalize(owner, handle.remove)
    return handle


class _FollowsMode(nn.Module):
    """A child of a layer, without parameters: `train` and `eval` reach it as they reach every module."""

    def __init__(
        self,
        owner: ProjectedInEval,
        name: str,
        parameter: nn.Parameter,
        project: Project,
        training_value: Callable[[str], Tensor | None],
    ) -> None:
        super().__init__()
        self.owner = owner
        self._parameter = (parameter,)  # in a tuple, so that it is not registered a second time
        self._name = name
        self._project = project
        self._training_value = training_value
        self._trained: Tensor | None = None  # while the layer runs on projected values
        self._projected: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Identity()  # the copy of a model takes no part in the training

    def value_to_save(self) -> Tensor | None:
        """Return what a state dict has in the parameter's place; None: the parameter itself."""
        value = self._training_value(self._name)
        return self._trained if value is None else value

    def train(self, mode: bool = True) -> _FollowsMode:
        super().train(mode)
        if mode:
            self.restore()
        else:
            self.project()
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def project(self) -> None:
        (W,) = self._parameter
        if self._trained is None:
            projected = self._project(self._name, W)
            if projected is not None:
                self._trained, self._projected = W.detach().clone(), projected
                W.copy_(projected)
                torch.clear_autocast_cache()  # which may hold the former values in half precision

    @torch.inference_mode(False)
    @torch.no_grad()
    def restore(self) -> None:
        (W,) = self._parameter
        if self._trained is not None:
            if torch.equal(W, self._projected):  # else somebody loaded other values in eval mode: these count
                W.copy_(self._trained)
                torch.clear_autocast_cache()
            self._trained = self._projected = None


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    layer, _, attribute = name.rpartition(".")
    return model.get_submodule(layer), attribute


def _owners(model: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    """Yield each module that has the parameter, with its name there: several may share one."""
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False, remove_duplicate=False):
            if own is parameter:
                yield module, name


def _keep_training_value(
    follower: nn.Module,
    name: str,
    layer: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    metadata: dict[str, Any],
) -> None:
    # in a copy of the model the follower is an Identity
    value = follower.value_to_save() if isinstance(follower, _FollowsMode) else None
    if value is not None:
        state_dict[prefix + name] = value
