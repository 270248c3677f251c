"""The repository that the tests of the verdict share."""

from __future__ import annotations

from pathlib import Path

import pytest

from committed_study import Repository, make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A committed study of three runs and two seeds, whose scores are those of its predictions."""
    return make_repository(tmp_path / "repository")
