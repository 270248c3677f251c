"""The report of a study: everything that its results show, on one page that opens from disk and loads nothing.

The page is rendered from page.html.j2, page.css and page.js by Jinja with escaping on. No number is typed: each is from
the results files, through the same functions as the tables, figures and pages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from nxm import report
from nxm.files import write_text
from nxm.report import captions, effects, forms, labels, statistics
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.html import claimed, drawing, graph, runs
from nxm.report.page import blocks
from nxm.report.table import Part, Table
from nxm.report.tables.table_comparison import PAIRS
from nxm.report.tables.table_published import measured_like
from nxm.study.studies import MAIN, studies, study_folder

NAME = "report.html"
HERE = Path(__file__).parent
# Parts that depend on more than results: drawings on the machine and dvc.yaml, links on which other studies have run
_CHANGING = re.compile(r"<!--(drawn|elsewhere)-->.*?<!--/\1-->", re.DOTALL)
_SORTED_FROM = 8  # rows from which a table has a field to filter it


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes:
        cells: text, which is escaped, or Markup.
        anchors: identifiers of the rows; none by default.
        links: the table's files, by ending.
    """

    anchor: str
    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str | Markup, ...], ...]
    notes: tuple[str | Markup, ...] = ()
    anchors: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    filtered: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "filtered", len(self.cells) >= _SORTED_FROM)


def write(folder: Path) -> Path:
    """Write the report of the study in a folder, and return its path."""
    path = Path(folder, NAME)
    write_text(path, render(folder))
    return path


def unchanging(text: str) -> str:
    """Return a report without the parts that depend on more than the study's results, for a comparison to the byte."""
    return _CHANGING.sub("", text)


def render(folder: Path, evidence: Evidence | None = None, *, draw: bool = True) -> str:
    """Return the report of the study in a folder as HTML; equal results give equal bytes.

    Args:
        evidence: the study's, if it has been read already.
        draw: draw the figures, which takes seconds; else their places stay empty.

    Raises:
        UserError: a results file or params.yaml is not valid, or a template names what does not exist.
    """
    folder = Path(folder).absolute()
    evidence = evidence or read_evidence(folder)
    study = evidence.settings
    assert study is not None, "a study has a params.yaml"
    root = (folder / study.root).resolve()
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = marked
    environment.filters["run_label"] = labels.run_label
    environment.filters["task_label"] = lambda task: statistics.TASKS.get(task, task)
    made = claimed.rows(root, evidence)
    text = environment.get_template("page.html.j2").render(
        study=evidence.study,
        is_main=evidence.study == MAIN,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704
        conditions=_conditions(evidence),
        progress=_progress(evidence),
        sentences=_sentences(evidence),
        glance=_glance(evidence),
        claims=made,
        times=_times(root, evidence),
        explained=effects.EXPLAINED,
        shown=_shown(made),
        page=claimed.link(evidence, _page(evidence, root)),
        root_report=claimed.link(evidence, NAME),
        elsewhere=_elsewhere(root) if evidence.study == MAIN else [],
        figures=[
            (name, drawing.subject(name), drawing.figure(evidence, name) if draw else "") for name in study.figures
        ],
        runs=_runs(evidence),
        points=runs.points(evidence),
        measures=runs.MEASURES,
        size_note=runs.SIZE,
        tasks={**{task: statistics.TASKS.get(task, task) for task in study.tasks}, runs.ALL: "Geometric mean"},
        tables=[grid for name in study.tables if name not in _ELSEWHERE for grid in _grids(evidence, name)],
        published=_published(evidence),
        pipeline=graph.pipeline(folder),
        failed=_failed(evidence),
        waiting=_waiting(evidence),
        weak=_weak(evidence),
        absent=_absent(evidence),
        cost=[statistics.cost_phrase(evidence), statistics.machine_phrase(evidence.results)],
        costs=_grids(evidence, "table_cost") if evidence.results or evidence.failures else [],
    )
    return re.sub(r"[ \t]+\n", "\n", text)


_ELSEWHERE = ("table_published", "table_cost")  # tables that have sections of their own


