"""The report in a real browser, where there is one: no error, tables sort and filter, marks show their run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reported_study import Made

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the page's script can run in a browser alone"
)
# One process and no use of the network; --dump-dom prints the page after its scripts have run
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
WATCH = "<script>window.faults = []; window.onerror = (text) => { window.faults.push(text); };</script>"
ACT = """
<script>
const found = { faults: window.faults };
const table = [...document.querySelectorAll("table")].find((one) => one.caption.textContent === "All trainings");
const visible = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const column = (at) => visible().map((row) => row.cells[at].textContent.trim());
const heading = (words) => [...table.tHead.rows[0].cells].find((cell) => cell.textContent.trim() === words);
const press = (words) => heading(words).querySelector("button").click();
press("Score");
found.up = [heading("Score").getAttribute("aria-sort"), column(4)];
press("Score");
found.down = [heading("Score").getAttribute("aria-sort"), column(4)];
press("Run");
found.runs = [heading("Score").getAttribute("aria-sort"), column(0)];
press("Held out");
found.absent = column(5);
const block = table.closest(".grid");
const input = block.querySelector("input");
input.value = "gmp+ cola";
input.dispatchEvent(new Event("input"));
found.filtered = [block.querySelector("output").textContent, column(0), column(2)];
const hidden = [...table.tBodies[0].rows].find((row) => row.hidden);
location.hash = hidden.id;
window.dispatchEvent(new HashChangeEvent("hashchange"));
found.shown_again = hidden.hidden === false && block.querySelector("output").textContent;
const marks = () => [...document.querySelectorAll("#plot-area .mark")];
const tip = () => document.getElementById("plot-tip").textContent;
const mark = marks().find((one) => one.getAttribute("aria-label").startsWith("GMP+:"));
mark.dispatchEvent(new PointerEvent("pointerenter"));
found.hovered = tip();
marks()[0].focus();
found.focused = [tip(), marks()[0].getAttribute("aria-label")];
const choose = (name, value) => {
  const list = document.getElementById(`plot-${name}`);
  list.value = value;
  list.dispatchEvent(new Event("change"));
  return marks().length;
};
found.marks = [marks().length, choose("task", "cola"), choose("x", "bits"), choose("y", "score")];
found.boxes = [...document.querySelectorAll("button, input, select")].every((one) => one.tabIndex === 0);
found.width = [document.documentElement.scrollWidth, window.innerWidth];
const outcome = document.createElement("pre");
outcome.id = "outcome";
outcome.textContent = JSON.stringify(found);
document.body.append(outcome);
</script>
"""


def visit(path: Path, text: str, profile: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """Return what the page's actions found, and what the browser wrote to its log."""
    path.write_text(text, encoding="utf-8")
    own = [f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", *flags, path.as_uri()]
    done = subprocess.run([str(BROWSER), *FLAGS, *own], capture_output=True, text=True, timeout=120, check=False)
    outcome = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert outcome, done.stderr
    return json.loads(html.unescape(outcome[1])), done.stderr


@pytest.fixture(scope="module")
def visited(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("browser")
    text = made.text.replace("<head>", f"<head>{WATCH}").replace("</body>", f"{ACT}</body>")
    return visit(folder / "report.html", text, folder / "profile")


def test_the_console_has_no_error(visited: tuple[dict[str, Any], str]) -> None:
    found, log = visited
    assert found["faults"] == []
    assert not [line for line in log.splitlines() if "CONSOLE" in line]


def test_a_heading_sorts_by_numbers_up_and_down_and_says_so(visited: tuple[dict[str, Any], str], made: Made) -> None:
    scores = sorted(round(one.metric.value, 1) for one in made.evidence.results)
    for key, order, wanted in (("up", "ascending", scores), ("down", "descending", scores[::-1])):
        said, cells = visited[0][key]
        assert said == order
        assert [float(cell) for cell in cells] == wanted
    said, names = visited[0]["runs"]
    assert said is None
    assert names[0].startswith("ASP+")
    assert names[-1].startswith("SR-STE+")


def test_what_is_absent_is_sorted_last(visited: tuple[dict[str, Any], str]) -> None:
    cells = visited[0]["absent"]
    first = cells.index("–")
    assert set(cells[first:]) == {"–"}
    assert first > 0


def test_a_filter_keeps_the_rows_with_all_words_and_a_link_brings_a_row_back(
    visited: tuple[dict[str, Any], str], made: Made
) -> None:
    said, names, tasks = visited[0]["filtered"]
    every = len(made.evidence.results)
    assert said == f"{len(names)} of {every} rows"
    assert set(tasks) == {"CoLA"}
    assert names == ["GMP+", "GMP+"]
    assert visited[0]["shown_again"] == f"{every} rows"


def test_a_mark_shows_its_run_and_command_to_pointer_and_keyboard(visited: tuple[dict[str, Any], str]) -> None:
    hovered = visited[0]["hovered"]
    assert hovered.startswith("GMP+score ")
    assert "% of dense [" in hovered
    assert "dvc repro --force --single-item compress@" in hovered
    tip, label = visited[0]["focused"]
    assert tip.startswith(label.partition(":")[0])


def test_the_plot_can_show_other_measures_and_tasks(visited: tuple[dict[str, Any], str]) -> None:
    marks = visited[0]["marks"]
    assert min(marks) > 6
    assert marks[1] >= marks[0]


def test_everything_that_reacts_can_be_reached_with_the_keyboard(visited: tuple[dict[str, Any], str]) -> None:
    assert visited[0]["boxes"]


def test_on_a_phone_tables_and_figures_scroll_and_the_page_does_not(made: Made, tmp_path: Path) -> None:
    text = made.text.replace("<head>", f"<head>{WATCH}").replace("</body>", f"{ACT}</body>")
    found, _ = visit(tmp_path / "report.html", text, tmp_path / "profile", "--window-size=500,900")
    page, window = found["width"]
    assert window <= 500
    assert page <= window
