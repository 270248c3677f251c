"""Settings of the ADMM algorithm."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from nxm.config import Positive, PositiveInt, Settings, Share


class Admm(Settings):
    """The ADMM algorithm's values; see `nxm.methods.admm.algorithm` for what each does.

    `recipe: paper` puts the penalty of eq. (3) into Adam's gradient and never freezes the mask; `recipe: gradient`
    does the first alone; `recipe: proximal` takes a decoupled proximal step after the optimizer's.
    """

    recipe: Literal["paper", "gradient", "proximal"]
    rho: Positive  # paper, gradient: the penalty's weight in the loss; proximal: pull toward Z - U over an iteration
    # Optimizer steps between two projections; auto: as many as make twelve iterations before the mask is frozen
    interval: Literal["auto", "epoch"] | PositiveInt = "epoch"
    # Of rho over the ADMM iterations, U being rescaled; similarity: it grows by how much the mask still moves (ALPS)
    schedule: Literal["constant", "linear", "cosine", "similarity"] = "constant"
    freeze_at: Share = 1.0  # share of the run after which the mask stays; 1.0: never
    dual_step: Literal["full", "matched"] = "full"  # of W - Z, what U takes up in an iteration: all, or W's own share

    @model_validator(mode="after")
    def _paper_is_the_paper(self) -> Admm:
        own = (self.schedule, self.freeze_at, self.dual_step)
        if self.recipe == "paper" and own != ("constant", 1.0, "full"):
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
