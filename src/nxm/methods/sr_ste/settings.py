"""Settings of SR-STE."""

from __future__ import annotations

from typing import Any, ClassVar

from nxm.config import NonNegative, Settings


class SrSte(Settings):
    """The values of SR-STE, see `nxm.methods.sr_ste.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"decay": 0.05},)

    decay: NonNegative  # the pull of masked weights toward zero (the paper's lambda_W)


SETTINGS = SrSte
