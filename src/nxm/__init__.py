"""nxm: N:M sparsity for pretrained Transformers by ADMM (NxMTransformer, arXiv 2110.15766).

The public names are imported when they are first used: tables and figures then start without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nxm.distillation.settings import Distillation
    from nxm.distillation.trainer import DISTILLATION, DistillationTrainer
    from nxm.errors import UserError
    from nxm.methods.admm.algorithm import ADMM
    from nxm.methods.admm.callback import BEST_ADMM, AdmmCallback
    from nxm.methods.admm.settings import Admm
    from nxm.methods.gradual.callback import GmpCallback
    from nxm.methods.gradual.settings import Gmp
    from nxm.methods.importance import ActivationNorms, AdamSecondMoment
    from nxm.methods.one_shot.callback import AspCallback
    from nxm.methods.sr_ste.callback import SrSteCallback
    from nxm.models.permute import permute_
    from nxm.models.targets import find_targets
    from nxm.sets.base import ConstraintSet, SparseSet
    from nxm.sets.nm import NM
    from nxm.sets.unstructured import Unstructured

_HOMES = {
    "ADMM": "nxm.methods.admm.algorithm",
    "BEST_ADMM": "nxm.methods.admm.callback",
    "ActivationNorms": "nxm.methods.importance",
    "AdamSecondMoment": "nxm.methods.importance",
    "DISTILLATION": "nxm.distillation.trainer",
    "Distillation": "nxm.distillation.settings",
    "DistillationTrainer": "nxm.distillation.trainer",
    "NM": "nxm.sets.nm",
    "Admm": "nxm.methods.admm.settings",
    "AdmmCallback": "nxm.methods.admm.callback",
    "AspCallback": "nxm.methods.one_shot.callback",
    "ConstraintSet": "nxm.sets.base",
    "Gmp": "nxm.methods.gradual.settings",
    "GmpCallback": "nxm.methods.gradual.callback",
    "SparseSet": "nxm.sets.base",
    "SrSteCallback": "nxm.methods.sr_ste.callback",
    "Unstructured": "nxm.sets.unstructured",
    "UserError": "nxm.errors",
    "find_targets": "nxm.models.targets",
    "permute_": "nxm.models.permute",
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
