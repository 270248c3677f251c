"""The methods of a study: how each is named, which block of params.yaml it reads, where it starts, what it adds.

A new method is one entry of `METHODS` (and a stage in dvc.yaml).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nxm.errors import UserError
from nxm.methods.admm.callback import AdmmCallback, MaskHistory
from nxm.methods.admm.settings import Admm
from nxm.methods.callback import SparsityCallback
from nxm.methods.gradual.callback import GmpCallback
from nxm.methods.gradual.settings import Gmp
from nxm.methods.one_shot.callback import AspCallback
from nxm.methods.sr_ste.callback import SrSteCallback
from nxm.sets.base import SparseSet
from nxm.sets.nm import NM
from nxm.sets.unstructured import Unstructured
from nxm.study.settings import AdmmExtras, AspPlusTraining, Extras, GmpPlusTraining, SrStePlusTraining, Study, Training


@dataclass(frozen=True)
class Method:
    """How one method trains.

    block: the params.yaml block with its hyper-parameters, by task.
    start: `pretrained` weights, the `student` before it was trained, or the `distilled` student; where the block has a
        `start` of its own, that one counts.
    teacher: whether the dense model teaches (where the block's `distillation` is not null).
    callback: makes what turns the training sparse, or None for a dense method.
    """

    block: str
    start: str = "pretrained"
    teacher: bool = False
    callback: Callable[[Study, Training], SparsityCallback] | None = None


def get_pattern(study: Study, training: Training) -> NM:
    """The run's own N:M pattern, or the study's."""
    own = training.pattern if isinstance(training, Extras) else None
    pattern = own or study.pattern
    return NM(pattern.n_nonzero, pattern.group_size)


def _targets(study: Study) -> dict[str, tuple[str, ...]]:
    return {"include": tuple(study.targets.include), "exclude": tuple(study.targets.exclude)}


def _asp(study: Study, training: Training) -> SparsityCallback:
    importance = training.importance if isinstance(training, AspPlusTraining) else "none"
    return AspCallback(get_pattern(study, training), **_targets(study), importance=importance)


def _admm(constraint: Callable[[Study, Training], SparseSet]) -> Callable[[Study, Training], SparsityCallback]:
    def make(study: Study, training: Training) -> SparsityCallback:
        return AdmmCallback(
            constraint(study, training),
            _admm_settings(training),
            MaskHistory(),
            **_targets(study),
            importance="none",
            relaxation=1.0,
        )

    return make


def _admm_settings(training: Training) -> Admm:
    return Admm(**{name: getattr(training, name) for name in Admm.model_fields})


def _nxm_plus(study: Study, training: Training) -> SparsityCallback:
    assert isinstance(training, AdmmExtras)
    return AdmmCallback(
        get_pattern(study, training),
        _admm_settings(training),
        MaskHistory(),
        **_targets(study),
        importance=training.importance,
        relaxation=training.relaxation,
    )


def _gmp(study: Study, training: Training) -> SparsityCallback:
    assert isinstance(training, GmpPlusTraining)
    settings = Gmp(interval=training.interval, prune_until=training.prune_until)
    return GmpCallback(get_pattern(study, training), settings, **_targets(study), importance=training.importance)


def _sr_ste(study: Study, training: Training) -> SparsityCallback:
    assert isinstance(training, SrStePlusTraining)
    return SrSteCallback(get_pattern(study, training), training.decay, **_targets(study))


METHODS: dict[str, Method] = {
    "dense": Method("dense"),
    "asp": Method("asp", callback=_asp),
    "admm_unstructured": Method("admm_unstructured", callback=_admm(lambda study, _: Unstructured(study.density))),
    "nxm": Method("nxm", callback=_admm(get_pattern)),
    "nxm_paper": Method("nxm", callback=_admm(get_pattern)),
    "distil": Method("distil", start="student", teacher=True),
    "distil_nxm": Method("distil_nxm", start="distilled", callback=_admm(get_pattern)),
    "distil_nxm_kd": Method("distil_nxm", start="distilled", teacher=True, callback=_admm(get_pattern)),
    "nxm_plus": Method("nxm_plus", teacher=True, callback=_nxm_plus),
    "asp_plus": Method("asp_plus", teacher=True, callback=_asp),
    "gmp_plus": Method("gmp_plus", teacher=True, callback=_gmp),
    "sr_ste_plus": Method("sr_ste_plus", teacher=True, callback=_sr_ste),
    "dense_plus": Method("dense_plus", teacher=True),
    "distil_nxm_plus": Method("distil_nxm_plus", start="distilled", teacher=True, callback=_nxm_plus),
}


def get_method(name: str) -> Method:
    """The entry of a method. Raises UserError that lists the known ones."""
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]
