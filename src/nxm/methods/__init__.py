"""Methods that compress weights while they train, as Hugging Face Trainer callbacks.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])
    trainer.train()
    trainer.save_model("sparse")  # a plain from_pretrained folder that obeys 2:4

While it trains, the network *in eval mode* is the hard-pruned one (the paper's evaluation, section 4.2), so every
metric that the Trainer reports is the sparse network's; training and checkpoints go on with the unpruned weights.
The method's state is saved with each checkpoint and restored by `resume_from_checkpoint`.

All but one train weights into a constraint set. Structured pruning takes none (`takes_set`): it removes heads and FFN
rows.

A method is a folder here and its entry in `METHODS`. The folder holds `settings.py` (`SETTINGS`, a class of settings),
`algorithm.py` (the mathematics) and `callback.py` (`make`, which returns the callback). Importing this module and a
method's settings loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from nxm.errors import UserError

if TYPE_CHECKING:
    from nxm.config import Settings
    from nxm.methods.callback import MethodCallback
    from nxm.sets.allocation import Allocation
    from nxm.sets.base import ConstraintSet

METHODS = ("admm", "one_shot", "gradual", "sr_ste", "straight_through", "structured")

ImportanceName = Literal["none", "adam", "activations"]  # the measures of nxm.methods.importance; none: magnitudes


def settings_class(name: str) -> type[Settings]:
    """Return a method's class of settings. Raises UserError for an unknown method."""
    return _module(name, "settings").SETTINGS


def takes_set(name: str) -> bool:
    """Return whether a method trains weights into a constraint set. Raises UserError for an unknown method."""
    return bool(getattr(settings_class(name), "takes_set", True))


def make_callback(
    name: str,
    constraint: ConstraintSet | Allocation | None,
    settings: Settings,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> MethodCallback:
    """Return a method's Trainer callback, as a study trains with it.

    Args:
        name: an entry of `METHODS`.
        constraint: the set in which the target weights end, or an allocation with each matrix's own; None for a method
            without one.
        settings: an object of `settings_class(name)`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.

    Raises:
        UserError: the method is unknown, needs a set of another kind, or takes no set and there is one.
    """
    if takes_set(name) != (constraint is not None):
        needs = "takes no set" if constraint else "needs a constraint set such as NM(2, 4)"
        raise UserError(f"method '{name}' {needs}: constraint = {constraint}")
    return _module(name, "callback").make(constraint, settings, include, exclude)


def _module(name: str, part: str) -> Any:
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; known are {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{name}.{part}")
