"""Figures and tables: made from results alone, whatever there is of them, and the same to the byte."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from nxm import report
from nxm.errors import UserError
from nxm.report import Evidence, facts, paper, scores, style
from nxm.report.table import Table, write_table
from nxm.study.results import Result, result_path, write_result
from nxm.study.settings import load_study
from synthetic_study import (
    PLUS,
    VARIANTS,
    make_ablation,
    make_benchmark,
    make_deployment,
    make_failure,
    make_matrices,
    make_result,
    make_study,
)

ROOT = Path(__file__).resolve().parents[1]
FIGURES, TABLES = report.known("figures"), report.known("tables")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study of one task and one seed."""
    root = tmp_path_factory.mktemp("one")
    make_study(root)
    return report.read_evidence(root, "embedded")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A study of three tasks (MNLI among them) and two seeds."""
    root = tmp_path_factory.mktemp("many")
    make_study(root, "several", ("stsb", "mnli", "cola"), (1, 2))
    return report.read_evidence(root, "several")


COMPARED = {name: name.partition("/")[0] for name in VARIANTS}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """NxM+, its rivals and three variants on two tasks with two seeds."""
    root = tmp_path_factory.mktemp("ablation")
    make_ablation(root, tasks=("stsb", "cola"))
    return replace(report.read_evidence(root, "ablation"), variants=COMPARED)


EMPTY = Evidence("empty", [], None)


def texts(figure: Figure) -> str:
    """All that is written in a figure, on one line."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(" ".join(artist.get_text() for artist in found).split())


# --- the paper's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "mean"),
    [
        ("dense", 81.78),
        ("admm_unstructured", 81.28),
        ("asp", 78.84),
        ("nxm", 80.49),
        ("distil", 78.55),
        ("distil_nxm", 76.63),
    ],
)
def test_the_geometric_mean_of_eight_columns_is_the_papers_average(method: str, mean: float) -> None:
    assert round(paper.average(method, paper.COLUMNS), 2) == mean
    assert paper.average(method, paper.COLUMNS) == pytest.approx(paper.PRINTED_AVERAGE[method], abs=0.06)


def test_the_papers_retention_is_what_its_text_says() -> None:
    kept = {m: facts.retention(paper.average(m, paper.COLUMNS), paper.average(w, paper.COLUMNS)) for m, w in
            (("nxm", "dense"), ("distil_nxm", "distil"))}  # fmt: skip
    assert round(kept["nxm"], 1) == 98.4
    assert round(kept["distil_nxm"], 1) == 97.6


def test_the_papers_grid_is_by_size_of_task() -> None:
    assert paper.grid("nxm", "qnli").rho == (4e-4, 1e-3, 3e-3)
    assert paper.grid("nxm", "stsb").learning_rate == (5e-5, 7e-5, 9e-5, 1e-4)
    assert paper.grid("dense", "mnli").learning_rate == (1e-5, 3e-5, 5e-5)
    assert paper.grid("distil", "stsb") is None


@pytest.mark.parametrize("values", [[0.0, 50.0], [-3.0, 50.0]])
def test_a_score_that_is_not_positive_makes_a_geometric_mean_0(values: list[float]) -> None:
    assert paper.geometric_mean(values) == 0.0


# --- scores --------------------------------------------------------------------------------------------------------


def test_mnli_counts_as_two_columns(many: Evidence) -> None:
    columns = facts.columns_of(many.results)
    assert columns == ["mnli_m", "mnli_mm", "cola", "stsb"]
    run = make_result("several", "mnli", "dense", 1)
    assert facts.column_values(run)["mnli_m"] != facts.column_values(run)["mnli_mm"]


def test_an_average_needs_every_task() -> None:
    runs = [make_result(task="stsb"), make_result(task="cola")]
    assert facts.average_score(runs, "nxm", ["cola", "stsb"]) is not None
    assert facts.average_score(runs, "nxm", ["cola", "stsb", "rte"]) is None


def test_cells_do_not_count_as_runs(one: Evidence) -> None:
    own = make_result(method="nxm").metric.value
    assert facts.task_score(one.results, "nxm", "stsb").values == (own,)
    assert facts.task_score(one.results, "nxm_paper", "stsb") is None


def test_spread_is_the_sample_deviation_and_one_seed_has_none() -> None:
    assert facts.score([80.0]).spread is None
    assert facts.score([80.0, 82.0]).spread == pytest.approx(2**0.5)
    assert str(facts.score([80.0, 82.0])) == "81.0 ± 1.4"


@pytest.mark.parametrize(
    ("value", "text"), [(9e-5, "9e-5"), (3e-4, "3e-4"), (0.003, "0.003"), (32, "32"), (0.35, "0.35")]
)
def test_hyperparameters_print_as_people_write_them(value: float, text: str) -> None:
    assert facts.plain(value) == text


