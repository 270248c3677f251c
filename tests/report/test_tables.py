"""Tables: made from results alone, whatever exists of them, and the same to the byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nxm import report
from nxm.report import labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.page import blocks
from nxm.report.table import Table, write_table
from nxm.study.plan import Training
from nxm.study.results import Result
from nxm.study.settings import Study
from records import record
from synthetic_study import (
    EMPTY,
    PLUS,
    VARIANTS,
    make_allocated,
    make_bench,
    make_deployment,
    make_draws,
    make_failure,
    make_integers,
    make_result,
)

TABLES = report.known("tables")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("study", ["one", "many", "empty"])
def test_every_table_is_made_of_whatever_exists_the_same_to_the_byte(
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


def test_a_long_table_may_break_over_pages() -> None:
    rows = pd.DataFrame({"Run": ["NxM"] * 60})
    long, short = (Table("Table 9. Rows", rows.head(count), rows, ("A note.",)).latex("rows") for count in (60, 5))
    assert r"\end{longtable}" in long
    assert r"\begin{table}" not in long
    assert r"\begin{table}" in short
    assert all("{\\footnotesize A note.}" in text for text in (long, short))


# --- tables 1 to 3 ---------------------------------------------------------------------------------------------------


def test_table_1_has_the_papers_row_below_ours_over_the_same_tasks(many: Evidence) -> None:
    table = report.load("tables", "table1").make(many)
    rows = {(row["Run"], row[""]): row for row in table.shown.replace({"Run": {"": None}}).ffill().to_dict("records")}
    assert rows["NxM", "paper"]["MNLI-m"] == "82.3"
    mean = paper.average("nxm", ["mnli_m", "mnli_mm", "cola", "stsb"])
    assert rows["NxM", "paper"]["Geo. mean"] == f"{mean:.1f}"
    assert rows["NxM", "ours"]["STS-B"] == str(statistics.task_score(many.results, "nxm", "stsb"))
    assert rows["Dense", "ours"]["% of dense"] == "100.0"
    assert (
        "The paper's SST-2, QNLI, MRPC and RTE are not in this study: see studies/several/study.yaml."
        in table.markdown()
    )


def test_tables_state_sizes_seeds_selection_and_machine(one: Evidence) -> None:
    stated = {
        "table1": ("Study embedded: STS-B (sample); MiniLM-L6; seed 1.", "One seed: no spread."),
        "table3": ("seed 1.", "last epoch", "no epoch is selected"),
        "table_cost": ("1,500 of 5,749 training and 1,500 dev", "AMD EPYC, 2 cores"),
    }
    for name, pieces in stated.items():
        text = report.load("tables", name).make(one).markdown()
        assert [piece for piece in pieces if piece not in text] == []
    assert "STS-B (1,500 of 5,749 training and 1,500 dev examples)" in blocks.conditions(one)
    assert "AMD EPYC, 2 cores" in blocks.timing(one)


def test_tables_state_that_values_were_selected_on_dev(one: Evidence) -> None:
    text = report.load("tables", "table3").make(replace(one, selection="dev")).markdown()
    assert "By a grid on these same dev rows, as in the paper (optimistic): the learning rate of ASP and NxM" in text


def test_a_missing_run_is_a_note_and_not_a_number(one: Evidence) -> None:
    results = [run for run in one.results if run.name != "asp" or not run.whole]
    table = report.load("tables", "table1").make(Evidence("embedded", results, None))
    assert "ASP" not in set(table.shown["Run"])
    assert "No results file: ASP on STS-B." in table.notes


def test_a_constant_answer_is_in_table_1_where_its_score_is_above_0() -> None:
    runs = [make_result(task=task, run=run) for task in ("mrpc", "stsb") for run in ("dense", "nxm")]
    table = report.load("tables", "table1")
    shown = table.make(Evidence("embedded", runs, None, floors={"mrpc": 81.2, "stsb": 0.0})).shown.set_index("Run")
    assert list(shown.loc["Constant answer", ["MRPC", "STS-B", "Geo. mean"]]) == ["81.2", "0.0", "0.0"]
    of_stsb = [run for run in runs if run.task == "stsb"]
    assert "Constant answer" not in table.make(Evidence("embedded", of_stsb, None, floors={"stsb": 0.0})).markdown()


def test_a_new_run_is_in_table_1_before_it_has_a_label() -> None:
    runs = [make_result(run="dense"), make_result(run="a_new_one")]
    assert "a_new_one" in set(report.load("tables", "table1").make(Evidence("embedded", runs, None)).shown["Run"])


def test_table_2_prints_counted_parameters(one: Evidence) -> None:
    numbers = report.load("tables", "table2").make(one).numbers.set_index("run")
    assert numbers.loc["nxm", "parameters"] - numbers.loc["nxm", "nonzero_parameters"] == 6 * 1_769_472 // 2


def test_table_3_counts_the_trials_of_each_run(one: Evidence) -> None:
    shown = report.load("tables", "table3").make(one).shown
    trials = dict(zip(shown["Run"], shown["Trials"], strict=True))
    assert (trials["NxM"], trials["ASP"], trials["Dense"]) == ("3", "3", "0")


def test_table_3_has_the_extras_of_nxm_plus_where_a_study_has_it(one: Evidence, ablation: Evidence) -> None:
    table = report.load("tables", "table3").make(ablation)
    own = table.shown.set_index("Run").loc["NxM+"]
    assert set(own["Token noise"]) == {"0.3"}
    assert set(own["Dropout"]) == {"0"}
    assert "Token noise: share of tokens replaced" in " ".join(table.notes)
    plain = report.load("tables", "table3").make(one)
    assert not {"Token noise", "Dropout", "Start"} & set(plain.shown)
    assert "noise" not in " ".join(plain.notes).lower()


def rerun(results: list[Result], study: Study) -> list[Result]:
    """The results as they are written now, with every value of their run."""
    return [
        result.model_copy(update={"hyperparameters": now(result, study) | result.hyperparameters}) for result in results
    ]


def now(result: Result, study: Study) -> dict[str, Any]:
    """All values of a result's run."""
    changes = study.variants[result.full_name].values if result.variant else {}
    return study.run(result.name, result.task, changes).model_dump(mode="json")


