"""docs/situations.md has what the tests' markers say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "situations.py"))


def test_the_page_is_up_to_date():
    rows = list(TOOL["situations"](ROOT / "tests"))
    assert len(rows) >= 30
    assert TOOL["PAGE"].read_text(encoding="utf-8") == TOOL["page"](rows), "run `make pages`"


@pytest.mark.parametrize("marker", ['"a", "b", "perhaps"', '"a", "b"', '"a", words, "works"'])
def test_a_marker_that_cannot_be_read_is_named_with_its_line(marker, tmp_path):
    (tmp_path / "test_it.py").write_text(f"import pytest\n\n@pytest.mark.situation({marker})\ndef test(): ...\n")
    with pytest.raises(ValueError, match=r"test_it\.py:3: no marker of a situation"):
        list(TOOL["situations"](tmp_path))
