"""Methods that train weights into a constraint set, as Hugging Face Trainer callbacks.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])
    trainer.train()
    trainer.save_model("sparse")  # a plain from_pretrained folder that obeys 2:4

While it trains, the network *in eval mode* is the hard-pruned one (the paper's evaluation, section 4.2), so every
metric that the Trainer reports is the sparse network's; training and checkpoints go on with the unpruned weights.
The method's state is saved with each checkpoint and restored by `resume_from_checkpoint`.

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
    from nxm.methods.callback import SparsityCallback
    from nxm.sets.base import ConstraintSet

METHODS = ("admm", "one_shot", "gradual", "sr_ste", "straight_through")

ImportanceName = Literal["none", "adam", "activations"]  # the measures of nxm.methods.importance; none: magnitudes


def settings_class(name: str) -> type[Settings]:
    """Return a method's class of settings. Raises UserError for an unknown method."""
    return _module(name, "settings").SETTINGS


def make_callback(
    name: str,
    constraint: ConstraintSet,
    settings: Settings,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> SparsityCallback:
    """Return a method's Trainer callback, as a study trains with it.

    Args:
        name: an entry of `METHODS`.
        constraint: the set in which the target weights end.
        settings: an object of `settings_class(name)`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.

    Raises:
        UserError: the method is unknown, or needs a set of another kind.
    """
    return _module(name, "callback").make(constraint, settings, include, exclude)


def _module(name: str, part: str) -> Any:
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; known are {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{name}.{part}")
