"""Settings of straight-through training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from nxm.config import Settings


class Qat(Settings):
    """The values of straight-through training, see `nxm.methods.straight_through.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"round_from": 0.3})

    # Share of the run after which the network runs on integers; before, it trains on its zero pattern alone
    round_from: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0


SETTINGS = Qat

DEFAULT_QAT = Qat()  # the library's default