def marked(text: str) -> Markup:
    """Return a sentence of a page with Markdown's bold as HTML, everything else escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))  # noqa: S704  escaped before


def _page(evidence: Evidence, root: Path) -> str:
    own = "docs/embedded.md" if evidence.study == MAIN else f"studies/{evidence.study}/README.md"
    return own if (root / own).is_file() else "README.md"


def _conditions(evidence: Evidence) -> str:
    """Return data, model and seeds of a study, or the machines of one that trains nothing."""
    if evidence.results:
        return statistics.study_phrase(evidence)
    machines = dict.fromkeys(filter(None, map(captions.machine_of, [*evidence.bench, *evidence.deployment])))
    return (
        f"Study {evidence.study}: speeds of {statistics.listed(machines)}." if machines else f"Study {evidence.study}."
    )


def _times(root: Path, evidence: Evidence) -> Grid:
    """Return the times and speeds that pages state."""
    cells = tuple(
        (time.words, time.value, _links(time.sources), _links(time.pages)) for time in claimed.times(root, evidence)
    )
    notes = ("Measured once on one machine: no claim that another machine could repeat, so nothing judges them.",)
    headings = ("Time or speed", "Value", "Made from", "Stated in")
    return Grid("times", "Times and speeds that pages state", headings, cells, notes)


def _links(sources: Sequence[claimed.Source]) -> Markup:
    made = Markup(", ").join(_link(one.words, one.link) for one in sources)
    if len(sources) < 4:
        return made
    return Markup("<details><summary>{} sources</summary>{}</details>").format(len(sources), made)


def _progress(evidence: Evidence) -> list[str]:
    """Return sentences with the number of planned trainings, and how many have results."""
    waiting, failed = len(runs.not_run(evidence)), len(evidence.failures)
    planned = len(evidence.results) + failed + waiting
    if not planned:
        return ["The study trains nothing: it measures speed."]
    text = f"{len(evidence.results)} of {planned} planned trainings have a result"
    text += f", {failed} failed" if failed else ""
    text += f", {waiting} have not run" if waiting else ""
    searched = evidence.selection in _BY and statistics.trials_of(evidence.results)
    return [f"{text}.", f"The search selected by {_BY[evidence.selection]}." if searched else ""]


_BY = {"heldout": "the score on training rows that were held out", "dev": "the score on dev, as in the paper"}


def _sentences(evidence: Evidence) -> dict[str, list[str]]:
    """Return the main results in sentences, NxM and NxM+ with their rivals: over all tasks, and by task."""
    own = {run.name for run in statistics.whole_runs(evidence.results)}
    text = [blocks.headline(evidence)] if {"dense", "nxm", "asp"} <= own else []
    text += [blocks.best(evidence)] if {"dense", "nxm_plus"} <= own and own & {*blocks.RIVALS, "nxm"} else []
    lines = [[line.removeprefix("- ") for line in part.splitlines()] for part in text]
    return {"main": [own[-1] for own in lines], "by_task": [line for own in lines for line in own[:-1]]}


def _glance(evidence: Evidence) -> Grid:
    """Return a row per run: its score and its share of the dense score with the interval."""
    own = statistics.whole_runs(evidence.results)
    tasks = statistics.tasks_of(own)
    cells = []
    for name in statistics.methods_of(own):
        score = statistics.method_score(own, name, tasks)
        if score is None:
            continue
        share = statistics.retention_interval(evidence, name, "dense", tasks)
        interval = share.text(".1f") if share and name != "dense" else statistics.percent(100.0 if share else None)
        cells.append((labels.run_label(name), str(score), interval))
    names = [statistics.TASKS.get(task, task) for task in tasks]
    where = names[0] if len(names) == 1 else f"Geometric mean over {statistics.listed(names)}" if names else ""
    headings = ("Run", "Score × 100", "% of the dense score [95 %]")
    lacking = statistics.missing_phrase(evidence, statistics.methods_of(own))
    return Grid("glance", f"The runs in short. {where}", headings, tuple(cells), (lacking,) if lacking else ())


def _shown(made: Iterable[claimed.Row]) -> dict[str, int]:
    """Return how many claims can be computed, and of the differences how many intervals exclude zero."""
    made = list(made)
    counts = Counter(row.certain for row in made)
    return {
        "all": len(made),
        "computed": sum(not row.gap for row in made),
        "differences": counts[True] + counts[False],
        "certain": counts[True],
    }


def _elsewhere(root: Path) -> list[tuple[str, str, str, str]]:
    """Return the other studies of README's table: name, content, status and the link to the report or the page."""
    readme = root / "docs/README.md.j2"
    if not readme.is_file():
        return []
    row = re.compile(r"^\| \[([\w-]+)\]\((studies/[\w-]+/)README\.md\) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
    found = []
    for name, place, content, _, status in row.findall(readme.read_text(encoding="utf-8")):
        if name in studies(root):
            file = NAME if (study_folder(root, name) / NAME).is_file() else "README.md"
            found.append((name, content.replace("`", ""), status, place + file))
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def _grids(evidence: Evidence, name: str) -> list[Grid]:
    """Return the printed tables of a module of `nxm.report.tables`; none without rows or notes."""
    table: Table = report.load("tables", name).make(evidence)
    assert evidence.settings is not None
    committed = name in evidence.settings.tables
    links = tuple((ending, f"paper_tables/{name}.{ending}") for ending in ("md", "csv", "tex")) if committed else ()
    anchors = (name.replace("_", "-"), name.replace("_", "-") + "-evidence")
    return [_grid(part, anchor, links) for part, anchor in zip(table.parts, anchors, strict=False)]


def _grid(part: Part, anchor: str, links: tuple[tuple[str, str], ...]) -> Grid:
    shown: pd.DataFrame = part.shown.fillna("")
    cells = tuple(tuple(marked(cell) for cell in row) for row in shown.itertuples(index=False, name=None))
    headings = tuple(str(heading) or "Of" for heading in shown.columns)
    return Grid(anchor, part.title, headings, cells, tuple(part.notes), links=links)


def _published(evidence: Evidence) -> list[Grid]:
    """Return the published numbers, each with a link to its source: a citation, which the page does not load."""
    (grid,) = _grids(evidence, "table_published")
    at = grid.headings.index("Source") if grid.cells else 0
    cells = [
        (*row[:at], _link(number.source, number.link), *row[at + 1 :])
        for row, number in zip(grid.cells, measured_like(evidence), strict=True)
    ]
    return [replace(grid, cells=tuple(cells))]


def _link(words: str, address: str) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, words)


