"""ADMM as a Trainer callback."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.methods.admm.algorithm import ADMM, kappa_of_rho, rho_at, rho_by_similarity
from nxm.methods.admm.settings import BEST_ADMM, Admm
from nxm.methods.callback import SparsityCallback, steps_in
from nxm.methods.held import Held, hold
from nxm.methods.importance import Importance
from nxm.sets.allocation import Allocation
from nxm.sets.base import ConstraintSet, SparseSet, support
from nxm.sets.nm import NM

AUTO_ITERATIONS = 12  # of `interval: auto`: by then rho = 0.125 has shrunk the pruned weights to a few percent


def make(
    constraint: ConstraintSet | Allocation, settings: Admm, include: tuple[str, ...], exclude: tuple[str, ...]
) -> AdmmCallback:
    """Return the callback as a study trains with it: it records the masks' history for Figures 1 and 4."""
    return AdmmCallback(constraint, settings, MaskHistory(), include, exclude)


def steps_between_projections(settings: Admm, steps: int, steps_per_epoch: int | None) -> int:
    """Return the number of optimizer steps per ADMM iteration in a run of `steps`; see `steps_in`."""
    if settings.interval == "auto":
        return max(1, math.floor(steps * settings.freeze_at) // AUTO_ITERATIONS)
    return steps_in(settings.interval, steps_per_epoch)


class AdmmCallback(SparsityCallback):
    """ADMM fine-tuning into the constraint set (`nxm.methods.admm.algorithm`).

    With `NM` it is NxMTransformer, with `Unstructured` the paper's ADMM_unstructured. With `Integers` it is HoloFormer,
    our design for its abstract (OpenReview eAEcdRkcMHh): ADMM on the zero pattern, then, on the frozen pattern,
    straight-through training on the integer grid (`nxm.methods.held.StraightThrough`). Example:
    `Trainer(..., callbacks=[AdmmCallback(Integers(4, mask=NM(2, 4)))])`.

    Args:
        constraint: a set, or an `Allocation` with each matrix's own; default `NM(2, 4)`.
        settings: see `nxm.methods.admm.settings.Admm`; default `BEST_ADMM`.
        history: records the weights' time outside the mask, for Figure 4; takes five bytes per weight. None: no record.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.
        importance: the measure of the projection, by name or an object (`nxm.methods.importance`); None: the settings'.

    Raises:
        UserError: the settings say when integers join, and no set has any.

    After training, `iterations` holds one dict for each ADMM iteration (see `nxm.methods.admm.algorithm.Iteration`).

    The penalty is not part of the clipped gradient: clipping bounds the task's gradient, as the Trainer does it, and
    the pull toward the constraint set is added afterwards.
    """

    def __init__(
        self,
        constraint: ConstraintSet | Allocation | None = None,
        settings: Admm = BEST_ADMM,
        history: MaskHistory | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        importance: Importance | str | None = None,
    ) -> None:
        if not isinstance(settings, Admm):
            raise UserError(f"settings must be an object of class Admm, got {settings!r}: write Admm(...)")
        super().__init__(
            constraint or NM(), include, exclude, settings.importance if importance is None else importance
        )
        if settings.integers_from is not None and all(isinstance(own, SparseSet) for own in self.distinct_sets):
            raise UserError(
                f"integers_from = {settings.integers_from:g} says when integers join, and {self.constraint} has none: "
                "leave it out"
            )
        self.settings = settings
        self.history = history
        self.iterations: list[dict[str, Any]] = []
        self.frozen_at_step: int | None = None
        self.swaps: list[dict[str, Any]] | None = None
        self.example: dict[str, Any] | None = None
        self._held: Held | None = None  # from the freeze on

    def begin(self, steps: int, steps_per_epoch: int | None) -> None:
        self.iterations, self.frozen_at_step, self.swaps, self._held = [], None, None, None  # of an earlier training
        self.steps_per_epoch = steps_per_epoch
        self.freeze_step = math.floor(steps * self.settings.freeze_at) if self.settings.freeze_at < 1.0 else None
        last = self.freeze_step if self.freeze_step is not None else steps
        self.integer_steps = (
            None if self.settings.integers_from is None else (steps * self.settings.integers_from, last)
        )
        self.admm = ADMM(self.targets, self.sets, self._share_of_integers(0))
        self.interval = steps_between_projections(self.settings, steps, steps_per_epoch)
        self.settings.refuse_short_training(steps, steps_per_epoch)
        self.planned = max(1, last // self.interval)
        self.rho = self._scheduled_rho(0)
        if self.history is not None:
            self.history.begin(self.admm)

    def before_update(self, step: int, optimizer: Any) -> None:
        if self._held is not None:
            self._held.apply_to_gradients_()
        elif self.pulls and self.settings.recipe in ("paper", "gradient"):
            self.admm.penalty_gradient_(self.rho)

    def after_update(self, step: int, skipped: bool) -> None:
        if self._held is not None:
            self._held.apply_to_weights_()
        elif self.pulls and self.settings.recipe == "proximal" and not skipped:
            self.admm.proximal_step_(self.kappa)

    def after_step(self, step: int, optimizer: Any) -> None:
        if self._held is not None:
            return
        if step % self.interval == 0:
            self._iterate(step, optimizer)
        if step == self.freeze_step:
            self._freeze(step)

    def finish(self, model: nn.Module) -> None:
        if self._held is None:
            self._count_swaps({name: self.hard_choice(name, W) for name, W in self.targets.items()})
        super().finish(model)
        if self.history is not None:
            self.example = self.history.example(self.admm, pattern="intermediate.dense")

    def record(self) -> dict[str, Any]:
        names = ("iterations", "frozen_at_step", "swaps", "example")
        return {name: getattr(self, name) for name in names}

    @property
    def choice_is_final(self) -> bool:
        return self._held is not None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = self.admm.state_dict()
        if self.history is not None:
            tensors |= self.history.state_dict()
        if self._held is not None:
            tensors |= self._held.state_dict()
        names = ("iterations", "frozen_at_step", "swaps")
        return tensors, {name: getattr(self, name) for name in names} | {"share": self.admm.share}

    def load_state_dict(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.admm.join_(metadata.get("share", 1.0))  # checkpoints before 0.2 have none
        self.admm.load_state_dict(
            {key: tensor for key, tensor in tensors.items() if key.startswith(("Z.", "U.", "M."))}
        )
        for name in ("iterations", "frozen_at_step", "swaps"):
            setattr(self, name, metadata[name])
        self.weighted_choices = self.weighted_choices_in(tensors, metadata)
        self.rho = self._scheduled_rho(len(self.iterations))
        if self.history is not None:
            self.history.load_state_dict(tensors)
        if self.frozen_at_step is not None:
            self._hold_choices()
            self._held.load_state_dict(tensors)

    def weighted_choices_in(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
        """Return Z's choices once there was a projection, the only time at which the importance is measured."""
        if self.importance is None or not metadata["iterations"]:
            return {}
        return {name: tensors[f"M.{name}"].to(W.device) for name, W in self.targets.items()}

    # The course of the algorithm.

    def _iterate(self, step: int, optimizer: Any) -> None:
        self.admm.join_(self._share_of_integers(step))
        importance = self.measure_importance(optimizer)
        iteration = self.admm.iterate_(self.dual_step, self.settings.relaxation, importance)
        if self.importance is not None:
            self.weighted_choices = dict(self.admm.choices)
        if self.history is not None:
            self.history.record(self.admm)
        self.iterations.append(
            {
                "iteration": len(self.iterations) + 1,
                "step": step,
                "epoch": None if self.steps_per_epoch is None else step / self.steps_per_epoch,
                "rho": self.rho,
                "similarity": iteration.similarity,
                "primal_residual": iteration.primal_residual,
                "dual_residual": iteration.dual_residual,
            }
        )
        before = self.rho
        self.rho = self._scheduled_rho(len(self.iterations))
        if self.rho != before:
            self.admm.rescale_dual_(before / self.rho)

    def _freeze(self, step: int) -> None:
        self._count_swaps(self.admm.choices)
        self.frozen_at_step = step
        self._hold_choices()

    def _hold_choices(self) -> None:
        self._held = hold(self.targets, self.admm.choices, self.sets)

    def _count_swaps(self, choices: dict[str, Tensor]) -> None:
        if self.history is not None:
            self.swaps = self.history.swaps(self.admm, choices)

    def _share_of_integers(self, step: int) -> float:
        """Return how far the grid of a set of integers has joined by a step, from 0 to 1."""
        if self.integer_steps is None or step < self.integer_steps[0]:
            return 0.0
        first, last = self.integer_steps
        return min(1.0, (step - first) / (last - first)) if self.settings.integers_ramped else 1.0

    def _scheduled_rho(self, iteration: int) -> float:
        if self.settings.schedule == "similarity":
            # With an importance the first iteration is left out: it moved from a choice by magnitude.
            first = 0 if self.importance is None else 1
            return rho_by_similarity(self.settings.rho, [done["similarity"] for done in self.iterations[first:]])
        return rho_at(self.settings.rho, self.settings.schedule, iteration, self.planned)

    @property
    def pulls(self) -> bool:
        """True while W is pulled toward Z - U.

        With an importance this begins after the first projection: until then the importance is being measured, and Z is
        chosen by magnitude, which selects other entries (for 1:4 a quarter of them).
        """
        return self.admm.constrains and (self.importance is None or bool(self.iterations))

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


class MaskHistory:
    """The number of ADMM iterations that every weight spent outside the mask: the data of the paper's Figures 1 and 4.

    Holds a copy of the initial weights (fp32) and one byte per weight.
    """

    def __init__(self) -> None:
        self._start: dict[str, Tensor] = {}
        self._outside: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, admm: ADMM) -> None:
        """Copy the pretrained weights, before the first optimizer step."""
        self._start = {name: W.detach().clone() for name, W in admm.W.items()}
        self._outside = {name: torch.zeros_like(W, dtype=torch.uint8) for name, W in admm.W.items()}

    @torch.no_grad()
    def record(self, admm: ADMM) -> None:
        """Count an ADMM iteration, after it."""
        for name, choice in admm.choices.items():
            outside = self._outside[name]
            outside.add_(~support(choice) & (outside < 255))  # saturates: 255 stands for "255 or more"

    @torch.no_grad()
    def swaps(self, admm: ADMM, choices: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return mean |w| before and after, by the number of iterations outside the mask (Figure 4).

        To be called at the end of the ADMM phase, before any hard prune. Before: the pretrained weight. `kept_*`: only
        the weights that the final `choices` retain, with which the sparse network works.
        """
        totals: dict[int, list[float]] = {}
        for name, W in admm.W.items():
            outside, before, after = self._outside[name], self._start[name].abs(), W.detach().abs()
            retained = support(choices[name])
            for times in outside.unique().tolist():
                chosen = outside == times
                surviving = chosen & retained
                row = totals.setdefault(int(times), [0.0] * 6)
                row[0] += int(chosen.sum())
                row[1] += float(before[chosen].sum(dtype=torch.float64))
                row[2] += float(after[chosen].sum(dtype=torch.float64))
                row[3] += int(surviving.sum())
                row[4] += float(before[surviving].sum(dtype=torch.float64))
                row[5] += float(after[surviving].sum(dtype=torch.float64))
        return [
            {
                "iterations_outside": times,
                "count": int(count),
                "mean_abs_before": before / count,
                "mean_abs_after": after / count,
                "kept_count": int(survivors),
                "kept_mean_abs_before": survivors_before / survivors if survivors else None,
                "kept_mean_abs_after": survivors_after / survivors if survivors else None,
            }
            for times, (count, before, after, survivors, survivors_before, survivors_after) in sorted(totals.items())
        ]

    def example(self, admm: ADMM, pattern: str, rows: int = 8, columns: int = 16) -> dict[str, Any]:
        """Return a corner of the first matrix whose name contains `pattern`, before training and now (Figure 1)."""
        name = next((name for name in admm.W if pattern in name), next(iter(admm.W)))
        return {
            "matrix": name,
            "before": _corner(self._start[name], rows, columns),
            "after": _corner(admm.W[name], rows, columns),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copies and counts, for checkpoints."""
        return {f"start.{name}": tensor for name, tensor in self._start.items()} | {
            f"outside.{name}": tensor for name, tensor in self._outside.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`; called after `begin`."""
        for name in self._start:
            self._start[name].copy_(state[f"start.{name}"])
            self._outside[name].copy_(state[f"outside.{name}"])


def _corner(W: Tensor, rows: int, columns: int) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in W[:rows, :columns].tolist()]
