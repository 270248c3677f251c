"""Table 1 (and the scores of Table 2): methods by tasks, the paper's row beside ours."""

from __future__ import annotations

import pandas as pd

from nxm.report import labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.statistics import Score
from nxm.report.table import Table

STUDENTS = ("distil_nxm", "distil_nxm_kd", "distil_nxm_plus")


def make(evidence: Evidence) -> Table:
    """Mean ± spread over seeds, geometric mean over the tasks present, percent of the dense score kept.

    The paper's average is recomputed over the same tasks. Students made sparse are also compared with the dense
    student, as the paper does.
    """
    runs = statistics.whole_runs(evidence.results)
    columns = statistics.columns_of(runs)
    methods = statistics.methods_of(runs)
    several = len(columns) > 1
    shown, numbers = [], []
    for method in methods:
        ours = {column: statistics.column_score(runs, method, column) for column in columns}
        theirs = paper.SCORES.get(method)
        average = statistics.average_score(runs, method, columns)
        kept, kept_theirs = _kept(evidence, method, "dense", columns)
        of_student, of_student_theirs = (
            _kept(evidence, method, "distil", columns) if method in STUDENTS else (None, None)
        )
        common = {statistics.COLUMNS.get(column, column): _text(value) for column, value in ours.items()}
        shown.append(
            {"Method": labels.run_label(method), "": "ours", **common}
            | ({"Geo. mean": _text(average)} if several else {})
            | {"Kept of dense": statistics.percent(kept), "of dense student": statistics.percent(of_student)}
        )
        if theirs is not None:
            mean = paper.average(method, columns)
            common = {statistics.COLUMNS.get(column, column): f"{theirs[column]:.1f}" for column in columns}
            shown.append(
                {"Method": "", "": "paper", **common}
                | ({"Geo. mean": f"{mean:.1f}"} if several else {})
                | {
                    "Kept of dense": statistics.percent(kept_theirs),
                    "of dense student": statistics.percent(of_student_theirs),
                }
            )
        for column, value in [*ours.items(), *([("geometric_mean", average)] if several else [])]:
            printed = paper.average(method, columns) if column == "geometric_mean" else (theirs or {}).get(column)
            numbers.append(
                {
                    "method": method,
                    "column": column,
                    "mean": value.mean if value else None,
                    "spread": value.spread if value else None,
                    "seeds": len(value.values) if value else 0,
                    "paper": printed,
                }
            )
    if any(evidence.floors.get(column, 0.0) > 0 for column in columns):
        shown.append(_floor(evidence, columns))
        numbers += [
            {"method": "constant_answer", "column": column, "mean": evidence.floors[column]} for column in columns
        ]
    notes = statistics.notes(evidence, labels.EVERYWHERE)
    if runs:
        notes.append(statistics.metrics_phrase(runs))
        notes.append("Paper: BERT-base and DistilBERT on the whole tasks, the best of a grid on dev.")
    if several:
        notes.append("Geo. mean: over the columns shown, in the paper's rows too.")
        if left_out := [statistics.COLUMNS[column] for column in paper.COLUMNS if column not in columns]:
            where = f"profiles/{evidence.study}.yaml"
            notes.append(
                f"Of the paper's columns {statistics.listed(left_out)} are not in this study: {where} says why."
            )
    header = pd.DataFrame(shown)
    if "of dense student" in header and (header["of dense student"] == statistics.ABSENT).all():
        header = header.drop(columns="of dense student")
    fields = ["method", "column", "mean", "spread", "seeds", "paper"]
    title = "Table 1. Dev scores (score × 100)"
    return Table(title, header, pd.DataFrame(numbers, columns=fields), tuple(notes))


def _floor(evidence: Evidence, columns: list[str]) -> dict[str, str]:
    """What needs no model: F1 and accuracy have a floor far above 0, of which a method can keep much."""
    floors = [evidence.floors.get(column) for column in columns]
    row = {"Method": "Always one answer", "": "ours"}
    row |= {
        statistics.COLUMNS.get(c, c): statistics.ABSENT if v is None else f"{v:.1f}"
        for c, v in zip(columns, floors, strict=True)
    }
    if len(columns) > 1:
        row["Geo. mean"] = statistics.ABSENT if None in floors else f"{paper.geometric_mean(floors):.1f}"
    return row | {"Kept of dense": statistics.ABSENT, "of dense student": statistics.ABSENT}


def _kept(evidence: Evidence, method: str, whole: str, columns: list[str]) -> tuple[float | None, float | None]:
    """Percent of `whole`'s average that `method` keeps: ours, the paper's."""

    def mean(score: Score | None) -> float | None:
        return score.mean if score else None

    ours = [mean(statistics.average_score(evidence.results, name, columns)) for name in (method, whole)]
    theirs = [paper.average(name, columns) for name in (method, whole)]
    return statistics.retention(*ours), statistics.retention(*theirs)


def _text(score: Score | None) -> str:
    return statistics.ABSENT if score is None else str(score)
