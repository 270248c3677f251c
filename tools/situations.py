"""Write docs/situations.md: what is supported and what is refused, read from the tests that show it.

    python tools/situations.py

A test names its situations: `@pytest.mark.situation(part, words, "works" or "refused", since="0.2")`. They are read
from the source, so that the tests need not be imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "situations.md"
ANSWERS = ("works", "refused")
FIRST_VERSION = "0.2"  # that has this page

HEAD = """# What is supported

Each row is a test. *Refused* means: an error before anything is lost, which says what would be right.
This page is written by `make pages` from the tests' markers; a situation that is missing here has not been tried.
"""


class Situation(NamedTuple):
    """A row: the part of nxm, the situation in words, the answer, the version since when, and the test's place."""

    part: str
    words: str
    answer: str
    since: str
    test: str


def situations(tests: Path) -> Iterator[Situation]:
    """Yield the markers of every test file below a folder.

    Raises:
        ValueError: a marker has other than literal texts, or an unknown answer; it names file and line.
    """
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "situation":
                try:
                    values = [ast.literal_eval(argument) for argument in node.args]
                    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
                    part, words, answer = values
                    if answer not in ANSWERS:
                        raise ValueError(f"the answer is {answer!r}, not one of {ANSWERS}")
                except ValueError as error:
                    raise ValueError(f"{path}:{node.lineno}: no marker of a situation: {error}") from None
                yield Situation(
                    part, words, answer, named.get("since", FIRST_VERSION), path.relative_to(tests).as_posix()
                )


def page(rows: list[Situation]) -> str:
    """Return the page in Markdown: a table for each part, in the order of the alphabet."""
    text = HEAD
    for part in sorted({row.part for row in rows}):
        text += f"\n## {part.capitalize()}\n\n| situation | | since | test |\n|---|---|---|---|\n"
        chosen = sorted(
            {row for row in rows if row.part == part}, key=lambda row: (row.answer != "works", row.words.lower())
        )
        text += "".join(
            f"| {row.words} | {row.answer} | {row.since} | [{row.test}](../tests/{row.test}) |\n".replace(
                "`|`", "`\\|`"
            )
            for row in chosen
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page(list(situations(ROOT / "tests"))), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
