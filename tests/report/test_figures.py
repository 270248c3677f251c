"""Figures: made from results alone, whatever exists of them, and the same to the byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from PIL import Image

from nxm import report
from nxm.report import labels, paper, published, statistics, style
from nxm.report.evidence import Evidence
from nxm.report.figures.tradeoff import front
from nxm.study.plan import Training
from records import record
from synthetic_study import (
    ALLOCATED,
    EMPTY,
    make_allocated,
    make_bench,
    make_benchmark,
    make_deployment,
    make_integers,
    make_result,
    texts_of,
)

FIGURES = report.known("figures")


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
    assert "Study several" in texts_of(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_study_gives_a_figure_that_says_so_and_no_number(name: str) -> None:
    figure = report.load("figures", name).draw(EMPTY)
    assert re.search(r"Study empty has (no|results neither)", texts_of(figure))
    assert not re.search(r"\d\d\.\d", texts_of(figure))


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_at_least_eight_points(name: str, one: Evidence) -> None:
    with matplotlib.rc_context(style.RC):
        figure = report.load("figures", name).draw(one)
    figure.draw_without_rendering()
    written = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and str(artist.get_text()).strip())
    assert min(artist.get_fontsize() for artist in written if artist.get_visible()) >= 8


@pytest.mark.parametrize("values", [[0.99996, 0.9999], [0.99985, 1.0], [0.5, 1.0], [0.985, 0.9867], [0.52]])
def test_an_axis_of_similarities_has_at_least_two_numbers_and_room_for_the_values(values: list[float]) -> None:
    axes = Figure().add_subplot()
    style.similarity_scale(axes, "y", values)
    low, high = axes.get_ylim()
    assert low < min(style.drawable_similarity(value) for value in values)
    assert high > max(style.drawable_similarity(value) for value in values)
    assert len([tick for tick in axes.yaxis.get_major_locator()() if low <= tick <= high]) >= 2


def test_every_run_has_a_unique_look_in_colour_and_in_grey() -> None:
    looks = list(labels.RUNS.values())
    assert len({look.marker for look in looks}) == len({look.color for look in looks}) == len(looks)
    assert all(MarkerStyle(look.marker).is_filled() for look in looks)  # seaborn draws no others beside them
    dashed = [look.dashes for look in looks if look is not labels.look("distil")]  # drawn as dense is: a grey of it
    assert len(set(dashed)) == len(dashed)


# --- integers --------------------------------------------------------------------------------------------------------


def test_bits_has_a_curve_for_recipes_of_several_widths_and_a_row_for_every_recipe_at_the_runs_own() -> None:
    figure = report.load("figures", "bits").draw(Evidence("holoformer", make_integers(), None))
    widths, recipes = figure.axes
    curves = {tuple(line.get_ydata()): line.get_xdata() for line in widths.get_lines() if len(line.get_xdata()) == 3}
    assert list(curves) == [(76.5, 82.5, 83.5)]  # HoloFormer: means of two seeds by bits
    scale = 16 * (5 * 384 + 1536) / (4 * 384**2 + 2 * 384 * 1536)  # bits of a row's scale, over its weights
    (x,) = curves.values()
    assert list(x / x[0]) == pytest.approx([1, (2.5 + scale) / (2 + scale), (3 + scale) / (2 + scale)])
    assert [text.get_text() for text in widths.get_legend().get_texts()] == ["HoloFormer", "NxM+, then QAT"]
    labelled = [text.get_text() for text in recipes.get_yticklabels()]
    assert labelled == ["HoloFormer", "NxM+, then QAT", "Rounded (without 2:4)"]
    shares = [line for line in widths.get_lines() if line.get_marker() == "D"]
    assert list(shares[0].get_ydata()) == pytest.approx([share / 100 * 83.5 for _, share in published.BITS])


def test_bits_has_points_of_runs_with_a_set_for_each_matrix_by_the_bits_they_take() -> None:
    mixed = [run for run in make_allocated() if run.name == "mixed"]
    figure = report.load("figures", "bits").draw(Evidence("holoformer", [*make_integers(), *mixed], None))
    bits: dict[str, float] = {}  # of the seed with the most, as in table_bits
    for run in mixed:
        assert run.allocation is not None
        bits[run.full_name] = max(bits.get(run.full_name, 0.0), run.allocation.bits)
    look = labels.look("mixed")
    (curve,) = [line for line in figure.axes[0].get_lines() if line.get_color() == look.color and len(line.get_xdata())]
    assert list(curve.get_ydata()) == [81.5, 83.5]
    ratio = max(bits.values()) / min(bits.values())
    assert curve.get_xdata()[1] / curve.get_xdata()[0] == pytest.approx(ratio, rel=1e-5)
    assert "mixed" not in [text.get_text() for text in figure.axes[1].get_yticklabels()]


# --- sensitivity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [6, 12])
def test_sensitivity_marks_the_set_of_every_matrix_on_the_rises(layers: int) -> None:
    results = make_allocated(layers)
    with matplotlib.rc_context(style.RC):
        figure = report.load("figures", "sensitivity").draw(Evidence("holoformer", results, None))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.images]
    expected = [run for name in ("mixed", "mixed/smaller") for run in results if (run.full_name, run.seed) == (name, 1)]
    assert len(panels) == len(expected) * layers // 6
    for place, run in enumerate(expected):
        assert run.allocation is not None
        own = panels[place * layers // 6 : (place + 1) * layers // 6]
        rises = np.concatenate([axes.images[0].get_array() for axes in own], axis=1)
        shown = [text.get_text() for text in own[0].get_yticklabels()]
        assert sorted(shown) == sorted(ALLOCATED)
        assert shown[-1] == "dense"  # by size, the largest on top
        marked = np.concatenate([axes.get_lines()[0].get_ydata() for axes in own])
        for column, matrix in enumerate(run.allocation.matrices):
            assert {choice: rises[row, column] for row, choice in enumerate(shown)} == matrix.rises
            assert shown[int(marked[column])] == matrix.choice
    text = texts_of(figure)
    assert all(word in text for word in ("Layer 1", f"Layer {layers}", "Query", "FFN 2", "of 4", "teacher's logits"))


def test_sensitivity_colours_grow_darker_with_the_rise() -> None:
    """So that the panel can be read in grey."""
    shades = matplotlib.colormaps[report.load("figures", "sensitivity").COLOURS](np.linspace(0, 1, 50))[:, :3]
    grey = shades @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(grey) < 0).all()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("bert.encoder.layer.2.attention.self.query.weight", ("3", "Query")),
        ("bert.encoder.layer.0.attention.output.dense.weight", ("1", "Output")),
        ("bert.encoder.layer.0.output.dense.weight", ("1", "FFN 2")),
        ("distilbert.transformer.layer.11.ffn.lin1.weight", ("12", "FFN 1")),
        ("mpnet.encoder.layer.1.attention.attn.o.weight", ("2", "Output")),
        ("model.layers.4.mlp.up_proj.weight", ("5", "mlp up_proj")),
        ("head.weight", ("", "head")),
    ],
)
def test_matrices_have_labels_in_words(name: str, label: tuple[str, str]) -> None:
    assert labels.matrix_label(name) == label


# --- structured pruning ----------------------------------------------------------------------------------------------


def test_structure_shows_heads_and_rows_by_layer_and_the_course_to_the_budget() -> None:
    course = [{"step": 10, "share": 0.6}, {"step": 20, "share": 0.2}]
    pruning = {"budget": 0.25, "share": 0.2, "cost": "weights", "units": "heads_rows", "course": course}
    sizes = {"heads": [3, 12], "rows": [264, 8], "dense_heads": 12, "dense_rows": 1536, "share": 0.198}
    other = sizes | {"heads": [5, 12]}
    results = [
        record(Training("stsb", "cut20", 1), structure=sizes | {"pruning": pruning}),
        record(Training("stsb", "cut20", 2), structure=other | {"pruning": pruning}),
        record(Training("stsb", "cut50_nxm", 1), structure=sizes | {"pruning": None}),  # pruned by its start
    ]
    heads, rows, course_axes = report.load("figures", "structure").draw(Evidence("structured", results, None)).axes
    assert [tuple(line.get_ydata()) for line in heads.get_lines()] == [(4, 12)]
    assert [tuple(line.get_ydata()) for line in rows.get_lines()] == [(264, 8)]
    steps, budget = course_axes.get_lines()
    assert list(steps.get_xdata())[:3] == [0, 10, 20]
    assert list(steps.get_ydata()) == [100, 60, 20, 20]
    assert set(budget.get_ydata()) == {25}


# --- figures of the paper --------------------------------------------------------------------------------------------


def test_figure_3_names_each_point_by_its_rho(one: Evidence) -> None:
    written = texts_of(report.load("figures", "figure3").draw(one)).split()
    for rho in ("0.05", "0.15", "0.35", "0.7", "0.9", "0.003", "0.006", "0.01"):
        assert rho in written


def test_figure_3_takes_from_a_search_the_trials_that_differ_in_rho_alone() -> None:
    runs = [make_result(), make_result(trial="lr9e-05-rho0.77", rho=0.77)]
    runs.append(make_result(trial="lr0.0003-rho0.55", rho=0.55, learning_rate=3e-4))
    written = texts_of(report.load("figures", "figure3").draw(Evidence("embedded", runs, None))).split()
    assert "0.77" in written
    assert "0.55" not in written


def test_figure_3_states_that_rho_was_not_swept() -> None:
    figure = report.load("figures", "figure3").draw(Evidence("embedded", [make_result()], None))
    assert "No sweep over ρ in this study for: NxM (decoupled step); NxM, paper's recipe." in texts_of(figure)


def test_figure_4_shows_the_ratio_that_was_counted(one: Evidence) -> None:
    axes = report.load("figures", "figure4").draw(one).axes[0]
    assert "NxM, all weights" in [text.get_text() for text in axes.get_legend().get_texts()]
    marker = next(
        mark for mark in axes.get_legend().legend_handles if mark.get_label() == "NxM, all weights"
    ).get_marker()
    all_weights = next(line for line in axes.get_lines() if line.get_marker() == marker)
    assert all_weights.get_ydata()[:3] == pytest.approx([100.0, 86.0, 73.96], abs=0.01)


# --- summary ---------------------------------------------------------------------------------------------------------


def retention_drawn(figure: Figure, panel: str, run: str) -> list[float]:
    """The positions of a run's large markers in a panel of the summary."""
    figure.draw_without_rendering()
    axes = next(axes for axes in figure.axes if axes.get_title() == panel)
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index(labels.run_label(run))
    look = labels.look(run)
    lines = [line for line in axes.get_lines() if (line.get_marker(), line.get_color()) == (look.marker, look.color)]
    points = [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return [float(x) for x, y in points if y == row and np.isfinite(x)]


def test_the_summary_names_runs_without_results() -> None:
    runs = [make_result(run=run) for run in ("dense", "asp")]
    written = texts_of(report.load("figures", "summary").draw(Evidence("embedded", runs, None)))
    assert "no results" in written
    assert "No results file: ADMM, unstructured on STS-B; NxM on STS-B" in written


def test_a_new_run_is_shown_before_it_has_a_label() -> None:
    runs = [make_result(run="dense"), make_result(run="a_new_one")]
    assert "a_new_one" in texts_of(report.load("figures", "summary").draw(Evidence("embedded", runs, None)))


def test_the_summary_shows_a_run_that_collapsed_at_0(collapsed: Evidence) -> None:
    dense = [make_result(task=task, run="dense", score=60.0) for task in ("cola", "stsb")]
    figure = report.load("figures", "summary").draw(replace(collapsed, results=[*collapsed.results, *dense]))
    assert retention_drawn(figure, "Geometric mean", "asp") == [0.0]
    assert retention_drawn(figure, "Geometric mean", "nxm") == [pytest.approx(100 * (9.0 * 84.0) ** 0.5 / 60.0)]


# --- ablation --------------------------------------------------------------------------------------------------------


def faces(axes: Axes, run: str) -> list[str]:
    """The colours that a run's marks are filled with."""
    return [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == labels.look(run).marker]


def test_the_ablation_figure_has_changes_left_and_rivals_and_other_patterns_right(ablation: Evidence) -> None:
    left, right, below = report.load("figures", "ablation").draw(ablation).axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "without teacher",
        "permuted channels",
    ]  # the costlier above
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["Dense", "Dense+", "NxM+", "ASP+", "GMP+", "SR-STE+"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["ASP+ at 1:4"]
    assert faces(below, "asp_plus") == [labels.look("asp_plus").color]
    weighted = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"importance": "activations"}})
        if run.variant == "pattern-1-4"
        else run
        for run in ablation.results
    ]
    *_, below = report.load("figures", "ablation").draw(replace(ablation, results=weighted)).axes
    assert [label.get_text() for label in below.get_yticklabels()] == ["ASP+ at 1:4"]
    assert faces(below, "asp_plus") == ["white"]  # a variant in more than its pattern
    own = [run for run in ablation.results if run.variant != "pattern-1-4"]
    assert len(report.load("figures", "ablation").draw(replace(ablation, results=own)).axes) == 2
    own = [run for run in own if run.name != "nxm_plus" or run.whole]
    (alone,) = report.load("figures", "ablation").draw(replace(ablation, results=own)).axes  # no change has run yet
    assert [label.get_text() for label in alone.get_yticklabels()] == names
    # the interval of the second one holds zero
    assert faces(left, "nxm_plus") == [labels.look("nxm_plus").color, "white"]


