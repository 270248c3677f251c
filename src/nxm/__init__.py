"""nxm: N:M sparsity for pretrained Transformers by ADMM (NxMTransformer, arXiv 2110.15766).

The public names are imported when they are first used: tables and figures then start without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nxm.admm import ADMM
    from nxm.callbacks import BEST_ADMM, AdmmCallback, AspCallback, GmpCallback, SrSteCallback
    from nxm.constraints import NM, ConstraintSet, SparseSet, Unstructured
    from nxm.distil import DISTILLATION, DistillationTrainer
    from nxm.errors import UserError
    from nxm.importance import ActivationNorms, AdamSecondMoment
    from nxm.permute import permute_
    from nxm.settings import Admm, Distillation, Gmp
    from nxm.targets import find_targets

_HOMES = {
    "ADMM": "nxm.admm",
    "BEST_ADMM": "nxm.callbacks",
    "ActivationNorms": "nxm.importance",
    "AdamSecondMoment": "nxm.importance",
    "DISTILLATION": "nxm.distil",
    "Distillation": "nxm.settings",
    "DistillationTrainer": "nxm.distil",
    "NM": "nxm.constraints",
    "Admm": "nxm.settings",
    "AdmmCallback": "nxm.callbacks",
    "AspCallback": "nxm.callbacks",
    "ConstraintSet": "nxm.constraints",
    "Gmp": "nxm.settings",
    "GmpCallback": "nxm.callbacks",
    "SparseSet": "nxm.constraints",
    "SrSteCallback": "nxm.callbacks",
    "Unstructured": "nxm.constraints",
    "UserError": "nxm.errors",
    "find_targets": "nxm.targets",
    "permute_": "nxm.permute",
}

__all__ = [
    "ADMM",
    "BEST_ADMM",
    "DISTILLATION",
    "NM",
    "ActivationNorms",
    "AdamSecondMoment",
    "Admm",
    "AdmmCallback",
    "AspCallback",
    "ConstraintSet",
    "Distillation",
    "DistillationTrainer",
    "Gmp",
    "GmpCallback",
    "SparseSet",
    "SrSteCallback",
    "Unstructured",
    "UserError",
    "find_targets",
    "permute_",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nxm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