# --- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_made_the_same_to_the_byte(name: str, one: Evidence, tmp_path: Path) -> None:
    draw = report.load("figures", name).draw
    pdf, png = style.render(draw, one, tmp_path / "a" / name)
    again = style.render(draw, one, tmp_path / "b" / name)
    assert [pdf.read_bytes(), png.read_bytes()] == [path.read_bytes() for path in again]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert not re.search(rb"/CreationDate|/ModDate", pdf.read_bytes())
    with Image.open(png) as image:
        assert round(image.info["dpi"][0]) == 300
        assert image.width / 300 <= style.TWO_COLUMNS + 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_made_of_several_tasks_and_seeds(name: str, many: Evidence) -> None:
    figure = report.load("figures", name).draw(many)
    figure.draw_without_rendering()
    assert "Study several" in texts(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_study_gives_a_figure_that_says_so_and_no_number(name: str) -> None:
    figure = report.load("figures", name).draw(EMPTY)
    assert re.search(r"Study empty has (no|results neither)", texts(figure))
    assert not re.search(r"\d\d\.\d", texts(figure))


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_at_least_eight_points(name: str, one: Evidence) -> None:
    with matplotlib.rc_context(style.RC):
        figure = report.load("figures", name).draw(one)
    figure.draw_without_rendering()
    written = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and str(artist.get_text()).strip())
    assert min(artist.get_fontsize() for artist in written if artist.get_visible()) >= 8


@pytest.mark.parametrize("values", [[0.99996, 0.9999], [0.99985, 1.0], [0.5, 1.0], [0.985, 0.9867], [0.52]])
def test_an_axis_of_similarities_has_two_numbers_at_least_and_room_for_the_values(values: list[float]) -> None:
    axes = Figure().add_subplot()
    style.similarity_scale(axes, "y", values)
    low, high = axes.get_ylim()
    assert low < min(style.drawable_similarity(value) for value in values)
    assert high > max(style.drawable_similarity(value) for value in values)
    assert len([tick for tick in axes.yaxis.get_major_locator()() if low <= tick <= high]) >= 2


def test_every_method_has_a_look_of_its_own_in_colour_and_in_grey() -> None:
    looks = [style.look(method) for method in facts.METHODS]
    assert len({look.marker for look in looks}) == len({look.color for look in looks}) == len(looks)
    dashed = [look.dashes for look in looks if look is not style.look("distil")]  # drawn as dense is: a grey of it
    assert len(set(dashed)) == len(dashed)


def test_latency_has_a_panel_for_each_device_and_precision_and_says_what_is_absent() -> None:
    figure = report.load("figures", "latency").draw(
        Evidence("embedded", [], make_benchmark(), deployment=make_deployment())
    )
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.subfigs[0].axes]
    assert titles == [f"(a) Inference on {what}" for what in ("CPU, fp32", "CPU, bf16", "CUDA, fp32", "CUDA, bf16")]
    assert "NxM (2:4 kernels): no 2:4 kernel for cpu." in texts(figure)
    labels = [axes.get_legend_handles_labels()[1] for axes in figure.subfigs[0].axes]
    assert [any("2:4" in label for label in own) for own in labels] == [False, False, False, True]


def test_products_show_the_fastest_2of4_kernel_and_mark_what_is_noisy_or_was_not_sparse() -> None:
    evidence = Evidence("embedded", [], None, matrices=make_matrices())
    figure = report.load("figures", "matrices").draw(evidence)
    cells = [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.texts]
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes if axes.texts]
    assert titles == ["CPU, fp32: masked", "CPU, bf16: masked", "CUDA, bf16: 2:4 kernels"]
    assert cells[0] == ["~0.99", "0.99", "0.99", "0.99"]
    assert cells[2] == ["~†1.31", "1.62", "1.31", "1.62"]
    said = texts(figure)
    assert "Absent: no 2:4 kernel for cpu." in said
    assert "†: the profiler saw no sparse kernel." in said
    rows = report.load("tables", "table_matrices").make(evidence).shown
    own = rows[(rows["Device"] == "CUDA") & (rows["Way"] == "cusparselt")].iloc[0]
    assert own["Sparse kernels ran"] == "3 of 4"
    assert own["most"] == "1.62"


def test_forms_have_their_times_sizes_scores_and_the_proof_of_their_kernels() -> None:
    evidence = Evidence("embedded", [], None, deployment=make_deployment())
    table = report.load("tables", "table_deployment").make(evidence)
    rows = {(row["Device"], row["Model"], row["Form"]): row for _, row in table.shown.iterrows()}
    assert rows["CUDA", "NxM", "PyTorch bf16, 2:4"]["Sparse kernels ran"] == "1 of 2"
    assert rows["CPU", "NxM", "ONNX INT8"]["Weights (MiB)"] == "21.6"
    assert rows["CPU", "NxM", "ONNX INT8"]["Score"] == "85.0"
    assert rows["CPU", "Student, dense", "PyTorch fp32"]["ms, 1 × 128"] == "5.0 ~"
    assert rows["CPU", "Student, dense", "PyTorch fp32"]["Speed-up"] == "2.00, 2.00"
    assert "Absent: Dense, compiled fp32: no compiler." in table.notes
    figure = report.load("figures", "deployment").draw(evidence)
    said = texts(figure)
    assert "In 2 rows of 2:4 kernels the profiler saw no sparse kernel." in said
    assert "Absent: Dense (compiled fp32): no compiler." in said
    left = next(axes for axes in figure.axes if axes.get_title().startswith("CUDA: score"))
    assert len(left.get_lines()) == 4 + 4 + 2


def test_a_device_that_was_not_there_is_said_with_the_reason() -> None:
    absent = {"study": "embedded", "device": "cuda", "absent": "no CUDA device where this was run", "rows": []}
    evidence = Evidence("embedded", [], None, matrices=[absent], deployment=[absent | {"scores": []}])
    for name in ("matrices", "deployment"):
        assert "CUDA: no CUDA device where this was run." in texts(report.load("figures", name).draw(evidence))
        notes = " ".join(report.load("tables", f"table_{name}").make(evidence).notes)
        assert "Absent: CUDA: no CUDA device where this was run." in notes


