"""Settings of the ADMM algorithm."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from nxm.config import Positive, PositiveInt, Settings, Share
from nxm.errors import UserError
from nxm.methods import ImportanceName


class Admm(Settings):
    """The values of the ADMM algorithm, see `nxm.methods.admm.algorithm`.

    `recipe: paper` puts the penalty of eq. (3) into Adam's gradient and never freezes the mask; `recipe: gradient`
    does the first alone; `recipe: proximal` takes a decoupled proximal step after the optimizer's.
    """

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"recipe": "proximal", "rho": 0.35, "interval": 3, "freeze_at": 0.6, "dual_step": "matched"},
        {"recipe": "proximal", "rho": 0.35, "interval": 3, "freeze_at": 0.6, "importance": "activations"},
        {"recipe": "proximal", "rho": 0.2, "interval": 3, "schedule": "similarity", "importance": "adam"},
        {"recipe": "gradient", "rho": 0.05, "interval": 3, "freeze_at": 0.6, "relaxation": 1.5},
        {"recipe": "paper", "rho": 0.05},
    )

    recipe: Literal["paper", "gradient", "proximal"]
    rho: Positive  # paper, gradient: the penalty's weight in the loss; proximal: pull toward Z - U over an iteration
    # Optimizer steps between two projections; auto: as many as make twelve iterations before the mask is frozen
    interval: Literal["auto", "epoch"] | PositiveInt = "epoch"
    # Of rho over the ADMM iterations, with U rescaled; similarity: it grows by the movement of the mask (ALPS)
    schedule: Literal["constant", "linear", "cosine", "similarity"] = "constant"
    freeze_at: Share = 1.0  # share of the run after which the mask stays; 1.0: never
    dual_step: Literal["full", "matched"] = (
        "full"  # share of W - Z that U takes up per iteration: all, or W's own share
    )
    importance: ImportanceName = "none"  # the measure of the projection (`nxm.methods.importance`)
    relaxation: Annotated[float, Field(strict=True, ge=1.0, lt=2.0)] = 1.0  # over-relaxation; 1.0: none

    def refuse_short_training(self, steps: int, steps_per_epoch: int | None) -> None:
        """Raise UserError if a training of so many optimizer steps has no projection before the mask is frozen."""
        phase = math.floor(steps * self.freeze_at)
        interval = {"auto": 1, "epoch": steps_per_epoch}.get(self.interval, self.interval)
        if phase < interval:
            raise UserError(
                f"interval = {self.interval} is {interval} optimizer steps, and the ADMM phase has {phase} (freeze_at "
                f"= {self.freeze_at:g} of {steps}): set a smaller interval, freeze later or train longer"
            )

    # For a set of integers: the share of the run after which ADMM projects on their grid, and not on the zero pattern
    # alone. null: never; the grid comes with the frozen phase, which is straight-through, or else after training.
    # (Both are left out of values.json at their defaults, so that trainings on other sets do not become stale.)
    integers_from: Annotated[Share | None, Field(exclude_if=lambda value: value is None)] = None
    # The grid joins by and by, from `integers_from` to the end of the ADMM phase
    integers_ramped: Annotated[bool, Field(exclude_if=lambda value: not value)] = False

    @model_validator(mode="after")
    def _the_grid_joins_before_the_freeze(self) -> Admm:
        if self.integers_from is None and self.integers_ramped:
            raise ValueError(
                "integers_ramped = true needs integers_from, the share of the run at which the ramp begins"
            )
        if self.integers_from is not None and self.integers_from >= self.freeze_at:
            raise ValueError(
                f"integers_from = {self.integers_from:g} must be below freeze_at = {self.freeze_at:g}, where ADMM ends "
                "(null: the grid comes with the freeze)"
            )
        return self

    @model_validator(mode="after")
    def _paper_is_the_paper(self) -> Admm:
        changed = (self.schedule, self.freeze_at, self.dual_step)
        if self.recipe == "paper" and changed != ("constant", 1.0, "full"):
            raise ValueError(
                "recipe 'paper' has a constant rho, full dual steps and no frozen phase: leave schedule, dual_step and "
                "freeze_at out"
            )
        if self.recipe == "gradient" and self.dual_step == "matched":
            raise ValueError(
                "recipe 'gradient' has full dual steps: which share of the distance W covers under Adam is not known, "
                "so there is none to match"
            )
        return self


SETTINGS = Admm

# The library's default, NxM+'s values: W covers 12 % of the distance to Z - U between two of twelve projections, U
# takes up the same share, and the second half of the steps recovers on a fixed mask. That the projection is weighted by
# the inputs rests on the ablation (studies/ablation).
BEST_ADMM = Admm(
    recipe="proximal",
    rho=0.125,
    interval="auto",
    schedule="constant",
    freeze_at=0.5,
    dual_step="matched",
    importance="activations",
    relaxation=1.0,
)
