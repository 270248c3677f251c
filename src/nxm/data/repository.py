"""A source in the layout of the Hugging Face Hub: on the Hub or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Repository:
    """The files that a source offers.

    Attributes:
        place: its name, for messages and manifests.
        files: their paths below the repository's root.
        obtain: takes paths out of `files` and returns a folder that has these files, complete and verified.
        described: what a manifest records of it besides its settings.
    """

    place: str
    files: frozenset[str]
    obtain: Callable[[Iterable[str]], Path]
    described: dict[str, Any] = field(default_factory=dict)