def test_figure_3_names_each_point_by_its_rho(one: Evidence) -> None:
    said = texts(report.load("figures", "figure3").draw(one)).split()
    for rho in ("0.05", "0.15", "0.35", "0.7", "0.9", "0.003", "0.006", "0.01"):
        assert rho in said


def test_figure_3_takes_from_a_grid_what_differs_in_rho_alone() -> None:
    runs = [make_result(), make_result(cell="lr9e-05-rho0.77", rho=0.77)]
    runs.append(make_result(cell="lr0.0003-rho0.55", rho=0.55, learning_rate=3e-4))
    said = texts(report.load("figures", "figure3").draw(Evidence("embedded", runs, None))).split()
    assert "0.77" in said
    assert "0.55" not in said


def test_figure_3_says_what_was_not_swept() -> None:
    figure = report.load("figures", "figure3").draw(Evidence("embedded", [make_result()], None))
    assert "No sweep over rho in this study" in texts(figure)


def test_figure_4_shows_the_ratio_that_was_counted(one: Evidence) -> None:
    axes = report.load("figures", "figure4").draw(one).axes[0]
    all_weights = next(line for line in axes.get_lines() if line.get_label() == "NxM, all weights")
    assert all_weights.get_ydata()[:3] == pytest.approx([100.0, 86.0, 73.96], abs=0.01)


def test_the_summary_says_which_method_has_no_results() -> None:
    runs = [make_result(method=method) for method in ("dense", "asp")]
    said = texts(report.load("figures", "summary").draw(Evidence("embedded", runs, None)))
    assert "no results" in said
    assert "No results file: ADMM, unstructured on STS-B; NxM on STS-B" in said


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("study", ["one", "many", "empty"])
def test_every_table_is_made_whatever_there_is_the_same_to_the_byte(
    name: str, study: str, one: Evidence, many: Evidence, tmp_path: Path
) -> None:
    evidence = {"one": one, "many": many, "empty": EMPTY}[study]
    make = report.load("tables", name).make
    md, csv, tex = write_table(make(evidence), tmp_path / "a" / name)
    again = write_table(make(evidence), tmp_path / "b" / name)
    assert [p.read_bytes() for p in (md, csv, tex)] == [p.read_bytes() for p in again]
    assert f"Study {evidence.study}" in md.read_text()
    assert len(pd.read_csv(csv)) == (0 if study == "empty" else len(make(evidence).numbers))
    text = tex.read_text()
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert not re.search(
        r"(?<!\\)[&%#](?![^\n]*\\\\)", text.replace("% ", "", 1) if make(evidence).shown.empty else text
    )


def test_table_1_has_the_papers_row_beside_ours_over_the_same_tasks(many: Evidence) -> None:
    table = report.load("tables", "table1").make(many)
    rows = {
        (row["Method"], row[""]): row for row in table.shown.replace({"Method": {"": None}}).ffill().to_dict("records")
    }
    assert rows["NxM", "paper"]["MNLI-m"] == "82.3"
    mean = paper.average("nxm", ["mnli_m", "mnli_mm", "cola", "stsb"])
    assert rows["NxM", "paper"]["Geo. mean"] == f"{mean:.1f}"
    assert rows["NxM", "ours"]["STS-B"] == str(facts.task_score(many.results, "nxm", "stsb"))
    assert rows["Dense", "ours"]["Kept of dense"] == "100.0 %"
    assert "Of the paper's columns SST-2, QNLI, MRPC and RTE are not in this study" in table.markdown()


def test_tables_say_sizes_seeds_selection_and_machine(one: Evidence) -> None:
    said = report.load("tables", "table1").make(one).markdown()
    for piece in (
        "1,500 of 5,749 training and 1,500 dev",
        "seed 1",
        "last epoch",
        "no epoch is selected",
        "AMD EPYC, 2 cores",
    ):
        assert piece in said


def test_a_missing_run_is_a_note_and_not_a_number(one: Evidence) -> None:
    results = [r for r in one.results if r.method != "asp" or r.cell is not None]
    table = report.load("tables", "table1").make(Evidence("embedded", results, None))
    assert "ASP" not in set(table.shown["Method"])
    assert "No results file: ASP on STS-B." in table.notes


def test_table_2_prints_counted_parameters(one: Evidence) -> None:
    numbers = report.load("tables", "table2").make(one).numbers.set_index("method")
    assert numbers.loc["nxm", "parameters"] - numbers.loc["nxm", "nonzero_parameters"] == 6 * 1_769_472 // 2


def test_the_ablation_compares_a_variant_with_its_method_and_a_rival_with_nxm_plus(ablation: Evidence) -> None:
    table = report.load("tables", "table_ablation").make(ablation)
    rows = {(row["Task"], row["Method"], row["Variant"]): row for _, row in table.shown.iterrows()}
    assert len(rows) == 3 * (len(PLUS) + len(VARIANTS))
    own = rows["STS-B", "NxM+", "no teacher"]
    assert own["Against"] == "NxM+"
    assert own["Points [95 %]"].startswith(f"{84.0 * (0.97 - 0.99):+.1f} [")
    assert own["Excludes 0"] == "yes"
    assert own["Held out"] == f"{84.0 * 0.97 + 1.5 + 1.0:.1f}"
    assert rows["STS-B", "NxM+", ""]["Points [95 %]"] == facts.ABSENT
    assert rows["STS-B", "NxM+", "permuted"]["Excludes 0"] == "no"
    assert rows["STS-B", "ASP+", "pattern 1 4"]["Against"] == "ASP+"
    assert rows["CoLA", "GMP+", ""]["Against"] == "NxM+"
    numbers = table.numbers.set_index(["task", "name"])
    stsb, cola, both = (numbers.loc[task, "nxm_plus/no-teacher"] for task in ("stsb", "cola", "geometric_mean"))
    assert both["mean"] == pytest.approx(paper.geometric_mean([stsb["mean"], cola["mean"]]), rel=1e-3)
    assert both["low"] < both["difference"] < both["high"]


