"""Settings of gradual magnitude pruning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from nxm.config import PositiveInt, Settings
from nxm.methods import ImportanceName


class Gmp(Settings):
    """The values of gradual magnitude pruning, see `nxm.methods.gradual.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"interval": 3, "prune_until": 0.6},
        {"interval": 2, "prune_until": 1.0, "importance": "activations"},
    )

    interval: Literal["epoch"] | PositiveInt  # optimizer steps between two prunings
    prune_until: Annotated[float, Field(gt=0.0, le=1.0)]  # share of the run after which the mask stays
    importance: ImportanceName = "none"  # the measure of the projection (`nxm.methods.importance`)


SETTINGS = Gmp

DEFAULT_GMP = Gmp(interval=10, prune_until=0.5)  # the library's default