@pytest.mark.parametrize("study", ["one", "ablation"])
def test_table_3_is_the_same_of_results_with_every_value_of_a_run(study: str, request: pytest.FixtureRequest) -> None:
    former = request.getfixturevalue(study)
    complete = replace(former, results=rerun(former.results, former.settings))
    make = report.load("tables", "table3").make
    assert any("importance" in run.hyperparameters for run in complete.results)
    assert all("noise" in run.hyperparameters for run in complete.results)
    ours, before = make(complete), make(former)
    assert (ours.markdown(), ours.csv()) == (before.markdown(), before.csv())


def test_a_default_is_no_column_of_table_3() -> None:
    values = {"importance": "none", "relaxation": 1.0, "noise": 0.0, "dropout": None, "permute": False}
    usual = make_result()
    usual = usual.model_copy(update={"hyperparameters": usual.hyperparameters | values | {"start": "pretrained"}})
    make = report.load("tables", "table3").make
    rare = {"Importance", "Relaxation", "Token noise", "Dropout", "Permuted", "Start"}
    assert not rare & set(make(Evidence("embedded", [usual], None)).shown)
    changed = {"importance": "adam", "relaxation": 1.5, "noise": 0.3, "dropout": 0.0, "permute": True, "start": "dense"}
    other = usual.model_copy(update={"hyperparameters": usual.hyperparameters | changed})
    assert rare <= set(make(Evidence("embedded", [other], None)).shown)


# --- ablation --------------------------------------------------------------------------------------------------------