def test_a_variant_is_compared_with_another_where_the_profile_says_so(ablation: Evidence) -> None:
    variants = COMPARED | {"nxm_plus/no-teacher": "asp_plus/pattern-1-4"}
    evidence = replace(ablation, variants=variants)
    shown = report.load("tables", "table_ablation").make(evidence).shown
    own = shown[(shown["Task"] == "STS-B") & (shown["Variant"] == "no teacher")].iloc[0]
    assert own["Against"] == "ASP+, pattern 1 4"
    assert own["Points [95 %]"].startswith(f"{84.0 * (0.97 - 0.9):+.1f} [")
    left, *_ = report.load("figures", "ablation").draw(evidence).axes
    assert "no teacher\n(against pattern 1 4)" in [label.get_text() for label in left.get_yticklabels()]


def test_the_ablation_tells_the_cost_beside_the_dense_model(ablation: Evidence) -> None:
    numbers = report.load("tables", "table_ablation").make(ablation)
    own = numbers.shown[numbers.shown["Task"] == "STS-B"].set_index(["Method", "Variant"]).loc[("NxM+", "permuted")]
    seconds, memory = (
        [
            sum(getattr(run, field) for run in facts.runs_of(ablation.results, name) if run.task == "stsb")
            for name in ("nxm_plus/permuted", "dense")
        ]
        for field in ("train_seconds", "peak_memory_mib")
    )
    assert own["Time"] == f"{seconds[0] / seconds[1]:.2f}x"
    assert own["Memory"] == f"{memory[0] / memory[1]:.2f}x"


def test_a_difference_is_of_the_seeds_that_both_have(ablation: Evidence) -> None:
    results = [run for run in ablation.results if (run.method, run.cell, run.seed) != ("nxm_plus", "no-teacher", 2)]
    points = facts.difference(replace(ablation, results=results), "nxm_plus/no-teacher", "nxm_plus", ["stsb"])
    assert points.value == pytest.approx(84.0 * (0.97 - 0.99))  # with all seeds of NxM+ it would be half a point less
    heldout = facts.heldout_difference(replace(ablation, results=results), "nxm_plus/no-teacher", "nxm_plus", ["stsb"])
    assert heldout == pytest.approx(84.0 * (0.97 - 0.99))


def test_the_ablation_says_what_failed_what_has_not_run_and_what_was_changed(ablation: Evidence) -> None:
    def gone(run: Result) -> bool:
        return (run.method, run.cell) == ("nxm_plus", "no-teacher")

    failure = make_failure("ablation", method="nxm_plus", cell="no-teacher")
    results = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"permute": True}})
        if run.cell == "permuted"
        else run
        for run in ablation.results
        if not gone(run)
    ]
    evidence = replace(ablation, results=results, failures=[failure])
    table = report.load("tables", "table_ablation").make(evidence)
    notes = " ".join(table.notes)
    assert "NxM+, no teacher, on STS-B, seed 1: failed: the loss became nan at step 3." in notes
    assert "No result yet: NxM+, no teacher, on CoLA; NxM+, no teacher, on STS-B, seed 2." in notes
    changed = table.shown.set_index("Variant")["Changed"]
    assert set(changed["permuted"]) == {"permute yes"}
    assert set(changed["pattern 1 4"]) == {"pattern 1:4"}
    assert set(changed[""]) == {""}
    tuning = report.load("tables", "table_tuning").make(evidence)
    assert tuning.shown.empty  # a variant that failed is no cell of a search


def test_a_variant_of_some_tasks_is_not_missed_on_the_others_and_has_its_own_panel(ablation: Evidence) -> None:
    runs = [run for run in ablation.results if run.cell != "pattern-1-4" or run.task == "stsb"]
    everywhere = replace(ablation, results=runs)
    limited = replace(everywhere, variant_tasks={"asp_plus/pattern-1-4": ["stsb"]})
    make = report.load("tables", "table_ablation").make
    assert "No result yet: ASP+, pattern 1 4, on CoLA." in make(everywhere).notes
    assert "No result yet" not in " ".join(make(limited).notes)
    shown = make(limited).shown
    assert list(shown[shown["Variant"] == "pattern 1 4"]["Task"]) == ["STS-B"]
    *_, below = report.load("figures", "ablation").draw(limited).axes
    assert below.get_title() == "Other patterns, STS-B"
    assert below.get_xlabel() == "Spearman × 100"
    dense = facts.task_score(ablation.results, "dense", "stsb")
    assert [line.get_xdata()[0] for line in below.get_lines() if line.get_linestyle() == "--"] == [dense.mean]


def test_tables_say_which_values_are_not_the_grids_best(one: Evidence) -> None:
    text = facts.selection_phrase(replace(one, selection="heldout"))
    assert text.endswith("Not so ASP on STS-B and NxM on STS-B: their values are not (or not yet) the grid's best.")
    best = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"learning_rate": 0.0003}})
        if run.cell is None
        else run
        for run in one.results
    ]
    assert "Not so" not in facts.selection_phrase(replace(one, selection="heldout", results=best))
    assert "Not so" not in facts.selection_phrase(one)  # nothing was searched for


