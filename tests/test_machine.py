"""What a run was made with."""

from __future__ import annotations

import pytest

from nxm import machine as provenance


@pytest.mark.parametrize(("mixed", "said"), [(None, "fp32"), ("no", "fp32"), ("bf16", "bf16")])
def test_precision_is_what_accelerate_launch_says(monkeypatch, mixed, said):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if mixed is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)
    assert provenance.precision() == said
