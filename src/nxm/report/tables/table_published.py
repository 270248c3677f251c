"""Published numbers of others next to which ours can be placed: none of them was measured here."""

from __future__ import annotations

from dataclasses import asdict, fields

import pandas as pd

from nxm.report import published, statistics, storage
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [field.name for field in fields(published.Published)]


def make(evidence: Evidence) -> Table:
    """Return a row per published number of the kinds that the study has measured as well."""
    numbers = measured_like(evidence)
    shown = [
        {
            "Method": number.method,
            "Of": number.subject,
            "Quantity": number.quantity,
            "Dense or fp32": number.reference or statistics.ABSENT,
            "Compressed": number.value,
            "Source": number.source,
            "Measured here": "no",
        }
        for number in numbers
    ]
    nothing = f"Study {evidence.study} has measured nothing that the published numbers are about."
    notes = (f"Study {evidence.study}. {published.NOT_MEASURED}" if numbers else nothing,)
    table = pd.DataFrame([asdict(number) for number in numbers], columns=FIELDS)
    return Table("Published numbers of others", pd.DataFrame(shown), table, notes)


def measured_like(evidence: Evidence) -> tuple[published.Published, ...]:
    """Return the published numbers of the kinds that a study has measured: the paper's first."""
    runs = statistics.whole_runs(evidence.results)
    columns = [(column, statistics.COLUMNS.get(column, column)) for column in statistics.columns_of(runs)]
    return (*published.of_paper(columns), *published.of(*_kinds(evidence)))


def _kinds(evidence: Evidence) -> list[published.Kind]:
    runs = statistics.whole_runs(evidence.results)
    devices = {file["device"] for file in [*evidence.bench, *evidence.deployment] if file.get("rows")}
    kinds: dict[published.Kind, bool] = {
        "score": bool(runs),
        "integers": any(storage.integer_bits(run) for run in runs),
        "structured": any(run.structure is not None for run in runs),
        "gpu": "cuda" in devices,
        "cpu": "cpu" in devices,
    }
    return [kind for kind, measured in kinds.items() if measured]