def test_the_ablation_figure_has_changes_left_and_rivals_and_other_patterns_right(ablation: Evidence) -> None:
    left, right, below = report.load("figures", "ablation").draw(ablation).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["no teacher", "permuted"]  # the costlier above
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["Dense", "Dense+", "NxM+", "ASP+", "GMP+", "SR-STE+"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["1:4, ASP+"]
    assert _faces(below, "asp_plus") == [style.look("asp_plus").color]
    weighed = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"importance": "activations"}})
        if run.cell == "pattern-1-4"
        else run
        for run in ablation.results
    ]
    *_, below = report.load("figures", "ablation").draw(replace(ablation, results=weighed)).axes
    assert [label.get_text() for label in below.get_yticklabels()] == ["1:4, ASP+, activations"]
    assert _faces(below, "asp_plus") == ["white"]  # a variant in more than its pattern
    own = [run for run in ablation.results if run.cell != "pattern-1-4"]
    assert len(report.load("figures", "ablation").draw(replace(ablation, results=own)).axes) == 2
    own = [run for run in own if run.method != "nxm_plus" or run.cell is None]
    (alone,) = report.load("figures", "ablation").draw(replace(ablation, results=own)).axes  # no change has run yet
    assert [label.get_text() for label in alone.get_yticklabels()] == names
    # the interval of the second one holds zero
    assert _faces(left, "nxm_plus") == [style.look("nxm_plus").color, "white"]


def test_the_ablation_figure_names_the_tasks_that_its_mean_is_over(ablation: Evidence) -> None:
    assert "Geometric mean over CoLA and STS-B." in texts(report.load("figures", "ablation").draw(ablation))
    lacking = [run for run in ablation.results if run.method != "nxm_plus" or run.task != "cola"]  # not run there yet
    assert "Geometric mean" not in texts(report.load("figures", "ablation").draw(replace(ablation, results=lacking)))


def _faces(axes: Axes, method: str) -> list[str]:
    """The colours that a method's marks are filled with."""
    return [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == style.look(method).marker]


def test_a_variant_is_no_whole_run_and_no_cell_of_a_search(ablation: Evidence) -> None:
    assert facts.task_score(ablation.results, "nxm_plus", "stsb").values == tuple(84.0 * 0.99 + seed for seed in (1, 2))
    assert facts.task_score(ablation.results, "nxm_plus/permuted", "stsb").mean == pytest.approx(84.0 * 0.991 + 1.5)
    assert facts.grid_cells(ablation.results) == []


def test_the_tuning_table_marks_the_best_and_what_is_in_force(one: Evidence) -> None:
    table = report.load("tables", "table_tuning").make(one)
    shown = table.shown
    assert set(shown.loc[shown["In force"] == "yes", "Learning rate"]) == {"9e-5"}
    for score in ("Dev", "Held out"):
        assert set(shown.loc[shown[score].str.startswith("**"), "Learning rate"]) == {"3e-4"}
    assert len(shown) == 6
    assert r"\textbf{" in table.latex("x")
    assert "**" not in table.latex("x")


def test_the_tuning_table_marks_a_cell_that_failed(one: Evidence) -> None:
    failure = make_failure(method="asp")
    shown = report.load("tables", "table_tuning").make(replace(one, failures=[failure])).shown
    row = shown[shown["Learning rate"] == "1"].iloc[0]
    assert (row["Dev"], row["Held out"]) == (facts.ABSENT, facts.ABSENT)
    assert row["Failed"] == "the loss became nan at step 3"


