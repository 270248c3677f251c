"""Settings of SR-STE."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from nxm.config import Settings


class SrSte(Settings):
    """The values of SR-STE, see `nxm.methods.sr_ste.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"decay": 0.05},)

    decay: Annotated[float, Field(ge=0.0)]  # the pull of masked weights toward zero (the paper's lambda_W)


SETTINGS = SrSte