def test_the_ablation_compares_a_variant_with_its_run_and_a_rival_with_nxm_plus(ablation: Evidence) -> None:
    table = report.load("tables", "table_ablation").make(ablation)
    rows = {(row["Task"], row["Run"], row["Variant"]): row for _, row in table.shown.iterrows()}
    assert len(rows) == 3 * (len(PLUS) + len(VARIANTS))
    own = rows["STS-B", "NxM+", "without teacher"]
    assert own["Compared with"] == "NxM+"
    assert own["Points [95 %]"].startswith(f"{84.0 * (0.97 - 0.99):+.1f} [")
    assert own["Excludes 0"] == "yes"
    assert own["Held out"] == f"{84.0 * 0.97 + 1.5 + 1.0:.1f}"
    assert rows["STS-B", "NxM+", ""]["Points [95 %]"] == statistics.ABSENT
    assert rows["STS-B", "NxM+", "permuted channels"]["Excludes 0"] == "no"
    assert rows["STS-B", "ASP+", "at 1:4"]["Compared with"] == "ASP+"
    assert rows["CoLA", "GMP+", ""]["Compared with"] == "NxM+"
    numbers = table.numbers.set_index(["task", "run", "variant"])
    stsb, cola, both = (numbers.loc[(task, "nxm_plus", "no-teacher")] for task in ("stsb", "cola", "geometric_mean"))
    assert both["mean"] == pytest.approx(paper.geometric_mean([stsb["mean"], cola["mean"]]), rel=1e-3)
    assert both["low"] < both["difference"] < both["high"]


def test_a_variant_is_compared_with_another_where_the_study_says_so(ablation: Evidence) -> None:
    other = {"nxm_plus/no-teacher": "asp_plus/pattern-1-4"}
    evidence = replace(ablation, variants=ablation.variants | other)
    shown = report.load("tables", "table_ablation").make(evidence).shown
    own = shown[(shown["Task"] == "STS-B") & (shown["Variant"] == "without teacher")].iloc[0]
    assert own["Compared with"] == "ASP+ at 1:4"
    assert own["Points [95 %]"].startswith(f"{84.0 * (0.97 - 0.9):+.1f} [")


def test_the_ablation_has_the_cost_compared_with_the_dense_model(ablation: Evidence) -> None:
    table = report.load("tables", "table_ablation").make(ablation)
    own = table.shown[table.shown["Task"] == "STS-B"].set_index(["Run", "Variant"]).loc[("NxM+", "permuted channels")]
    seconds, memory = (
        [
            sum(getattr(run, field) for run in statistics.runs_of(ablation.results, name) if run.task == "stsb")
            for name in ("nxm_plus/permuted", "dense")
        ]
        for field in ("train_seconds", "peak_memory_mib")
    )
    assert own["Time"] == f"{seconds[0] / seconds[1]:.2f}×"
    assert own["Memory"] == f"{memory[0] / memory[1]:.2f}×"


def test_the_ablation_states_what_failed_what_has_not_run_and_what_was_changed(ablation: Evidence) -> None:
    failure = make_failure("ablation", run="nxm_plus", variant="no-teacher")
    results = [
        run.model_copy(update={"hyperparameters": run.hyperparameters | {"permute": True}})
        if run.variant == "permuted"
        else run
        for run in ablation.results
        if run.full_name != "nxm_plus/no-teacher"
    ]
    evidence = replace(ablation, results=results, failures=[failure])
    table = report.load("tables", "table_ablation").make(evidence)
    notes = " ".join(table.notes)
    assert "NxM+ without teacher, on STS-B, seed 1: failed: the loss became nan at step 3." in notes
    assert "No result yet: NxM+ without teacher, on CoLA; NxM+ without teacher, on STS-B, seed 2." in notes
    changed = table.shown.set_index("Variant")["Changed"]
    assert set(changed["permuted channels"]) == {"permuted: yes"}
    assert set(changed["at 1:4"]) == {"pattern: 1:4"}
    assert set(changed[""]) == {""}
    tuning = report.load("tables", "table_tuning").make(evidence)
    assert tuning.shown.empty  # a variant that failed is no trial of a search