def test_the_ablation_figure_names_the_tasks_that_its_mean_is_over(ablation: Evidence) -> None:
    assert "Geometric mean over CoLA and STS-B." in texts_of(report.load("figures", "ablation").draw(ablation))
    lacking = [run for run in ablation.results if run.name != "nxm_plus" or run.task != "cola"]  # not run there yet
    assert "Geometric mean" not in texts_of(report.load("figures", "ablation").draw(replace(ablation, results=lacking)))


def test_the_ablation_figure_names_what_a_variant_is_compared_with(ablation: Evidence) -> None:
    other = {"nxm_plus/no-teacher": "asp_plus/pattern-1-4"}
    evidence = replace(ablation, variants=ablation.variants | other)
    left, *_ = report.load("figures", "ablation").draw(evidence).axes
    assert "without teacher\nvs. at 1:4" in [label.get_text() for label in left.get_yticklabels()]


def test_other_patterns_of_some_tasks_have_a_panel_of_those(ablation: Evidence) -> None:
    runs = [run for run in ablation.results if run.variant != "pattern-1-4" or run.task == "stsb"]
    limited = replace(ablation, results=runs, variant_tasks={"asp_plus/pattern-1-4": ["stsb"]})
    *_, below = report.load("figures", "ablation").draw(limited).axes
    assert below.get_title() == "Other patterns, STS-B"
    assert below.get_xlabel() == "Spearman × 100"
    dense = statistics.task_score(ablation.results, "dense", "stsb")
    assert [line.get_xdata()[0] for line in below.get_lines() if line.get_linestyle() == "--"] == [dense.mean]


