"""ADMM as a Trainer callback."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm.errors import UserError
from nxm.methods.admm.algorithm import ADMM, kappa_of_rho, rho_at, rho_by_similarity
from nxm.methods.admm.defaults import BEST
from nxm.methods.admm.history import MaskHistory
from nxm.methods.admm.settings import Admm
from nxm.methods.callback import HardPrunedEvaluation
from nxm.methods.importance import Importance, make_importance
from nxm.methods.masked import MaskedWeights
from nxm.sets.base import SparseSet
from nxm.sets.nm import NM

# The default: W covers 12 % of the distance to Z - U between two of twelve projections, U takes up the same share, and
# the second half of the steps recovers on a fixed mask.
BEST_ADMM = Admm.model_validate({key: BEST[key] for key in Admm.model_fields})
AUTO_ITERATIONS = 12  # of `interval: auto`: by then rho = 0.125 has shrunk what is pruned to a few percent


def steps_between_projections(settings: Admm, steps: int, steps_per_epoch: int) -> int:
    """How many optimizer steps an ADMM iteration has in a run of `steps`."""
    if settings.interval == "auto":
        return max(1, math.floor(steps * settings.freeze_at) // AUTO_ITERATIONS)
    return steps_per_epoch if settings.interval == "epoch" else int(settings.interval)


class AdmmCallback(HardPrunedEvaluation):
    """ADMM fine-tuning into the constraint set (`nxm.methods.admm.algorithm`): NxMTransformer, or with `Unstructured`
    its twin.

    Args:
        constraint: default `NM(2, 4)`.
        settings: recipe, rho, interval, schedule, dual_step, freeze_at (`nxm.methods.admm.settings.Admm`); default
        `BEST_ADMM`.
        importance: weighs the projection by what a change of each weight costs, by name or of one's own
            (`nxm.methods.importance`); `none`: all alike.
        relaxation: over-relaxation, see `nxm.methods.admm.algorithm.ADMM.iterate_`; 1.0: none.
        history: counts what weights did outside the mask, for Figure 4; costs five bytes a weight.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.

    After training, `iterations` holds one dict for each ADMM iteration (see `nxm.methods.admm.algorithm.Iteration`).

    The penalty is not part of the clipped gradient: clipping bounds the task's gradient, as the Trainer does it, and
    the pull toward the constraint set comes on top.
    """

    def __init__(
        self,
        constraint: SparseSet | None = None,
        settings: Admm = BEST_ADMM,
        history: MaskHistory | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str = BEST["importance"],
        relaxation: float = BEST["relaxation"],
    ) -> None:
        super().__init__(constraint or NM(), include, exclude)
        self.settings = settings
        self.importance = make_importance(importance)
        self.relaxation = relaxation
        self.history = history
        self.iterations: list[dict[str, Any]] = []
        self.frozen_at_step: int | None = None
        self.swaps: list[dict[str, Any]] | None = None
        self.example: dict[str, Any] | None = None
        self._masked: MaskedWeights | None = None  # from the freeze on

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        self.iterations, self.frozen_at_step, self.swaps, self._masked = [], None, None, None  # of a training before
        self.weighed = {}
        self.admm = ADMM(self.targets, self.constraint)
        self.steps_per_epoch = steps_per_epoch
        self.freeze_step = math.floor(steps * self.settings.freeze_at) if self.settings.freeze_at < 1.0 else None
        last = self.freeze_step if self.freeze_step is not None else steps
        self.interval = steps_between_projections(self.settings, steps, steps_per_epoch)
        self.planned = max(1, last // self.interval)
        if last < self.interval:
            raise UserError(
                f"the ADMM phase has {last} optimizer steps, fewer than one iteration's {self.interval}: "
                "train longer, freeze later or set a smaller interval"
            )
        self._set_rho(0)
        if self.history is not None:
            self.history.begin(self.admm)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.importance is not None:
            self.importance.begin(model, self.include, self.exclude)
        super().on_train_begin(args, state, control, model=model, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._masked is not None:
            self._masked.apply_to_gradients_()
        elif self.pulls and self.settings.recipe in ("paper", "gradient"):
            self.admm.penalty_gradient_(self.rho)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if getattr(optimizer, "step_was_skipped", False):  # fp16: the gradients overflowed, nothing moved
            return
        if self._masked is not None:
            self._masked.apply_to_weights_()
        elif self.pulls and self.settings.recipe == "proximal":
            self.admm.proximal_step_(self.kappa)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._masked is not None:
            return
        if state.global_step % self.interval == 0:
            self._iterate(state.global_step, optimizer)
        if state.global_step == self.freeze_step:
            self._freeze(state.global_step)

    def finish(self) -> None:
        if self._masked is None:
            self._describe({name: self.hard_mask(name, W) for name, W in self.targets.items()})
        super().finish()
        if self.importance is not None:
            self.importance.end()
        if self.history is not None:
            self.example = self.history.example(self.admm, pattern="intermediate.dense")

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = self.admm.state_dict()
        if self.history is not None:
            tensors |= self.history.state_dict()
        if self.importance is not None:
            tensors |= self.importance.state_dict()
        names = ("iterations", "frozen_at_step", "swaps")
        return tensors, {name: getattr(self, name) for name in names}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.admm.load_state_dict(
            {key: tensor for key, tensor in tensors.items() if key.startswith(("Z.", "U.", "M."))}
        )
        for name, value in values.items():
            setattr(self, name, value)
        self.weighed = self.weighed_in(tensors, values)
        self.rho = self._scheduled_rho(len(self.iterations))
        if self.history is not None:
            self.history.load_state_dict(tensors)
        if self.importance is not None:
            self.importance.load_state_dict(tensors)
        if self.frozen_at_step is not None:
            self._fix_masks()

    # The algorithm's course.

    def _iterate(self, step: int, optimizer: Any) -> None:
        importance = self.importance.measure(self.targets, optimizer) if self.importance is not None else None
        record = self.admm.iterate_(self.dual_step, self.relaxation, importance)
        if self.importance is not None:
            self.weighed = dict(self.admm.masks)
        if self.history is not None:
            self.history.record(self.admm)
        self.iterations.append(
            {
                "iteration": len(self.iterations) + 1,
                "step": step,
                "epoch": step / self.steps_per_epoch,
                "rho": self.rho,
                "similarity": record.similarity,
                "primal_residual": record.primal_residual,
                "dual_residual": record.dual_residual,
            }
        )
        before = self.rho
        self._set_rho(len(self.iterations))
        if self.rho != before:
            self.admm.rescale_dual_(before / self.rho)

    def _freeze(self, step: int) -> None:
        self._describe(self.admm.masks)
        self.frozen_at_step = step
        self._fix_masks()

    def _fix_masks(self) -> None:
        self._masked = MaskedWeights(self.targets, self.admm.masks)
        if self.importance is not None:
            self.importance.end()  # nothing is projected any more

    def _describe(self, masks: dict[str, Tensor]) -> None:
        if self.history is not None:
            self.swaps = self.history.swaps(self.admm, masks)

    def _scheduled_rho(self, iteration: int) -> float:
        if self.settings.schedule == "similarity":
            first = 0 if self.importance is None else 1  # what that one moved from was chosen by magnitude
            return rho_by_similarity(self.settings.rho, [done["similarity"] for done in self.iterations[first:]])
        return rho_at(self.settings.rho, self.settings.schedule, iteration, self.planned)

    def _set_rho(self, iteration: int) -> None:
        self.rho = self._scheduled_rho(iteration)

    @property
    def pulls(self) -> bool:
        """Whether W is pulled toward Z - U. With an importance not before the first projection: until then it is
        being measured, and Z, chosen by magnitude, is another set of entries (of 1:4's a quarter are others)."""
        return self.importance is None or bool(self.iterations)

    @property
    def dual_step(self) -> float:
        """The share of W - Z that U takes up: 1, or, `matched`, the share of the distance that W covers meanwhile."""
        if not self.pulls:
            return 0.0
        return kappa_of_rho(self.rho, 1) if self.settings.dual_step == "matched" else 1.0

    @property
    def kappa(self) -> float:
        """The proximal step's share, such that one interval covers 1 - exp(-rho) of the distance to Z - U."""
        return kappa_of_rho(self.rho, self.interval)

    @property
    def inside(self) -> bool:
        return self._masked is not None

    def weighed_in(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Tensor]:
        """Z's masks, once there was a projection: what was weighed is known there alone."""
        if self.importance is None or not values["iterations"]:
            return {}
        return {name: tensors[f"M.{name}"].to(W.device) for name, W in self.targets.items()}