@pytest.mark.parametrize("complete", [{None}, {"no-teacher"}, {None, "no-teacher", "permuted", "pattern-1-4"}])
def test_a_variants_changes_are_the_same_of_results_with_every_value(ablation: Evidence, complete: set) -> None:
    results = [rerun([run], ablation.settings)[0] if run.variant in complete else run for run in ablation.results]
    shown = report.load("tables", "table_ablation").make(replace(ablation, results=results)).shown
    changed = shown.set_index("Variant")["Changed"]
    assert set(changed["without teacher"]) == {"without teacher; token noise: 0"}
    assert set(changed["permuted channels"]) == {"permuted: yes"}
    assert set(changed["at 1:4"]) == {"pattern: 1:4"}
    assert set(changed[""]) == {""}


def test_a_variant_of_some_tasks_is_not_missed_on_the_others(ablation: Evidence) -> None:
    runs = [run for run in ablation.results if run.variant != "pattern-1-4" or run.task == "stsb"]
    everywhere = replace(ablation, results=runs)
    limited = replace(everywhere, variant_tasks={"asp_plus/pattern-1-4": ["stsb"]})
    make = report.load("tables", "table_ablation").make
    assert "No result yet: ASP+ at 1:4, on CoLA." in make(everywhere).notes
    assert "No result yet" not in " ".join(make(limited).notes)
    shown = make(limited).shown
    assert list(shown[shown["Variant"] == "at 1:4"]["Task"]) == ["STS-B"]


# --- search ----------------------------------------------------------------------------------------------------------


def tried(run: str, rate: float, dev: float, heldout: float) -> Result:
    """A trial of a search over learning rates."""
    result = make_result(run=run, seed=100, trial=f"lr{rate:g}", score=dev, learning_rate=rate)
    return result.model_copy(update={"heldout": result.metric.model_copy(update={"value": heldout})})


def test_the_tuning_table_marks_the_best_and_what_is_in_force(one: Evidence) -> None:
    table = report.load("tables", "table_tuning").make(one)
    shown = table.shown
    assert set(shown.loc[shown["In force"] == "yes", "Learning rate"]) == {"9e-5"}
    for score in ("Dev", "Held out"):
        assert set(shown.loc[shown[score].str.startswith("**"), "Learning rate"]) == {"3e-4"}
    assert len(shown) == 6
    assert r"\textbf{" in table.latex("x")
    assert "**" not in table.latex("x")


def test_the_tuning_table_marks_a_trial_that_failed(one: Evidence) -> None:
    failure = make_failure(run="asp")
    shown = report.load("tables", "table_tuning").make(replace(one, failures=[failure])).shown
    row = shown[shown["Learning rate"] == "1"].iloc[0]
    assert (row["Dev"], row["Held out"]) == (statistics.ABSENT, statistics.ABSENT)
    assert row["Failed"] == "the loss became nan at step 3"


def test_the_tuning_table_names_values_in_force_at_an_edge() -> None:
    trials = [tried("nxm", rate, 80.0, 80.0) for rate in (1e-4, 2e-4, 3e-4)]
    for rate, at_edge in ((1e-4, True), (2e-4, False), (3e-4, True)):
        final = make_result(seed=0, learning_rate=rate)
        table = report.load("tables", "table_tuning").make(Evidence("embedded", [*trials, final], None))
        assert (
            f"In force at the edge of the values tried: NxM on STS-B (learning rate {labels.plain(rate)})."
            in table.notes
        ) == at_edge


def test_without_trials_the_tuning_table_says_so() -> None:
    table = report.load("tables", "table_tuning").make(Evidence("embedded", [make_result()], None))
    assert table.shown.empty
    assert "has no search" in " ".join(table.notes)


