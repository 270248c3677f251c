"""A table of milliseconds by heads and rows is measured on this machine."""

from __future__ import annotations

import pytest
import torch

from nxm import UserError
from nxm.measure.latency import measure_latency

SIZES = {"hidden_size": 32, "head_width": 8, "batch": 2, "length": 8}


def test_the_table_reaches_to_the_largest_numbers_and_never_falls():
    state = torch.random.get_rng_state()
    table = measure_latency(heads=[1, 4], rows=[16, 64], repeats=5, budget=1.0, **SIZES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert table.unit == "ms"
    assert (len(table.heads), len(table.rows)) == (5, 65)
    for values in (table.heads, table.rows):
        assert values[0] == 0.0
        assert list(values) == sorted(values)
        assert values[1] > 0


def test_numbers_below_one_are_refused():
    with pytest.raises(UserError, match=r"rows = \[0, 4\]: each must be at least 1"):
        measure_latency(heads=[1], rows=[0, 4], **SIZES)