def _runs(evidence: Evidence) -> Grid:
    headings = ("Run", "Kind", "Task", "Seed", "Score", "Held out", "% of dense", "Training (s)", "Whole run (s)")
    headings += ("Memory (GiB)", "Non-zero (M)", "Size (MiB)", "Machine, values, command")
    own = runs.rows(evidence)
    cells = []
    for row in own:
        one = row.result
        values = Markup("; ").join(f"{name}: {value}" for name, value in row.values)
        more = Markup(
            "<details><summary>show</summary><p>{}</p><p>{}</p><p>{}</p><p><code>{}</code></p></details>"
        ).format(values, row.machine, _link("results file", row.path), row.command)
        cells.append(
            (
                *(row.run, row.kind, row.task, str(one.seed), f"{row.score:.1f}"),
                statistics.ABSENT if row.heldout is None else f"{row.heldout:.1f}",
                statistics.ABSENT if row.retained is None else f"{row.retained:.1f}",
                *(f"{one.train_seconds:.0f}", f"{one.wall_seconds:.0f}", f"{one.peak_memory_mib / 1024:.1f}"),
                f"{one.sparsity.nonzero_parameters / 1e6:.1f}",
                statistics.ABSENT if row.size is None else f"{row.size:.1f}",
                more,
            )
        )
    notes = ("% of dense: of the dense model with the same task and seed.", runs.SIZE) if own else ()
    return Grid("runs-table", "All trainings", headings, tuple(cells), notes, tuple(row.anchor for row in own))


# --- gaps, failures and what did not work ----------------------------------------------------------------------------


def _failed(evidence: Evidence) -> Grid:
    cells = [
        (
            runs.name_of(evidence, record),
            statistics.TASKS.get(record.task, record.task),
            str(record.seed),
            record.failure,
            statistics.ABSENT if record.wall_seconds is None else f"{record.wall_seconds:.0f}",
        )
        for record in evidence.failures
    ]
    return Grid("failed", "Trainings that failed", ("Run", "Task", "Seed", "Reason", "Time (s)"), tuple(cells))


def _waiting(evidence: Evidence) -> list[str]:
    """Return the planned trainings without a result, in words: trials of a run in a number, seeds together."""
    places: dict[str, list[int]] = {}
    trials: Counter[str] = Counter()
    for training in runs.not_run(evidence):
        task = statistics.TASKS.get(training.task, training.task)
        if training.trial:
            trials[f"{labels.run_label(training.run)} on {task}"] += 1
        else:
            places.setdefault(f"{labels.run_label(training.name)} on {task}", []).append(training.seed)
    lines = [f"{where}, seed {statistics.listed(seeds)}" for where, seeds in places.items()]
    return lines + [f"{where}, {count} trial{'s' * (count > 1)} of the search" for where, count in trials.items()]


def _weak(evidence: Evidence) -> dict[str, list[effects.Difference]]:
    """Return the changes that made a run worse, and the comparisons that show no difference."""
    own = statistics.whole_runs(evidence.results)
    pairs: list[tuple[str, str]] = [pair for pair in PAIRS if pair[1] != "dense"]
    pairs += [(name, rival) for name, rival in evidence.variants.items()]
    asked = []
    for run, rival in pairs:
        both = [{one.task for one in statistics.runs_of(evidence.results, name)} for name in (run, rival)]
        tasks = statistics.in_order(both[0] & both[1], statistics.tasks_of(own))
        if tasks:
            asked.append((run, rival, tuple(tasks)))
    found = effects.measured(evidence, asked).values()
    changed = [one for one in found if one.run in evidence.variants]
    return {
        "worse": [one for one in changed if one.interval.certain and one.interval.value < 0],
        "level": [one for one in found if not one.interval.certain],
    }


def _absent(evidence: Evidence) -> list[str]:
    """Return sentences on what was not measured or cannot be trusted, and why."""
    own = statistics.whole_runs(evidence.results)
    below = [
        f"{labels.run_label(name)} on {statistics.COLUMNS.get(column, column)} has {score.mean:.1f}, no more than the "
        f"best constant answer, which has {floor:.1f}."
        for column, floor in evidence.floors.items()
        for name in statistics.methods_of(own)
        if (score := statistics.column_score(own, name, column)) is not None and score.mean <= floor
    ]
    lines: Sequence[str] = [statistics.collapsed_phrase(own), *below, *forms.absences(evidence.deployment)]
    absent = [f"Absent: {file['device'].upper()}: {file['absent']}." for file in evidence.bench if "absent" in file]
    return [line for line in [*lines, *absent] if line]