def test_the_selection_table_has_both_choices_by_the_same_seeds_and_the_final_runs(one: Evidence) -> None:
    """The trial that is best on dev is not the one that is best on held-out rows."""
    trials = [
        tried(run, rate, dev, heldout)
        for run, rate, dev, heldout in (
            ("dense", 1e-4, 84.0, 86.0),
            ("dense", 2e-4, 85.0, 83.0),
            ("nxm", 1e-4, 80.0, 79.0),
            ("nxm", 2e-4, 78.0, 82.0),
        )
    ]
    final = [
        make_result(run=run, seed=seed, score=score + seed)
        for run, score in (("dense", 83.0), ("nxm", 77.0))
        for seed in (0, 1, 2)
    ]
    table = report.load("tables", "table_selection").make(
        Evidence("embedded", [*trials, *final], None, selection="heldout")
    )
    numbers = table.numbers.set_index("run")
    assert list(numbers.loc["dense", ["best_on_dev", "best_held_out", "final"]]) == [85.0, 84.0, 84.0]
    assert list(numbers.loc["nxm", ["best_on_dev", "best_held_out", "final"]]) == [80.0, 78.0, 78.0]
    assert list(table.shown["STS-B"]) == ["85.0", "84.0", "84.0 ± 1.0", "80.0", "78.0", "78.0 ± 1.0"]
    assert list(table.shown["% of dense"])[3:] == [f"{100 * part:.1f}" for part in (80 / 85, 78 / 84, 78 / 84)]


@pytest.mark.parametrize("name", ["table_ablation", "table_comparison"])
def test_a_second_table_says_how_far_the_data_carry_each_difference(ablation: Evidence, name: str) -> None:
    table = report.load("tables", name).make(ablation)
    carried = table.second.shown
    numbers = table.numbers[table.numbers["p"].notna()]
    assert len(carried) == len(numbers) > 6
    for column, field, form in (
        ("p", "p", ".3f"),
        ("p, adjusted", "p_adjusted", ".3f"),
        ("Visible from", "visible", ".1f"),
    ):
        assert list(carried[column]) == [format(value, form) for value in numbers[field]]
    assert set(carried["Effect"]) == {statistics.ABSENT}  # two seeds
    assert (numbers["p_adjusted"] >= numbers["p"]).all()
    first = table.shown[table.shown["Points [95 %]"] != statistics.ABSENT]
    assert list(carried["Points [95 %]"]) == list(first["Points [95 %]"])
    text, latex = table.markdown(), table.latex("x")
    assert text.count("**") == 4
    assert "Visible from: the smallest true difference" in text
    assert latex.count(r"\label{tab:x}") == latex.count(r"\label{tab:x-evidence}") == 1


# --- comparison and cost ---------------------------------------------------------------------------------------------


def test_the_comparison_has_an_interval_where_draws_exist_and_states_if_it_excludes_zero(one: Evidence) -> None:
    table = report.load("tables", "table_comparison").make(one)
    assert set(table.shown["Excludes 0"]) == {statistics.ABSENT}
    assert table.second is None
    bootstrap = {"stsb": {"nxm": make_draws(5, 0), "asp": make_draws(0, 1), "dense": make_draws(5, 2)}}
    shown = report.load("tables", "table_comparison").make(replace(one, bootstrap=bootstrap)).shown
    verdicts = dict(zip(zip(shown["Run"], shown["Compared with"], strict=True), shown["Excludes 0"], strict=True))
    assert verdicts["NxM", "ASP"] == "yes"
    assert verdicts["NxM", "Dense"] == "no"


def test_a_rival_that_collapsed_is_in_the_tables(collapsed: Evidence) -> None:
    shown = report.load("tables", "table_comparison").make(collapsed).shown
    assert list(shown["% of it [95 %]"]) == ["–", shown["% of it [95 %]"].iloc[1], "–"]
    assert list(shown["Task"]) == ["CoLA", "STS-B", "Geo. mean"]
    table = report.load("tables", "table1").make(collapsed)
    assert list(table.shown[table.shown["Run"] == "ASP"]["Geo. mean"]) == ["0.0"]
    assert any("score of 0 or less: ASP on CoLA" in note for note in table.notes)


