"""A table and its three renderings: Markdown and LaTeX for reading, CSV for computing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nxm.files import write_text

# Characters that LaTeX of any age prints; pandas escapes LaTeX's own.
_LATEX = {"±": r"$\pm$", "×": r"$\times$", "–": "--", "−": "$-$", "ρ": r"$\rho$", "·": r"$\cdot$"}
_ROWS_ON_A_PAGE = 35


@dataclass(frozen=True)
class Part:
    """A table as it is printed, of cells that are text, with sentences below it."""

    title: str
    shown: pd.DataFrame
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """Return the table and its notes in GitHub's Markdown; without rows the notes alone."""
        body = [] if self.shown.empty else [self.shown.to_markdown(index=False, disable_numparse=True), ""]
        return "\n".join([f"**{self.title}**", "", *body, " ".join(self.notes)]) + "\n"


@dataclass(frozen=True)
class Table:
    """A table as it is printed and the numbers that it was made of.

    Attributes:
        shown: the printed cells, as text.
        numbers: a row per fact, at full precision.
        notes: sentences below the table.
        second: further columns of the same numbers, printed as a table below the first: one table would be too wide.
    """

    title: str
    shown: pd.DataFrame
    numbers: pd.DataFrame
    notes: tuple[str, ...]
    second: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tables that are printed, one below the other."""
        return Part(self.title, self.shown, self.notes), *([self.second] if self.second else [])

    def markdown(self) -> str:
        """Return the tables and their notes in GitHub's Markdown."""
        return "\n".join(part.markdown() for part in self.parts)

    def csv(self) -> str:
        """Return the numbers as CSV."""
        return self.numbers.to_csv(index=False, lineterminator="\n")

    def latex(self, label: str) -> str:
        """Return a table environment (needs booktabs; longtable for many rows) with the notes below the table.

        A second table follows the first, with `-evidence` after the label.
        """
        labels = (label, f"{label}-evidence")
        return "\n".join(_environment(part, own) for part, own in zip(self.parts, labels, strict=False))


def _environment(part: Part, label: str) -> str:
    notes = _latex(" ".join(part.notes))
    if part.shown.empty:
        return f"% {part.title}: no rows.\n{notes}\n"
    escaped = part.shown.map(_latex).rename(columns=_latex)
    columns = "l" * len(escaped.columns)
    long = len(escaped) > _ROWS_ON_A_PAGE
    text = escaped.to_latex(
        index=False,
        column_format=columns,
        caption=_latex(re.sub(r"^Table \d+\. ", "", part.title)),
        label=f"tab:{label}",
        position="l" if long else "t",
        longtable=long,
    )
    below = f"{{\\footnotesize {notes}}}\n"
    if long:
        return f"{text}\\noindent{below}"
    return text.replace(r"\end{table}", f"\\par\\smallskip{below}\\end{{table}}")


def _latex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)  # Markdown's bold
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def write_table(table: Table, stem: str | Path) -> list[Path]:
    """Write `<stem>.md`, `.csv` and `.tex`, each atomically; equal input gives equal bytes."""
    stem = Path(stem)
    texts = {"md": table.markdown(), "csv": table.csv(), "tex": table.latex(stem.name)}
    for ending, text in texts.items():
        write_text(f"{stem}.{ending}", text)
    return [Path(f"{stem}.{ending}") for ending in texts]