def drawn(shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(70 + shift, 0.5, size=(1000, 1)).astype(np.float32)


def test_the_comparison_has_an_interval_where_there_are_draws_and_says_whether_it_excludes_zero(one: Evidence) -> None:
    table = report.load("tables", "table_comparison").make(one)
    assert set(table.shown["Excludes 0"]) == {facts.ABSENT}
    bootstrap = {"stsb": {"nxm": drawn(5, 0), "asp": drawn(0, 1), "dense": drawn(5, 2)}}
    shown = report.load("tables", "table_comparison").make(replace(one, bootstrap=bootstrap)).shown
    verdicts = dict(zip(zip(shown["Method"], shown["Against"], strict=True), shown["Excludes 0"], strict=True))
    assert verdicts["NxM", "ASP"] == "yes"
    assert verdicts["NxM", "Dense"] == "no"


def test_the_interval_of_a_geometric_mean_is_narrower_than_a_tasks(many: Evidence) -> None:
    tasks = ["stsb", "cola"]
    results = [run for run in many.results if run.task in tasks]
    bootstrap = {task: {"nxm": drawn(5, k), "asp": drawn(0, k + 9)} for k, task in enumerate(tasks)}
    evidence = Evidence("several", results, None, bootstrap)
    assert facts.difference(evidence, "nxm", "asp", tasks).value == pytest.approx(
        paper.geometric_mean(facts.task_score(results, "nxm", task).mean for task in tasks)
        - paper.geometric_mean(facts.task_score(results, "asp", task).mean for task in tasks)
    )
    single, mean = (facts.difference(evidence, "nxm", "asp", group) for group in (["stsb"], tasks))
    assert mean.high - mean.low < 0.9 * (single.high - single.low)


def test_without_tuning_runs_the_table_says_so() -> None:
    table = report.load("tables", "table_tuning").make(Evidence("embedded", [make_result()], None))
    assert table.shown.empty
    assert "has no grid" in " ".join(table.notes)


def test_a_new_method_is_shown_before_it_has_a_label() -> None:
    runs = [make_result(method="dense"), make_result(method="holoformer")]
    assert "holoformer" in set(report.load("tables", "table1").make(Evidence("embedded", runs, None)).shown["Method"])
    assert "holoformer" in texts(report.load("figures", "summary").draw(Evidence("embedded", runs, None)))


def test_table_3_counts_the_cells_that_each_method_had(one: Evidence) -> None:
    shown = report.load("tables", "table3").make(one).shown
    cells = dict(zip(shown["Method"], shown["Cells tried"], strict=True))
    assert (cells["NxM"], cells["ASP"], cells["Dense"]) == ("3", "3", "0")


def test_table_3_tells_the_extras_of_nxm_plus_where_a_study_has_it(one: Evidence, ablation: Evidence) -> None:
    table = report.load("tables", "table3").make(ablation)
    own = table.shown.set_index("Method").loc["NxM+"]
    assert set(own["Noise"]) == {"0.3"}
    assert set(own["Dropout"]) == {"0"}
    assert "noise (the share" in " ".join(table.notes)
    plain = report.load("tables", "table3").make(one)
    assert not {"Noise", "Dropout", "Start"} & set(plain.shown)
    assert "noise" not in " ".join(plain.notes)


def test_what_a_run_computed_in_is_said_where_it_was_not_fp32() -> None:
    run = make_result()
    autocast = run.model_copy(update={"provenance": run.provenance.model_copy(update={"precision": "bf16"})})
    plain = facts.machine_phrase([run])
    assert facts.machine_phrase([autocast]) == f"{plain[:-1]}, bf16 autocast."
    assert facts.machine_phrase([run, autocast]).count(";") == 1
    assert "autocast" not in plain


def test_the_speed_ups_that_the_paper_cites_are_drawn() -> None:
    low, high = np.log2(paper.MATMUL_SPEEDUP)
    figure = report.load("figures", "matrices").draw(Evidence("embedded", [], None, matrices=make_matrices()))
    bars = [
        line.get_xdata() for axes in figure.axes for line in axes.lines if axes.get_xlabel() == "Speed-up over dense"
    ]
    assert any(np.allclose(bar, (low, high)) for bar in bars)

    files = make_deployment()
    figure = report.load("figures", "deployment").draw(Evidence("embedded", [], None, deployment=files))
    dense = 2.0 + 8.0 * 32  # ms, in fp32 on the CPU; the GPU has 2:4 kernels in bf16, there 20 times faster
    for axes, reference in zip(figure.axes[::2], (dense, dense / 20), strict=True):
        (band,) = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((reference / 1.6, reference / 1.3))
    assert "Band: dense PyTorch fp32 and PyTorch bf16" in texts(figure)
    for file in files:
        file["rows"] = [row for row in file["rows"] if row["model"] != "dense"]
    figure = report.load("figures", "deployment").draw(Evidence("embedded", [], None, deployment=files))
    assert "Band:" not in texts(figure)


def test_energy_is_a_column_only_where_a_device_told_it(one: Evidence) -> None:
    make = report.load("tables", "table_cost").make
    assert "GPU energy (kJ)" not in make(one).shown
    assert "Energy is counted by GPUs alone." in make(one).notes
    results = [run.model_copy(update={"energy_joules": 4_200.0}) if run.method == "nxm" else run for run in one.results]
    table = make(replace(one, results=results)).shown
    told = dict(zip(table["Method"], table["GPU energy (kJ)"], strict=True))
    assert told["NxM"] == "4.2"
    assert told["Dense"] == "–"


def test_the_cost_of_the_search_counts_its_failures_and_no_sweep(one: Evidence) -> None:
    make = report.load("tables", "table_cost").make
    assert "Search (cells)" not in make(Evidence("embedded", [make_result(), make_result(cell="rho0.1")], None)).shown
    cells = [make_result(cell=name) for name in ("lr0.0001", "lr0.0003", "rho0.1")]
    failure = make_failure(seed=0)
    table = make(Evidence("embedded", [make_result(), *cells, make_result(method="dense")], None, failures=[failure]))
    searched = dict(zip(table.shown["Method"], table.shown["Search (cells)"], strict=True))
    assert searched == {"Dense": "–", "NxM": "3"}
    minutes = dict(zip(table.shown["Method"], table.shown["Search (min)"], strict=True))
    assert minutes["NxM"] == f"{(sum(run.wall_seconds for run in cells[:2]) + 90.0) / 60:.1f}"


def test_a_collapsed_seed_is_never_left_out_of_a_mean() -> None:
    runs = [
        make_result(task="cola", method="asp", seed=seed, score=score) for seed, score in enumerate((5.0, 0.0, 3.0))
    ]
    assert facts.average_score(runs, "asp", ["cola"]).mean == pytest.approx(8 / 3)
    runs += [make_result(task="stsb", method="asp", seed=seed, score=80.0) for seed in range(3)]
    average = facts.average_score(runs, "asp", ["cola", "stsb"])
    assert average.mean == pytest.approx((8 / 3 * 80.0) ** 0.5)
    assert average.values == pytest.approx((400.0**0.5, 0.0, 240.0**0.5))
    assert facts.collapsed_phrase(runs).endswith("for a score of 0 or less: ASP on CoLA, seed 1.")
    assert not facts.collapsed_phrase(run for run in runs if run.task == "cola")


@pytest.mark.parametrize("rival", [0.0, -2.0])
def test_a_rival_that_collapsed_is_still_compared_with(rival: float) -> None:
    """As after an hour on CoLA: a difference and its interval are there, what is kept of nothing is not."""
    scores = {("cola", "nxm"): 9.0, ("cola", "asp"): rival, ("stsb", "nxm"): 84.0, ("stsb", "asp"): 80.0}
    runs = [make_result(task=task, method=method, score=score) for (task, method), score in scores.items()]
    draws = np.linspace(-3.0, 3.0, 101, dtype=np.float32)[:, None]
    bootstrap = {task: {m: scores[task, m] + draws for m in ("nxm", "asp")} for task in ("cola", "stsb")}
    evidence = Evidence("embedded", runs, None, bootstrap)
    for tasks, expected in ((["cola"], 9.0 - rival), (["cola", "stsb"], (9.0 * 84.0) ** 0.5)):
        difference = facts.difference(evidence, "nxm", "asp", tasks)
        assert difference.value == pytest.approx(expected)
        assert difference.certain
        assert facts.kept(evidence, "nxm", "asp", tasks) is None
    shown = report.load("tables", "table_comparison").make(evidence).shown
    assert list(shown["Kept in % [95 %]"]) == ["–", shown["Kept in % [95 %]"].iloc[1], "–"]
    assert list(shown["Task"]) == ["CoLA", "STS-B", "Geo. mean"]
    table = report.load("tables", "table1").make(evidence)
    assert list(table.shown[table.shown["Method"] == "ASP"]["Geo. mean"]) == ["0.0"]
    assert any("score of 0 or less: ASP on CoLA" in note for note in table.notes)
    figure = report.load("figures", "summary").draw(replace(evidence, results=[*runs, *dense_runs()]))
    assert kept_drawn(figure, "Geometric mean", "asp") == [0.0]
    assert kept_drawn(figure, "Geometric mean", "nxm") == [pytest.approx(100 * (9.0 * 84.0) ** 0.5 / 60.0)]


def kept_drawn(figure: Figure, panel: str, method: str) -> list[float]:
    """Where a panel of the summary has the large markers of a method."""
    figure.draw_without_rendering()
    axes = next(axes for axes in figure.axes if axes.get_title() == panel)
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index(facts.METHODS[method])
    lines = [line for line in axes.get_lines() if line.get_markersize() == 7]
    return [line.get_xdata()[0] for line in lines if line.get_ydata()[0] == row]


def dense_runs() -> list[Result]:
    return [make_result(task=task, method="dense", score=60.0) for task in ("cola", "stsb")]


def test_what_params_no_longer_names_is_no_evidence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)  # seed 0, the cells rho1.0 and paper rho0.006
    for run in (
        make_result(seed=0),
        make_result(seed=5),
        make_result(seed=0, cell="rho1.0"),
        make_result(seed=0, cell="rho0.1"),
        make_result(seed=0, cell="lr9e-05"),
        make_result(task="rte", seed=0),
    ):
        write_result(result_path(tmp_path, run.study, run.task, run.method, run.seed, run.cell), run)
    found = report.read_evidence(tmp_path, "embedded").results
    assert [(run.task, run.cell, run.seed) for run in found] == [("stsb", None, 0), ("stsb", "rho1.0", 0)]


