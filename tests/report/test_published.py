"""Numbers of others: each has a source, and says that it was not measured here."""

from __future__ import annotations

import pytest

from nxm import report
from nxm.report import paper, published
from nxm.report.evidence import Evidence
from synthetic_study import EMPTY, make_bench, make_deployment, make_result, with_set


def test_every_number_has_a_source_that_can_be_looked_up() -> None:
    assert published.NUMBERS
    every = (*published.NUMBERS, *published.of_paper([("cola", "CoLA"), ("stsb", "STS-B")]))
    assert len(set(every)) == len(every)
    for number in every:
        assert number.link.startswith("https://"), number
        assert number.source
        float(number.value)
        assert not number.reference or float(number.reference)


@pytest.mark.parametrize(
    ("evidence", "kinds"),
    [
        (EMPTY, ()),
        (Evidence("embedded", [make_result()], None), ("score",)),
        (Evidence("embedded", [with_set(make_result(), "2:4 int4")], None), ("score", "integers")),
        (Evidence("embedded", [], None, deployment=make_deployment()), ("gpu", "cpu")),
        (Evidence("gpu", [], None, bench=make_bench()), ("gpu", "cpu")),
    ],
)
def test_a_table_has_the_kinds_that_the_study_measured_and_marks_them(
    evidence: Evidence, kinds: tuple[published.Kind, ...]
) -> None:
    table = report.load("tables", "table_published").make(evidence)
    theirs = published.of_paper([("stsb", "STS-B")]) if "score" in kinds else ()
    wanted = (*theirs, *published.of(*kinds))
    assert len(table.shown) == len(wanted)
    if kinds:
        assert set(table.shown["Measured here"]) == {"no"}
        assert published.NOT_MEASURED in table.notes[0]
        assert list(table.numbers["value"]) == [number.value for number in wanted]
    else:
        assert "has measured nothing" in table.notes[0]


def test_the_papers_numbers_are_those_of_its_table() -> None:
    found = {(number.method, number.subject): number for number in published.of_paper([("cola", "CoLA"), ("no", "No")])}
    assert len(found) == 4
    own = found["NxM", "BERT-base, CoLA"]
    assert (own.reference, own.value) == ("56.7", "55.3")
    student = found["Student, NxM", "DistilBERT, CoLA"]
    assert (float(student.reference), float(student.value)) == (
        paper.SCORES["distil"]["cola"],
        paper.SCORES["distil_nxm"]["cola"],
    )
