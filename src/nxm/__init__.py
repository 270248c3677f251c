"""nxm: N:M sparsity for pretrained Transformers by ADMM (NxMTransformer, arXiv 2110.15766)."""

from nxm.admm import ADMM
from nxm.callbacks import PROXIMAL, AdmmCallback, AspCallback
from nxm.constraints import NM, ConstraintSet, SparseSet, Unstructured
from nxm.errors import UserError
from nxm.settings import Admm
from nxm.targets import find_targets

__all__ = [
    "ADMM",
    "NM",
    "PROXIMAL",
    "Admm",
    "AdmmCallback",
    "AspCallback",
    "ConstraintSet",
    "SparseSet",
    "Unstructured",
    "UserError",
    "find_targets",
]