def test_energy_is_a_column_only_where_a_device_energy_it(one: Evidence) -> None:
    make = report.load("tables", "table_cost").make
    assert "GPU energy (kJ)" not in make(one).shown
    assert "Energy is measured on GPUs only." in make(one).notes
    results = [run.model_copy(update={"energy_joules": 4_200.0}) if run.name == "nxm" else run for run in one.results]
    table = make(replace(one, results=results)).shown
    energy = dict(zip(table["Run"], table["GPU energy (kJ)"], strict=True))
    assert energy["NxM"] == "4.2"
    assert energy["Dense"] == "–"


def test_the_allocation_table_has_the_set_the_bits_and_the_rise_of_every_matrix() -> None:
    results = make_allocated(layers=2)
    table = report.load("tables", "table_allocation").make(Evidence("holoformer", results, None))
    first = [run for run in results if run.name == "mixed" and run.seed == 1]
    assert len(table.shown) == sum(len(run.allocation.matrices) + 1 for run in first if run.allocation is not None)
    assert len(table.numbers) == 2 * 2 * 12  # runs, seeds, matrices
    own = table.numbers.query("run == 'mixed/smaller' and seed == 2 and kind == 'Value' and layer == '2'").iloc[0]
    record_of = next(run for run in results if run.full_name == "mixed/smaller" and run.seed == 2).allocation
    assert record_of is not None
    matrix = next(own for own in record_of.matrices if own.matrix.endswith("1.attention.self.value.weight"))
    assert (own["set"], own["bits"], own["rise"]) == (matrix.choice, matrix.bits, matrix.rise)
    total = table.shown.iloc[12]
    assert (total["Matrix"], total["Bits a weight"]) == ("All, of 4 bits", f"{first[0].allocation.bits:.2f}")
    assert "Of each run's first seed; the other seeds are in the CSV file." in table.notes


def test_the_bits_table_counts_what_an_allocation_takes() -> None:
    results = make_allocated()
    table = report.load("tables", "table_bits").make(Evidence("holoformer", results, None))
    rows = table.numbers.set_index("run")
    assert rows.loc["mixed", "set"] == "mixed, 4 bits"
    taken = [run.allocation.bits for run in results if run.full_name == "mixed" and run.allocation is not None]
    assert rows.loc["mixed", "bits_per_weight"] == pytest.approx(max(taken), rel=1e-5)


def test_the_structure_table_has_heads_and_rows_of_every_layer() -> None:
    sizes = {"heads": [3, 12], "rows": [264, 8], "dense_heads": 12, "dense_rows": 1536, "share": 0.198}
    pruning = {"budget": 0.2, "share": 0.199, "cost": "flops", "units": "heads_rows", "course": []}
    results = [
        make_result(run="dense"),
        record(Training("stsb", "cut20", 1), structure=sizes | {"pruning": pruning}),
        record(Training("stsb", "cut50_nxm", 1), structure=sizes | {"pruning": None}),
    ]
    table = report.load("tables", "table_structure").make(Evidence("embedded", results, None))
    assert list(table.shown["Run"]) == ["Structured, 20 %", "Structured, 50 %, then NxM+"]
    first, second = table.shown.to_dict("records")
    assert (first["Budget"], first["Hard count"], first["Weights"]) == ("20 % (flops)", "19.9 %", "19.8 %")
    assert (first["Heads of 12"], first["FFN rows of 1536"]) == ("3 12", "264 8")
    assert (second["Budget"], second["Hard count"]) == ("–", "–")
    assert list(table.numbers["rows"]) == [264, 8, 264, 8]


def test_bits_are_a_row_for_each_run_and_width_with_the_share_of_dense() -> None:
    table = report.load("tables", "table_bits").make(Evidence("holoformer", make_integers(), None))
    rows = {row["Run"]: row for row in table.shown.to_dict("records")}
    assert list(rows) == [
        *("Dense", "HoloFormer (4 bits)", "NxM+, then QAT (4 bits)", "Rounded"),
        *("HoloFormer", "NxM+, then QAT", "HoloFormer (2 bits)"),
    ]
    assert rows["HoloFormer"]["Set"] == "2:4 int3"
    assert rows["HoloFormer"]["% of dense"] == f"{100 * 82.5 / 83.5:.1f}"
    numbers = table.numbers.set_index("run")
    assert numbers.loc["holoformer/int4", "bits_per_weight"] == pytest.approx(3.03, abs=0.01)
    assert numbers.loc["holoformer/int4", "compression"] == pytest.approx(32 / 3.03, abs=0.05)
    assert numbers.loc["dense", "compression"] == 1


