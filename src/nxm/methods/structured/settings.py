"""Settings of structured pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from nxm.config import Positive, PositiveInt, Settings, Share
from nxm.errors import UserError


class Structured(Settings):
    """The values of structured pruning, see `nxm.methods.structured.algorithm`.

    `recipe: paper` is MLPruning: scores from 0, thresholds from 10, one rate for both, the adaptive regulariser, no
    frozen phase. `recipe: learned` starts from the importance of heads and rows, learns scores and thresholds under a
    budget that hard counts never exceed, and then recovers on a fixed structure. (The thresholds begin at
    sigmoid(`threshold_start`) and only fall: a budget above that share is undercut.) `recipe: one_shot` removes what
    costs least by its importance once (Kwon et al.), `recipe: gradual` in steps.
    """

    takes_set: ClassVar[bool] = False

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"recipe": "learned", "budget": 0.5, "measure_steps": 2},
        {"recipe": "learned", "budget": 0.6, "control": "regulariser", "threshold_rate": 0.5, "freeze_at": 0.75},
        {"recipe": "learned", "units": "blocks", "block": 8, "budget": 0.5, "importance": "magnitude"},
        {"recipe": "one_shot", "budget": 0.4, "measure_steps": 3},
        {"recipe": "one_shot", "budget": 0.4, "importance": "magnitude"},
        {"recipe": "gradual", "budget": 0.3, "measure_steps": 2, "interval": 2, "ramp_until": 0.6},
        {"recipe": "paper", "units": "heads_rows_outputs", "budget": 0.5},
        {"recipe": "paper", "units": "blocks", "block": 8, "budget": 0.5},
    )

    recipe: Literal["paper", "learned", "one_shot", "gradual"]
    budget: Annotated[float, Field(gt=0.0, lt=1.0)]  # share of the encoder's cost that is left (the paper's tau)
    # outputs: rows of O and FFN2 too, as in the paper; they stay as zeros when the model is shrunk
    units: Literal["heads_rows", "heads_rows_outputs", "blocks"] = "heads_rows"
    block: PositiveInt = 32  # side of a block, for units = blocks; the paper has 16 and 32
    cost: Literal["weights", "flops", "latency"] = "weights"  # in which the budget is counted
    length: PositiveInt = 128  # tokens of a sequence, for cost = flops
    latency: str = ""  # path of a measured table (`nxm.models.cost.read_cost`), for cost = latency
    multiple: PositiveInt = 1  # FFN widths are multiples of it, which kernels like; 1: any width
    importance: Literal["fisher", "magnitude"] = "fisher"  # of heads, rows or blocks in the dense model
    measure_steps: PositiveInt = 10  # optimizer steps at the start over which Fisher information is averaged
    control: Literal["budget", "regulariser"] = "budget"  # of learned: hard counts, or the paper's regulariser
    threshold_start: float = 2.0  # of learned; sigmoid(2) = 0.88
    threshold_rate: Positive = 0.1  # Adam's learning rate at its peak; it follows the Trainer's schedule
    score_rate: Positive = 0.01
    regularisation: Positive = 20000.0  # the paper's Lambda
    interval: PositiveInt = 10  # of gradual: optimizer steps between two prunings
    ramp_until: Share = 0.25  # of learned and gradual: share of the run after which the budget is reached
    freeze_at: Share = 0.5  # of learned: share of the run after which the structure stays
    freeze_embeddings: bool = False  # the paper freezes them

    @model_validator(mode="after")
    def _values_fit_together(self) -> Structured:
        default = type(self).model_fields
        if self.recipe == "paper":
            learned = ("importance", "measure_steps", "control", "threshold_start", "threshold_rate", "score_rate")
            changed = [
                name for name in (*learned, "ramp_until", "freeze_at") if getattr(self, name) != default[name].default
            ]
            if changed:
                raise ValueError(f"recipe 'paper' has its own values: leave {', '.join(changed)} out")
        if self.recipe in ("one_shot", "gradual") and self.units != "heads_rows":
            raise ValueError(f"recipe '{self.recipe}' removes heads and rows: units = '{self.units}' needs 'learned'")
        if self.units != "heads_rows" and (self.cost != "weights" or self.multiple != 1):
            raise ValueError(f"units = '{self.units}' are counted in weights: leave cost and multiple out")
        if (self.recipe == "paper" or self.control == "regulariser") and self.cost != "weights":
            raise ValueError(f"the regulariser counts weights: cost = '{self.cost}' needs control = 'budget'")
        if (self.cost == "latency") != bool(self.latency):
            raise ValueError("cost = 'latency' needs `latency`, the path of a measured table, and only it does")
        if self.recipe == "learned" and self.ramp_until > self.freeze_at:
            raise ValueError(
                f"ramp_until = {self.ramp_until:g} is after freeze_at = {self.freeze_at:g}: the structure would be "
                "fixed before the budget is reached"
            )
        return self

    def phases(self, steps: int) -> tuple[int, int, int]:
        """Return the steps, of so many, from which importance is measured, the budget is reached and masks are fixed.

        The paper's recipe fixes its masks after the last step.
        """
        measures = self.importance == "fisher" and self.recipe != "paper"
        measured = self.measure_steps if measures else 0
        ramped = max(measured, round(steps * self.ramp_until))
        fixed = {"paper": steps + 1, "learned": round(steps * self.freeze_at), "one_shot": measured, "gradual": ramped}
        return measured, ramped, fixed[self.recipe]

    def refuse_targets(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Raise UserError for patterns on the names of matrices, which only blocks take."""
        if self.units != "blocks" and (include or exclude):
            raise UserError(
                f"include {list(include)} and exclude {list(exclude)}: heads and rows reach over several matrices, "
                "leave the patterns out"
            )

    def refuse_short_training(self, steps: int, steps_per_epoch: int | None) -> None:
        """Raise UserError if so many optimizer steps are too few to choose the structure by the recipe."""
        if self.recipe == "paper":
            return
        measured, _, fixed = self.phases(steps)
        needed = measured + {"learned": 2, "one_shot": 0, "gradual": 2 * self.interval}[self.recipe]
        if fixed < needed or steps <= needed:
            raise UserError(
                f"recipe '{self.recipe}' needs {needed} optimizer steps before the structure is fixed, after step "
                f"{min(fixed, steps)} of {steps}: train longer, or lower measure_steps = {self.measure_steps} or "
                f"interval = {self.interval}"
            )


SETTINGS = Structured

DEFAULT_STRUCTURED = Structured(recipe="learned", budget=0.5, multiple=8)  # the library's default
