"""The best recipe so far, in one place: the library's defaults, and `recipe: best` in a profile.

Plain values, from which both settings and torch code start. That of `importance` and `dropout` stands on the ablation
(profiles/ablation.yaml), whose other variants are still to confirm or change the rest.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

BEST: dict[str, Any] = {
    # ADMM, as `nxm.methods.admm.settings.Admm` names its values
    "recipe": "proximal",
    "rho": 0.125,
    "interval": "auto",
    "schedule": "constant",
    "freeze_at": 0.5,
    "dual_step": "matched",
    # what NxM+ has beyond it, as `nxm.study.settings.NxmPlusTraining` names it
    "importance": "activations",
    "relaxation": 1.0,
    "start": "dense",
    "distillation": {"task": 0.5, "logits": 0.5, "hidden": 1.0, "temperature": 2.0},
    "dropout": 0.0,
    "noise": 0.0,
    "permute": False,
    "pattern": None,
}


def spell_out(block: Any, known: set[str]) -> Any:
    """A profile's block with what `recipe: best` stands for in its place; any other block as it is.

    Values that the block states itself stay. What is no block is left to whoever checks it.

    Args:
        known: the keys that such a block may have: a student, which has one start, has no `start`.
    """
    if not isinstance(block, dict) or block.get("recipe") != "best":
        return block
    own = {key: value for key, value in block.items() if key != "recipe"}
    return {key: value for key, value in deepcopy(BEST).items() if key in known} | own