# --- speed -----------------------------------------------------------------------------------------------------------


def test_latency_has_a_panel_for_each_device_and_precision_and_states_what_is_absent() -> None:
    figure = report.load("figures", "latency").draw(
        Evidence("embedded", [], make_benchmark(), deployment=make_deployment())
    )
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.subfigs[0].axes]
    assert titles == [f"(a) Inference on {what}" for what in ("CPU, fp32", "CPU, bf16", "CUDA, fp32", "CUDA, bf16")]
    assert "NxM (2:4 kernels): no 2:4 kernel for cpu." in texts_of(figure)
    (legend,) = figure.subfigs[0].legends
    entries = {text.get_text(): mark for text, mark in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert {name for name, mark in entries.items() if mark.get_markerfacecolor() == "white"} == {
        name for name in entries if "(2:4 kernels)" in name
    }
    assert {"Dense", "NxM", "NxM (2:4 kernels)"} <= entries.keys()
    faces = [{line.get_markerfacecolor() for line in axes.get_lines()} for axes in figure.subfigs[0].axes]
    assert ["white" in own for own in faces] == [False, False, False, True]


def test_products_show_the_fastest_2of4_kernel_and_the_dense_rate_and_mark_what_is_noisy_or_was_not_sparse() -> None:
    evidence = Evidence("embedded", [], None, bench=make_bench())
    figure = report.load("figures", "products").draw(evidence)
    panels = [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.texts]
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes if axes.texts]
    assert titles == ["CPU, FP32: masked", "CPU, BF16: masked", "GPU, BF16: 2:4"]
    assert panels[0] == ["~0.99\n500", "0.99\n500", "0.99\n500", "0.99\n500"]
    assert panels[2] == ["~†1.30\n500", "1.62\n500", "1.30\n500", "1.62\n500"]
    assert "†: the profiler saw no sparse kernel." in texts_of(figure)