def test_the_cost_of_the_search_counts_its_failures_and_no_sweep(one: Evidence) -> None:
    make = report.load("tables", "table_cost").make
    assert "Trials" not in make(Evidence("embedded", [make_result(), make_result(variant="rho0.1")], None)).shown
    trials = [make_result(trial="lr0.0001"), make_result(trial="lr0.0003")]
    sweep = [make_result(variant="rho0.1")]
    failure = make_failure(seed=0)
    results = [make_result(), *trials, *sweep, make_result(run="dense")]
    table = make(Evidence("embedded", results, None, failures=[failure]))
    searched = dict(zip(table.shown["Run"], table.shown["Trials"], strict=True))
    assert searched == {"Dense": "–", "NxM": "3"}
    minutes = dict(zip(table.shown["Run"], table.shown["Search (min)"], strict=True))
    assert minutes["NxM"] == f"{(sum(run.wall_seconds for run in trials) + 90.0) / 60:.1f}"


def test_the_cost_of_all_tasks_has_all_runs_trials_and_sweeps(many: Evidence) -> None:
    numbers = report.load("tables", "table_cost").make(many).numbers
    everything = numbers[numbers["task"] == "all"]
    records = [*many.results, *many.failures]
    assert everything["all_seconds"].sum() == pytest.approx(sum(record.wall_seconds or 0.0 for record in records))
    by_task = numbers[numbers["task"] != "all"].groupby("run")["all_seconds"].sum()
    assert everything.set_index("run")["all_seconds"].to_dict() == pytest.approx(by_task.to_dict())


# --- speed -----------------------------------------------------------------------------------------------------------


def test_products_have_both_sides_and_count_the_kernels_that_were_sparse() -> None:
    evidence = Evidence("embedded", [], None, bench=make_bench())
    table = report.load("tables", "table_products").make(evidence)
    gpu = table.shown[table.shown["Device"] == "GPU"]
    assert gpu["Sparse kernels"].tolist() == ["0", "1", "1", "1"]
    assert gpu["Speed-up"].tolist() == ["1.30 ~", "1.62", "1.30", "1.62"]
    assert gpu["Default algorithm"].tolist() == ["0.80"] * 4
    assert gpu["Share of the ceiling"].tolist()[1] == "100.0 %"
    assert set(gpu["Dense, TFLOP/s"]) == {"500"}
    cpu = table.shown[table.shown["Device"] == "CPU"]
    assert set(cpu["2:4, TFLOP/s"]) == {"–"}
    assert cpu["Speed-up"].str.startswith("masked ").all()
    assert "Absent (CPU, FP32 and CPU, BF16): no 2:4 kernel for cpu." in table.notes


def test_encoders_are_those_of_the_latest_call_with_the_proof_of_their_kernels() -> None:
    table = report.load("tables", "table_encoders").make(Evidence("embedded", [], None, bench=make_bench()))
    rows = {(row["Type"], row["Kernels"], row["Run"]): row for _, row in table.shown.iterrows()}
    assert len(rows) == 4
    assert rows["FP8", "2:4", "compiled, in a CUDA graph"]["Over BF16 dense, compiled"] == "1.10"
    assert rows["BF16", "2:4", "compiled, in a CUDA graph"]["Over dense in this type and way"] == "1.25"
    assert rows["FP8", "2:4", "compiled, in a CUDA graph"]["Over dense in this type and way"] == "–"
    assert rows["BF16", "2:4", "eager, launched by the host"]["ms"].endswith("~")
    assert rows["BF16", "2:4", "compiled, in a CUDA graph"]["Sparse kernels"] == "48"
    assert not [note for note in table.notes if note.startswith("Absent")]