def test_tables_say_when_values_were_selected_on_dev(one: Evidence) -> None:
    said = report.load("tables", "table1").make(replace(one, selection="dev")).markdown()
    assert "By a grid on these same dev rows, as in the paper (optimistic): the learning rate of ASP and NxM" in said


def tried(method: str, rate: float, dev: float, heldout: float) -> Result:
    """A cell of a grid over learning rates."""
    run = make_result(method=method, seed=100, cell=f"lr{rate:g}", score=dev, learning_rate=rate)
    return run.model_copy(update={"heldout": run.metric.model_copy(update={"value": heldout})})


def test_tuning_names_what_is_in_force_at_an_edge() -> None:
    cells = [tried("nxm", rate, 80.0, 80.0) for rate in (1e-4, 2e-4, 3e-4)]
    for rate, said in ((1e-4, True), (2e-4, False), (3e-4, True)):
        final = make_result(seed=0, learning_rate=rate)
        table = report.load("tables", "table_tuning").make(Evidence("embedded", [*cells, final], None))
        assert (
            f"at the edge of what was tried: NxM on STS-B (learning rate {facts.plain(rate)})" in table.markdown()
        ) == said


def test_held_out_differences_are_of_the_geometric_mean_too() -> None:
    results = []
    for task, method, value in (
        ("cola", "nxm", 20.0),
        ("stsb", "nxm", 80.0),
        ("cola", "asp", 5.0),
        ("stsb", "asp", 45.0),
    ):
        run = make_result(task=task, method=method)
        results.append(run.model_copy(update={"heldout": run.metric.model_copy(update={"value": value})}))
    evidence = Evidence("embedded", results, None)
    assert facts.heldout_difference(evidence, "nxm", "asp", ["cola", "stsb"]) == pytest.approx(40.0 - 15.0)
    assert facts.heldout_difference(evidence, "nxm", "asp", ["cola"]) == 15.0
    assert facts.heldout_difference(evidence, "nxm", "dense", ["cola", "stsb"]) is None


def test_the_cost_of_all_tasks_has_all_runs_cells_and_sweeps(many: Evidence) -> None:
    numbers = report.load("tables", "table_cost").make(many).numbers
    everything = numbers[numbers["task"] == "all"]
    records = [*many.results, *many.failures]
    assert everything["all_seconds"].sum() == pytest.approx(sum(record.wall_seconds or 0.0 for record in records))
    by_task = numbers[numbers["task"] != "all"].groupby("method")["all_seconds"].sum()
    assert everything.set_index("method")["all_seconds"].to_dict() == pytest.approx(by_task.to_dict())


