"""A study with runs, variants, a failure, gaps and a page with claims, and a parser of its report."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from nxm.files import write_text
from nxm.report.evidence import Evidence
from nxm.study.plan import write_plan
from nxm.study.results import place_of, result_path, write_result
from nxm.study.settings import load_study
from synthetic_study import ROOT, make_ablation, make_failure

CLAIMS = """NxM+ is {{ above("nxm_plus", "gmp_plus") }} GMP+, on CoLA {{ points("nxm_plus", "gmp_plus", task="cola") }};
it retains {{ retention("nxm_plus") }}, has {{ score("nxm_plus", task="stsb") }}, sees
{{ examples("nxm_plus", task="stsb") }} rows and takes {{ time("nxm_plus") }} of the time.
{{ verdict_table(["dense", "nxm_plus"]) }}
"""
VOID = frozenset(("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr"))
LEAVES = frozenset(("g", "path", "use", "rect", "circle", "line", "image"))  # of SVG, where "/>" ends an element


@dataclass(frozen=True)
class Made:
    """A study's folder, its evidence and its report."""

    folder: Path
    evidence: Evidence
    text: str


def make_folder(folder: Path) -> Path:
    """Write the results and pages of a study of two tasks and two seeds."""
    results = make_ablation(folder, "embedded", ("stsb", "cola"))
    params = json.loads((folder / "params.yaml").read_text())
    tables = ["table1", "table_ablation", "table_comparison", "table_cost"]
    changes = {"figures": ["summary", "ablation"], "tables": tables}
    params["variants"]["nxm_plus/noisy"] = {"values": {"noise": 0.5}}  # fails, or has not run
    params |= changes
    write_text(folder / "params.yaml", json.dumps(params, indent=1))
    failure = make_failure("embedded", "stsb", "nxm_plus", "noisy")
    write_result(result_path(folder, place_of(failure)), failure)
    missing = next(one for one in results if (one.task, one.full_name, one.seed) == ("cola", "asp_plus", 2))
    result_path(folder, place_of(missing)).unlink()
    write_text(folder / "docs/README.md.j2", CLAIMS)
    shutil.copy(ROOT / "dvc.yaml", folder)
    write_plan(load_study(folder / "params.yaml"), folder)
    return folder


class Page(HTMLParser):
    """A page as tables of texts, links and identifiers; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}  # caption -> rows of texts, the heading first
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.headings: list[int] = []
        self.scripts: dict[str, str] = {}
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._caption, self._rows, self._script = "", [], None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.elements.append((tag, own))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in own:
            self.identifiers.append(own["id"])
        if "href" in own and tag == "a":
            self.links.append(own["href"])
        self.loaded += [own[name] for name in ("src", "data", "poster", "srcset") if own.get(name)]
        if tag in ("use", "image", "link"):
            self.loaded += [own[name] for name in ("href", "xlink:href") if own.get(name)]
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "script":
            self._script = own.get("id") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in LEAVES | VOID, tag
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag
        if tag == "table":
            assert self._caption not in self.tables, self._caption
            self.tables[self._caption] = [[" ".join(cell.split()) for cell in row] for row in self._rows]
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif "caption" in self.open:
            self._caption += data
        elif self.open and {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data
