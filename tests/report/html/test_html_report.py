"""report.html: its numbers are those of the results, links lead somewhere, nothing is loaded, strings are escaped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nxm import report
from nxm.report import claims, effects, labels, published, statistics
from nxm.report.evidence import read_evidence
from nxm.report.html import claimed, document, runs
from nxm.report.page.numbers import number
from nxm.study.plan import trainings
from nxm.study.results import place_of, result_path, write_result
from nxm.study.studies import studies, study_folder
from reported_study import Made, Page, make_folder
from synthetic_study import ROOT, make_failure

COMMITTED = [path for name in studies(ROOT) if (path := study_folder(ROOT, name) / document.NAME).is_file()]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def shown(text: str) -> str:
    """Return a cell's text as a reader sees it: without Markdown's bold, with single spaces."""
    return " ".join(text.replace("**", "").split())


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_each_table_has_the_cells_of_the_studys_table(made: Made, page: Page) -> None:
    for name in made.evidence.settings.tables:
        for part in report.load("tables", name).make(made.evidence).parts:
            rows = page.tables[part.title]
            assert rows[0] == [heading or "Of" for heading in part.shown.columns], part.title
            wanted = [[shown(cell) for cell in row] for row in part.shown.fillna("").itertuples(index=False, name=None)]
            assert rows[1:] == wanted, part.title


def test_each_training_has_a_row_with_its_numbers_command_and_values(made: Made, page: Page) -> None:
    rows = {(row[0], row[2], row[3], row[1]): row for row in page.tables["All trainings"][1:]}
    assert len(rows) == len(made.evidence.results)
    kinds = {False: "variant", True: "run"}
    for result in made.evidence.results:
        task = statistics.TASKS[result.task]
        row = rows[labels.run_label(result.full_name), task, str(result.seed), kinds[result.whole]]
        assert row[4] == f"{result.metric.value:.1f}"
        assert row[7:10] == [
            f"{result.train_seconds:.0f}",
            f"{result.wall_seconds:.0f}",
            f"{result.peak_memory_mib / 1024:.1f}",
        ]
        assert row[10] == f"{result.sparsity.nonzero_parameters / 1e6:.1f}"
        assert place_of(result).dvc_name in row[12]
        assert (
            f"Learning rate: {labels.value_label('learning_rate', result.hyperparameters['learning_rate'])}" in row[12]
        )
        assert "AMD EPYC, 2 cores" in row[12]
        assert result_path("", place_of(result)).as_posix() in page.links
        assert runs.anchor(place_of(result)) in page.identifiers


def test_the_plot_has_the_means_of_the_results(made: Made, page: Page) -> None:
    points = json.loads(page.scripts["plot-data"])
    results, tasks = made.evidence.results, ["stsb", "cola"]
    assert {point["task"] for point in points} == {*tasks, runs.ALL}
    for point in points:
        own = tasks if point["task"] == runs.ALL else [point["task"]]
        (name,) = {one.full_name for one in results if labels.run_label(one.full_name) == point["name"]}
        assert point["score"] == pytest.approx(statistics.method_score(results, name, own).mean, abs=1e-4)
        kept = statistics.retention_interval(made.evidence, name, "dense", own)
        assert point["retained"] == pytest.approx(kept.value, abs=1e-4)
        assert (point["low"], point["high"]) == pytest.approx((kept.low, kept.high), abs=1e-4)
        seconds = [one.train_seconds for one in statistics.runs_of(results, name) if one.task in own]
        assert point["seconds"] == pytest.approx(sum(seconds) / len(seconds), abs=0.01)
    (sparse,) = [point for point in points if point["name"] == "NxM+" and point["task"] == "stsb"]
    assert sparse["bits"] == 17  # half of the weights, each with 32 bits and 2 for its place


# --- claims ----------------------------------------------------------------------------------------------------------


def test_each_claim_of_the_pages_is_there_with_its_number_and_its_evidence(made: Made, page: Page) -> None:
    evidence = made.evidence
    read = {evidence.study: evidence}.__getitem__
    rows = {row[0]: row for row in page.tables["Claims and the evidence for them"][1:]}
    places = {(row[0], row[1]): row for row in page.tables["Claims and the evidence for them"][1:]}
    asked = [one for _, one in claims.numbers(made.folder, read, [evidence.study])]
    assert len(asked) > 6
    made_rows = claimed.rows(made.folder, evidence)
    assert len(places) == len(made_rows)
    for name, own, task in asked:
        words = claimed._words({"above": "points"}.get(name, name), own)
        assert words in rows
        text = number(name, evidence, own, task)
        assert any(re.findall(r"[\d.]+", text)[0] in row[2] for key, row in places.items() if key[0] == words), text
    (difference,) = effects.measured(evidence, [("nxm_plus", "gmp_plus", ("cola",))]).values()
    row = places["NxM+ minus GMP+, in points", "CoLA"]
    assert row[2] == f"{difference.interval.value:+.1f}"
    assert row[3].startswith(f"{difference.interval.low:+.1f} to {difference.interval.high:+.1f}")
    assert row[6] == f"{difference.p:.3f}"
    assert row[8] == f"{difference.visible:.1f}"


def test_a_claim_leads_to_rows_scripts_values_and_pages(made: Made) -> None:
    found = {(row.words, row.on): row for row in claimed.rows(made.folder, made.evidence)}
    row = found["NxM+ minus GMP+, in points", "CoLA"]
    assert [one.link for one in row.runs] == [
        f"#run-cola-{run}-seed{seed}" for run in ("nxm-plus", "gmp-plus") for seed in (1, 2)
    ]
    assert {one.link for one in row.values} == {"params.yaml", "values.json"}
    assert [one.link for one in row.pages] == ["README.md"]
    assert row.machines == ("AMD EPYC, 2 cores, 23.5 GiB, device cpu",)
    own = [one for name in ("nxm_plus", "gmp_plus") for one in statistics.runs_of(made.evidence.results, name)]
    assert row.seconds == pytest.approx(sum(one.wall_seconds for one in own if one.task == "cola"))


def test_a_time_that_a_page_states_is_there_and_nothing_judges_it(made: Made, page: Page) -> None:
    rows = page.tables["Times and speeds that pages state"][1:]
    (row,) = [row for row in rows if row[0].startswith("NxM+, training time")]
    assert row[1] == number("time", made.evidence, ["nxm_plus"])


def test_a_claim_that_cannot_be_computed_is_named(made: Made, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "docs/README.md.j2").write_text('{{ score("nxm") }}')
    (row,) = claimed.rows(folder, made.evidence)
    assert row.gap == "no result of NxM yet"
    assert "cannot be computed" in document.render(folder, draw=False)


# --- structure -------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_can_be_read_aloud(page: Page) -> None:
    assert len(page.identifiers) == len(set(page.identifiers))
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.headings.count(1) == 1
    for tag, own in page.elements:
        if tag == "th":
            assert own.get("scope") in ("col", "row")
        if tag == "svg":
            assert own.get("aria-label")
    tables = [tag for tag, _ in page.elements].count("table")
    assert tables == [tag for tag, _ in page.elements].count("caption") == len(page.tables)
    assert {"html", "title", "main", "header", "nav"} <= {tag for tag, _ in page.elements}
    assert dict(page.elements)["html"]["lang"] == "en"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_all_links_of_a_committed_report_lead_somewhere_and_it_loads_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    citations = {number.link for number in (*published.NUMBERS, *published.of_paper([("cola", "CoLA")]))}
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.identifiers, link
        elif link in citations:
            assert link.startswith("https://")  # a citation, which a browser follows when asked
        else:
            assert not re.match(r"[a-z]+:", link), link
            assert (path.parent / link).exists(), link
    used = re.findall(r"url\(([^)]*)\)", text)
    for loaded in [*page.loaded, *used]:
        assert loaded.startswith(("#", "data:")), loaded
    assert {link[1:] for link in re.findall(r'(?:xlink:href="|url\()(#[\w-]+)', text)} <= set(page.identifiers)
    assert not re.search(r"@import|http-equiv|<(iframe|object|embed|form|base)\b", text)
    assert len(page.identifiers) == len(set(page.identifiers))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_report_is_what_the_code_makes_of_the_results(path: Path) -> None:
    made = document.render(path.parent, draw=False)
    assert document.unchanging(path.read_text(encoding="utf-8")) == document.unchanging(made)


def test_a_comparison_leaves_out_the_drawings_alone(made: Made) -> None:
    without = document.unchanging(made.text)
    assert without == document.unchanging(document.render(made.folder, made.evidence, draw=False))
    assert 'class="drawn"' not in without
    assert len(without) > 0.4 * len(made.text)


def test_the_stage_writes_the_same_bytes_in_another_process(made: Made) -> None:
    """With another seed of Python's hashes, on which the order of sets depends."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(made.folder), "PATH": "", "PYTHONHASHSEED": "7"}
    command = [sys.executable, str(ROOT / "stages/report.py")]
    done = subprocess.run(command, cwd=made.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (made.folder / document.NAME).read_bytes() == made.text.encode()


# --- gaps, failures, hostile strings ---------------------------------------------------------------------------------


def test_failures_and_gaps_are_named(made: Made, page: Page) -> None:
    (row,) = page.tables["Trainings that failed"][1:]
    assert row == ["NxM+ (token noise)", "STS-B", "1", "the loss became nan at step 3", "90"]
    text = " ".join(re.sub(r"<[^>]+>", " ", made.text).split())
    assert "ASP+ on CoLA, seed 2" in text
    assert "NxM+ (token noise) on CoLA, seed 1 and 2" in text
    planned = len(trainings(made.evidence.settings))
    assert (
        f"{len(made.evidence.results)} of {planned} planned trainings have a result, 1 failed, 4 have not run." in text
    )


def test_a_study_without_results_says_so(made: Made, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for path in (folder / "results").rglob("*.*"):
        path.unlink()
    text = document.render(folder, draw=False)
    Page(text)
    assert f"0 of {len(trainings(made.evidence.settings))} planned trainings have a result" in text
    assert "No training of this study has a result." in text


def test_strings_of_results_are_escaped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    failure = make_failure("embedded", "stsb", "nxm_plus", "noisy", failure=HOSTILE)
    write_result(result_path(folder, place_of(failure)), failure)
    path = result_path(folder, place_of(next(r for r in read_evidence(folder).results if r.full_name == "nxm_plus")))
    content = json.loads(path.read_text())
    content["provenance"]["machine"]["cpu"] = HOSTILE
    content["hyperparameters"]["start"] = HOSTILE
    content["provenance"]["weights"] = f"{HOSTILE} (pypi)"
    path.write_text(json.dumps(content))
    text = document.render(folder)
    assert "<script>alert" not in text
    assert "<img" not in text
    page = Page(text)  # well-formed
    assert page.tables["Trainings that failed"][1][3] == " ".join(HOSTILE.split())
    assert [tag for tag, _ in page.elements].count("script") == 2


def test_the_main_studys_report_links_the_others() -> None:
    page = Page((ROOT / document.NAME).read_text(encoding="utf-8"))
    others = [path.relative_to(ROOT).as_posix() for path in COMMITTED if path.parent != ROOT]
    assert set(others) <= set(page.links)