def test_a_constant_answer_stands_in_table_1_where_it_is_worth_something() -> None:
    runs = [make_result(task=task, method=method) for task in ("mrpc", "stsb") for method in ("dense", "nxm")]
    table = report.load("tables", "table1")
    shown = table.make(Evidence("embedded", runs, None, floors={"mrpc": 81.2, "stsb": 0.0})).shown.set_index("Method")
    assert list(shown.loc["Always one answer", ["MRPC", "STS-B", "Geo. mean"]]) == ["81.2", "0.0", "0.0"]
    of_stsb = [run for run in runs if run.task == "stsb"]
    assert "Always" not in table.make(Evidence("embedded", of_stsb, None, floors={"stsb": 0.0})).markdown()


def test_a_long_table_may_break_over_pages() -> None:
    rows = pd.DataFrame({"Method": ["NxM"] * 60})
    long, short = (Table("Table 9. Rows", rows.head(count), rows, ("A note.",)).latex("rows") for count in (60, 5))
    assert r"\end{longtable}" in long
    assert r"\begin{table}" not in long
    assert r"\begin{table}" in short
    assert all("{\\footnotesize A note.}" in text for text in (long, short))


def test_selection_shows_both_choices_by_the_same_seeds_and_the_final_runs(one: Evidence) -> None:
    """The cell that is best on dev is another than the one best on held-out rows."""
    cells = [
        tried(method, rate, dev, heldout)
        for method, rate, dev, heldout in (
            ("dense", 1e-4, 84.0, 86.0),
            ("dense", 2e-4, 85.0, 83.0),
            ("nxm", 1e-4, 80.0, 79.0),
            ("nxm", 2e-4, 78.0, 82.0),
        )
    ]
    final = [
        make_result(method=method, seed=seed, score=score + seed)
        for method, score in (("dense", 83.0), ("nxm", 77.0))
        for seed in (0, 1, 2)
    ]
    table = report.load("tables", "table_selection").make(
        Evidence("embedded", [*cells, *final], None, selection="heldout")
    )
    numbers = table.numbers.set_index("method")
    assert list(numbers.loc["dense", ["best_on_dev", "best_held_out", "final"]]) == [85.0, 84.0, 84.0]
    assert list(numbers.loc["nxm", ["best_on_dev", "best_held_out", "final"]]) == [80.0, 78.0, 78.0]
    assert list(table.shown["STS-B"]) == ["85.0", "84.0", "84.0 ± 1.0", "80.0", "78.0", "78.0 ± 1.0"]
    assert list(table.shown["Kept of dense"])[3:] == [f"{100 * part:.1f} %" for part in (80 / 85, 78 / 84, 78 / 84)]


def test_scores_and_courses_hold_what_the_results_hold(many: Evidence) -> None:
    found = json.loads(scores.scores(many))
    assert list(found) == ["mnli", "cola", "stsb", "geometric_mean"]
    assert found["stsb"]["nxm"] == round(facts.task_score(many.results, "nxm", "stsb").mean, 2)
    course = pd.read_csv(StringIO(scores.courses(many)))
    row = course[(course["task"] == "cola") & (course["method"] == "asp") & (course["epoch"] == 10)]
    assert row["score"].item() == pytest.approx(facts.task_score(many.results, "asp", "cola").mean, abs=0.01)
    assert scores.scores(EMPTY) == "{}\n"


# --- stages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "known"), [("figures", FIGURES), ("tables", TABLES)])
def test_an_unknown_name_lists_the_known_ones(kind: report.Kind, known: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        report.load(kind, "figure9")
    assert all(name in str(caught.value) for name in ("figure9", *known))


def test_the_names_are_those_of_the_paper_and_ours() -> None:
    figures = [f"figure{n}" for n in (1, 2, 3, 4)]
    assert ["ablation", "deployment", "dynamics", *figures, "latency", "matrices", "summary"] == FIGURES
    extra = ["ablation", "comparison", "cost", "deployment", "matrices", "selection", "tuning"]
    assert ["table1", "table2", "table3", *(f"table_{name}" for name in extra)] == TABLES


def stage(script: str, *arguments: str) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    def launch(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "stages" / script), *arguments]
        environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(folder), "PATH": ""}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return launch


def test_a_stage_writes_its_outputs_where_dvc_expects_them(tmp_path: Path) -> None:
    params = str(ROOT / "params.yaml")
    study = load_study(params).study
    make_study(tmp_path, study)
    done = stage("table.py", "--params", params, "--name", "table1")(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(StringIO((tmp_path / "paper_tables" / study / "table1.csv").read_text()))
    assert set(table["column"]) == {"stsb"}
    done = stage("figure.py", "--params", params, "--name", "figure4")(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "figures" / study).iterdir()} == {"figure4.pdf", "figure4.png"}
    here = style.render(
        report.load("figures", "figure4").draw, report.read_evidence(tmp_path, study), tmp_path / "here"
    )
    for path in here:  # another process, the same bytes
        assert path.read_bytes() == (tmp_path / "figures" / study / f"figure4{path.suffix}").read_bytes()


def test_a_stage_given_an_unknown_name_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = stage("figure.py", "--params", "params.yaml", "--name", "figure9")(tmp_path)
    assert done.returncode == 1
    assert "figure2" in done.stderr
    assert "Traceback" not in done.stderr
