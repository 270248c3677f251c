"""Settings of gradual magnitude pruning."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from nxm.config import PositiveInt, Settings
from nxm.errors import UserError
from nxm.methods import ImportanceName


class Gmp(Settings):
    """The values of gradual magnitude pruning, see `nxm.methods.gradual.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"interval": 3, "prune_until": 0.6},
        {"interval": 2, "prune_until": 1.0, "importance": "activations"},
    )

    interval: Literal["epoch"] | PositiveInt  # optimizer steps between two prunings
    prune_until: Annotated[float, Field(strict=True, gt=0.0, le=1.0)]  # share of the run after which the mask stays
    importance: ImportanceName = "none"  # the measure of the projection (`nxm.methods.importance`)

    def refuse_short_training(self, steps: int, steps_per_epoch: int | None) -> None:
        """Raise UserError if a training of so many optimizer steps prunes less than twice, which is not gradual."""
        phase = math.floor(steps * self.prune_until)
        interval = steps_per_epoch if self.interval == "epoch" else self.interval
        if phase < 2 * interval:
            raise UserError(
                f"interval = {self.interval} is {interval} optimizer steps, and pruning has {phase} (prune_until = "
                f"{self.prune_until:g} of {steps}), fewer than two intervals: set a smaller interval or train longer"
            )


SETTINGS = Gmp

DEFAULT_GMP = Gmp(interval=10, prune_until=0.5)  # the library's default