def test_encoders_are_drawn_where_they_were_measured_whichever_call_it_was() -> None:
    figure = report.load("figures", "encoders").draw(Evidence("embedded", [], None, bench=make_bench()))
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") or axes.get_title()]
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.get_lines() if line.get_marker() not in ("None", ""))
    assert drawn == [1.0, 1.1, 1.25]  # not the form that the host launches
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BF16", "FP8"]


def test_encoders_without_the_usual_rival_are_drawn_over_the_reference_that_their_rows_name() -> None:
    _, gpu = make_bench()
    kept = [row for row in gpu["rows"] if (row["part"], row.get("dtype")) == ("encoders", "fp8") and "reference" in row]
    gpu["rows"] = [row | {"reference": "fp32 dense captured"} for row in kept]
    figure = report.load("figures", "encoders").draw(Evidence("embedded", [], None, bench=[gpu]))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Speed-up over FP32 dense, captured"
    assert axes.get_title() == "BERT-base, 32 × 128 tokens"


def test_forms_mark_kernels_that_were_not_sparse_and_name_what_is_absent() -> None:
    evidence = Evidence("embedded", [], None, deployment=make_deployment())
    figure = report.load("figures", "deployment").draw(evidence)
    written = texts_of(figure)
    assert "In 2 rows of 2:4 kernels the profiler saw no sparse kernel." in written
    assert "Absent: compiled fp32 of Dense: no compiler." in written
    left = next(axes for axes in figure.axes if axes.get_title().startswith("CUDA: score"))
    assert len(left.get_lines()) == 4 + 4 + 2


