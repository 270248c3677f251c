"""The methods of a study: how each is named, which block of params.yaml it reads, where it starts, what it adds.

A new method is one entry of `METHODS` (and a stage in dvc.yaml).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nxm.callbacks import AdmmCallback, AspCallback, SparsityCallback
from nxm.constraints import NM, SparseSet, Unstructured
from nxm.diagnostics import MaskHistory
from nxm.errors import UserError
from nxm.settings import Admm, Study, Training


@dataclass(frozen=True)
class Method:
    """How one method trains.

    block: the params.yaml block with its hyper-parameters, by task.
    start: `pretrained` weights, the `student` before it was trained, or the `distilled` student.
    teacher: whether the dense model teaches.
    callback: makes what turns the training sparse, or None for a dense method.
    """

    block: str
    start: str = "pretrained"
    teacher: bool = False
    callback: Callable[[Study, Training], SparsityCallback] | None = None


def nm(study: Study) -> NM:
    """The study's N:M pattern."""
    return NM(study.pattern.n_nonzero, study.pattern.group_size)


def _asp(study: Study, training: Training) -> SparsityCallback:
    return AspCallback(nm(study), tuple(study.targets.include), tuple(study.targets.exclude))


def _admm(constraint: Callable[[Study], SparseSet]) -> Callable[[Study, Training], SparsityCallback]:
    def make(study: Study, training: Training) -> SparsityCallback:
        settings = Admm(**{name: getattr(training, name) for name in Admm.model_fields})
        include, exclude = tuple(study.targets.include), tuple(study.targets.exclude)
        return AdmmCallback(constraint(study), settings, MaskHistory(), include, exclude)

    return make


METHODS: dict[str, Method] = {
    "dense": Method("dense"),
    "asp": Method("asp", callback=_asp),
    "admm_unstructured": Method("admm_unstructured", callback=_admm(lambda study: Unstructured(study.density))),
    "nxm": Method("nxm", callback=_admm(nm)),
    "nxm_paper": Method("nxm", callback=_admm(nm)),
    "distil": Method("distil", start="student", teacher=True),
    "distil_nxm": Method("distil_nxm", start="distilled", callback=_admm(nm)),
    "distil_nxm_kd": Method("distil_nxm", start="distilled", teacher=True, callback=_admm(nm)),
}


def get_method(name: str) -> Method:
    """The entry of a method. Raises UserError that lists the known ones."""
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]
