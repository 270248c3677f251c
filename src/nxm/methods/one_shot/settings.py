"""Settings of one-shot pruning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from nxm.config import Settings


class OneShot(Settings):
    """The values of one-shot pruning, see `nxm.methods.one_shot.algorithm`."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"importance": "activations"})

    importance: Literal["none", "activations"] = "none"  # the measure of the projection; Adam has none before a step


SETTINGS = OneShot
