"""Settings of integer activations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nxm.config import Settings


class Activations(Settings):
    """The values of integer activations, see `nxm.models.activations`."""

    bits: Annotated[int, Field(strict=True, ge=2, le=8)] = 8
    # Share of the run after which inputs are rounded, and their ranges tracked to the end
    round_from: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.67
    # Weight of a step's least and largest input in the moving averages of both
    averaging: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01


DEFAULT_ACTIVATIONS = Activations()  # the library's default