def test_blocks_have_a_column_per_size_and_density() -> None:
    table = report.load("tables", "table_blocks").make(Evidence("embedded", [], None, bench=make_bench()))
    (row,) = table.shown.to_dict("records")
    assert row["32 × 32, about 20 % left"] == "0.70 (20.8 %)"
    assert row["64 × 64, about 20 % left"] == "1.40 (16.7 %)"


def test_the_encoders_speed_up_is_over_the_reference_that_the_rows_name() -> None:
    files = make_bench()
    cpu, gpu = files
    eager = [row for row in gpu["rows"] if row["part"] == "encoders" and row.get("way") == "compiled"]
    cpu["rows"] += [row | {"reference": "fp32 dense eager"} for row in eager if "absent" not in row]
    table = report.load("tables", "table_encoders").make(Evidence("embedded", [], None, bench=[cpu]))
    assert "Over FP32 dense, eager" in table.shown.columns
    assert set(table.shown["Run"]) == {"compiled"}  # a CPU has no CUDA graphs
    assert any(note.startswith("Over FP32 dense, eager: medians") for note in table.notes)
    table = report.load("tables", "table_encoders").make(Evidence("embedded", [], None, bench=files))
    assert set(table.shown["Reference"]) == {"FP32 dense, eager", "BF16 dense, compiled"}


@pytest.mark.parametrize(("part", "name"), [("encoders", "encoders"), ("products", "products"), ("blocks", "blocks")])
def test_a_unit_that_failed_as_a_whole_is_named_until_a_later_call_measures_it(part: str, name: str) -> None:
    files = make_bench()
    failed = {"unit": "the largest", "call": 1, "part": part, "absent": "OutOfMemoryError: CUDA out of memory"}
    files[1]["rows"].append(failed)
    evidence = Evidence("embedded", [], None, bench=files)
    said = "Absent (GPU, the largest): OutOfMemoryError: CUDA out of memory."
    assert said in report.load("tables", f"table_{name}").make(evidence).notes
    files[1]["rows"].append(files[1]["rows"][0] | {"unit": "the largest", "call": 2})
    assert said not in report.load("tables", f"table_{name}").make(evidence).notes


def test_forms_have_their_times_sizes_scores_and_the_proof_of_their_kernels() -> None:
    evidence = Evidence("embedded", [], None, deployment=make_deployment())
    table = report.load("tables", "table_deployment").make(evidence)
    rows = {(row["Device"], row["Model"], row["Form"]): row for _, row in table.shown.iterrows()}
    assert rows["CUDA", "NxM", "PyTorch bf16, 2:4"]["Sparse kernels ran"] == "1 of 2"
    assert rows["CPU", "NxM", "ONNX INT8"]["Weights (MiB)"] == "21.6"
    assert rows["CPU", "NxM", "ONNX INT8"]["Score"] == "85.0"
    assert rows["CPU", "Student, dense", "PyTorch fp32"]["ms, 1 × 128"] == "5.0 ~"
    assert rows["CPU", "Student, dense", "PyTorch fp32"]["Speed-up"] == "2.00, 2.00"
    assert "Absent: compiled fp32 of Dense: no compiler." in table.notes


def test_a_device_that_was_absent_is_a_note_with_the_reason() -> None:
    absent = {"study": "embedded", "device": "cuda", "absent": "no CUDA device where this was run", "rows": []}
    evidence = Evidence("embedded", [], None, deployment=[absent | {"scores": []}])
    notes = " ".join(report.load("tables", "table_deployment").make(evidence).notes)
    assert "Absent: CUDA: no CUDA device where this was run." in notes


@pytest.mark.parametrize("name", ["products", "encoders", "blocks"])
def test_a_study_without_a_bench_says_so(name: str) -> None:
    table = report.load("tables", f"table_{name}").make(Evidence("embedded", [], None))
    assert table.shown.empty
    assert "has been measured" in table.notes[0]
