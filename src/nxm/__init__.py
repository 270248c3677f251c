"""nxm: N:M sparsity for pretrained Transformers by ADMM (NxMTransformer, arXiv 2110.15766).

The public names are imported on first use, so that commands which need no torch start without loading it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nxm.activations.callback import ActivationsCallback
    from nxm.activations.settings import Activations
    from nxm.compress.run import compress_model
    from nxm.compress.settings import Compression
    from nxm.distillation.batches import loss_on
    from nxm.distillation.settings import DISTILLATION, Distillation
    from nxm.distillation.trainer import DistillationTrainer
    from nxm.errors import UserError
    from nxm.methods.admm.algorithm import ADMM
    from nxm.methods.admm.callback import AdmmCallback, MaskHistory
    from nxm.methods.admm.settings import BEST_ADMM, Admm
    from nxm.methods.allocation import allocate
    from nxm.methods.callback import SparsityCallback
    from nxm.methods.gradual.callback import GmpCallback
    from nxm.methods.gradual.settings import Gmp
    from nxm.methods.importance import ActivationNorms, AdamSecondMoment
    from nxm.methods.one_shot.callback import AspCallback
    from nxm.methods.sr_ste.callback import SrSteCallback
    from nxm.methods.straight_through.callback import StraightThroughCallback
    from nxm.methods.straight_through.settings import Qat
    from nxm.methods.structured.callback import StructuredCallback
    from nxm.methods.structured.settings import Structured
    from nxm.models.activations import quantise_inputs
    from nxm.models.load import load
    from nxm.models.permute import permute_
    from nxm.models.shrink import shrink
    from nxm.models.structure import Structure, structure_of
    from nxm.models.targets import find_targets
    from nxm.sets import parse_set
    from nxm.sets.allocation import Allocation
    from nxm.sets.base import ConstraintSet, Projection, SparseSet
    from nxm.sets.integers import Integers
    from nxm.sets.nm import NM
    from nxm.sets.unstructured import Unstructured

_HOMES = {
    "ADMM": "nxm.methods.admm.algorithm",
    "BEST_ADMM": "nxm.methods.admm.settings",
    "ActivationNorms": "nxm.methods.importance",
    "Activations": "nxm.activations.settings",
    "ActivationsCallback": "nxm.activations.callback",
    "AdamSecondMoment": "nxm.methods.importance",
    "DISTILLATION": "nxm.distillation.settings",
    "Distillation": "nxm.distillation.settings",
    "DistillationTrainer": "nxm.distillation.trainer",
    "NM": "nxm.sets.nm",
    "Admm": "nxm.methods.admm.settings",
    "AdmmCallback": "nxm.methods.admm.callback",
    "Allocation": "nxm.sets.allocation",
    "AspCallback": "nxm.methods.one_shot.callback",
    "Compression": "nxm.compress.settings",
    "ConstraintSet": "nxm.sets.base",
    "Gmp": "nxm.methods.gradual.settings",
    "GmpCallback": "nxm.methods.gradual.callback",
    "Integers": "nxm.sets.integers",
    "MaskHistory": "nxm.methods.admm.callback",
    "Projection": "nxm.sets.base",
    "SparseSet": "nxm.sets.base",
    "Qat": "nxm.methods.straight_through.settings",
    "SparsityCallback": "nxm.methods.callback",
    "SrSteCallback": "nxm.methods.sr_ste.callback",
    "StraightThroughCallback": "nxm.methods.straight_through.callback",
    "Structure": "nxm.models.structure",
    "Structured": "nxm.methods.structured.settings",
    "StructuredCallback": "nxm.methods.structured.callback",
    "Unstructured": "nxm.sets.unstructured",
    "UserError": "nxm.errors",
    "allocate": "nxm.methods.allocation",
    "compress_model": "nxm.compress.run",
    "find_targets": "nxm.models.targets",
    "load": "nxm.models.load",
    "loss_on": "nxm.distillation.batches",
    "parse_set": "nxm.sets",
    "permute_": "nxm.models.permute",
    "quantise_inputs": "nxm.models.activations",
    "shrink": "nxm.models.shrink",
    "structure_of": "nxm.models.structure",
}

__all__ = [
    "ADMM",
    "BEST_ADMM",
    "DISTILLATION",
    "NM",
    "ActivationNorms",
    "Activations",
    "ActivationsCallback",
    "AdamSecondMoment",
    "Admm",
    "AdmmCallback",
    "Allocation",
    "AspCallback",
    "Compression",
    "ConstraintSet",
    "Distillation",
    "DistillationTrainer",
    "Gmp",
    "GmpCallback",
    "Integers",
    "MaskHistory",
    "Projection",
    "Qat",
    "SparseSet",
    "SparsityCallback",
    "SrSteCallback",
    "StraightThroughCallback",
    "Structure",
    "Structured",
    "StructuredCallback",
    "Unstructured",
    "UserError",
    "allocate",
    "compress_model",
    "find_targets",
    "load",
    "loss_on",
    "parse_set",
    "permute_",
    "quantise_inputs",
    "shrink",
    "structure_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nxm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
