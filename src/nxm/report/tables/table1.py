"""Table 1: scores by run and task, each row followed by the paper's."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.statistics import Score
from nxm.report.table import Table
from nxm.study.studies import MAIN

STUDENTS = ("distil_nxm", "distil_nxm_kd", "distil_nxm_plus")


def make(evidence: Evidence) -> Table:
    """Return means ± standard deviation over seeds, the geometric mean over tasks, and the share of the dense score.

    The paper's average is recomputed over the same tasks. Sparse students are also compared with the dense student, as
    in the paper.
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
        share, share_theirs = _share(evidence, method, "dense", columns)
        of_student, of_student_theirs = (
            _share(evidence, method, "distil", columns) if method in STUDENTS else (None, None)
        )
        common = {statistics.COLUMNS.get(column, column): _text(value) for column, value in ours.items()}
        shown.append(
            {"Run": labels.run_label(method), "": "ours", **common}
            | ({"Geo. mean": _text(average)} if several else {})
            | {"% of dense": _number(share), "% of dense student": _number(of_student)}
        )
        if theirs is not None:
            mean = paper.average(method, columns)
            common = {statistics.COLUMNS.get(column, column): f"{theirs[column]:.1f}" for column in columns}
            shown.append(
                {"Run": "", "": "paper", **common}
                | ({"Geo. mean": f"{mean:.1f}"} if several else {})
                | {
                    "% of dense": _number(share_theirs),
                    "% of dense student": _number(of_student_theirs),
                }
            )
        for column, value in [*ours.items(), *([("geometric_mean", average)] if several else [])]:
            printed = paper.average(method, columns) if column == "geometric_mean" else (theirs or {}).get(column)
            numbers.append(
                {
                    "run": method,
                    "column": column,
                    "mean": value.mean if value else None,
                    "spread": value.spread if value else None,
                    "seeds": len(value.values) if value else 0,
                    "paper": printed,
                }
            )
    if any(evidence.floors.get(column, 0.0) > 0 for column in columns):
        shown.append(_floor(evidence, columns))
        numbers += [{"run": "constant_answer", "column": column, "mean": evidence.floors[column]} for column in columns]
    notes = captions.notes(evidence, labels.EVERYWHERE)
    if runs:
        notes.append(statistics.metrics_phrase(runs))
        notes.append("Paper: BERT-base and DistilBERT on whole tasks, the best of a grid on dev.")
    if several:
        notes.append("Geo. mean: over the columns shown, also in the paper's rows.")
        if left_out := [statistics.COLUMNS[column] for column in paper.COLUMNS if column not in columns]:
            where = "params.yaml" if evidence.study == MAIN else f"studies/{evidence.study}/study.yaml"
            notes.append(f"The paper's {statistics.listed(left_out)} are not in this study: see {where}.")
    header = pd.DataFrame(shown)
    if "% of dense student" in header and (header["% of dense student"] == statistics.ABSENT).all():
        header = header.drop(columns="% of dense student")
    fields = ["run", "column", "mean", "spread", "seeds", "paper"]
    title = "Table 1. Dev scores (score × 100)"
    return Table(title, header, pd.DataFrame(numbers, columns=fields), tuple(notes))


def _floor(evidence: Evidence, columns: list[str]) -> dict[str, str]:
    """Return the row of a constant answer, whose F1 and accuracy are far above 0."""
    floors = [evidence.floors.get(column) for column in columns]
    row = {"Run": "Constant answer", "": "ours"}
    row |= {
        statistics.COLUMNS.get(c, c): statistics.ABSENT if v is None else f"{v:.1f}"
        for c, v in zip(columns, floors, strict=True)
    }
    if len(columns) > 1:
        row["Geo. mean"] = statistics.ABSENT if None in floors else f"{paper.geometric_mean(floors):.1f}"
    return row | {"% of dense": statistics.ABSENT, "% of dense student": statistics.ABSENT}


def _share(evidence: Evidence, method: str, whole: str, columns: list[str]) -> tuple[float | None, float | None]:
    """Return the share of the average of `whole` that `method` retains, in percent: ours, the paper's."""

    def mean(score: Score | None) -> float | None:
        return score.mean if score else None

    ours = [mean(statistics.average_score(evidence.results, name, columns)) for name in (method, whole)]
    theirs = [paper.average(name, columns) for name in (method, whole)]
    return statistics.retention(*ours), statistics.retention(*theirs)


def _number(value: float | None) -> str:
    return statistics.ABSENT if value is None else f"{value:.1f}"


def _text(score: Score | None) -> str:
    return statistics.ABSENT if score is None else str(score)
