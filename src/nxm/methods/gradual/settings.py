"""Settings of gradual magnitude pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nxm.config import PositiveInt, Settings


class Gmp(Settings):
    """Gradual magnitude pruning (`nxm.methods.gradual.algorithm`)."""

    interval: Literal["epoch"] | PositiveInt  # optimizer steps between two prunings
    prune_until: Annotated[float, Field(gt=0.0, le=1.0)]  # share of the run after which the mask stays