def test_the_trade_off_has_a_point_for_each_model_and_the_front_of_the_best() -> None:
    results = [make_result(run=name) for name in ("dense", "nxm", "distil", "distil_nxm")]
    (file, _) = make_deployment()
    figure = report.load("figures", "tradeoff").draw(Evidence("embedded", results, None, deployment=[file]))
    left, right = figure.axes
    marks = [line for line in left.get_lines() if line.get_linestyle() == "None"]
    assert sorted(float(line.get_xdata()[0]) for line in marks) == [1.0, 1.0, 2.0, 2.0]
    assert sorted(text.get_text() for text in right.texts) == ["ONNX INT8"] * 4
    assert "MLPruning" not in texts_of(figure)  # no run of this study was shrunk
    nothing = report.load("figures", "tradeoff").draw(Evidence("embedded", results, None))
    assert "no scored form yet" in texts_of(nothing)


@given(st.lists(st.tuples(st.floats(1, 10), st.floats(0, 100)), min_size=1, max_size=12))
def test_the_front_has_every_point_that_no_other_beats(points: list[tuple[float, float]]) -> None:
    beaten = {a for a in points for b in points if b != a and b[0] >= a[0] and b[1] >= a[1]}
    assert front(points) == sorted(set(points) - beaten)


def test_a_device_that_was_absent_is_named_with_the_reason() -> None:
    absent = {"study": "embedded", "device": "cuda", "absent": "no CUDA device where this was run", "rows": []}
    evidence = Evidence("embedded", [], None, deployment=[absent | {"scores": []}])
    figure = report.load("figures", "deployment").draw(evidence)
    assert "CUDA: no CUDA device where this was run." in texts_of(figure)


@pytest.mark.parametrize("name", ["products", "encoders"])
def test_a_study_without_a_bench_says_so(name: str) -> None:
    figure = report.load("figures", name).draw(Evidence("embedded", [], None))
    assert "measured yet" in texts_of(figure)


def test_the_speed_ups_that_the_paper_cites_are_drawn() -> None:
    low, high = np.log2(paper.MATMUL_SPEEDUP)
    figure = report.load("figures", "products").draw(Evidence("embedded", [], None, bench=make_bench()))
    bars = [
        line.get_xdata()
        for axes in figure.axes
        for line in axes.lines
        if axes.get_xlabel().startswith("Speed-up over dense (bar: the paper's range")
    ]
    assert any(np.allclose(bar, (low, high)) for bar in bars)

    files = make_deployment()
    figure = report.load("figures", "deployment").draw(Evidence("embedded", [], None, deployment=files))
    dense = 2.0 + 8.0 * 32  # ms, in fp32 on the CPU; the GPU has 2:4 kernels in bf16, there 20 times faster
    for axes, reference in zip(figure.axes[::2], (dense, dense / 20), strict=True):
        (band,) = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((reference / 1.6, reference / 1.3))
    assert "Band: the 1.3–1.6× of the paper (A100) over dense." in texts_of(figure)
    for file in files:
        file["rows"] = [row for row in file["rows"] if row["model"] != "dense"]
    figure = report.load("figures", "deployment").draw(Evidence("embedded", [], None, deployment=files))
    assert "Band:" not in texts_of(figure)
