"""Whole encoders in every form: latency, speed-up, and the kernels that ran."""

from __future__ import annotations

import pandas as pd

from nxm.report import bench, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [
    *("device", "model", "batch", "length", "dtype", "form", "way", "kernels_of", "median_ms", "p10_ms", "p90_ms"),
    *("noisy", "speedup", "reference", "tflops", "joules", "relative_error", "captured"),
    *("sparse_launches", "launches", "kernels_us", "kernels", "sm_mhz", "celsius", "call", "same_as", "absent"),
]


def make(evidence: Evidence) -> Table:
    """Return a row per encoder, batch, length and form that was timed; the CSV has those that were not too."""
    shown, numbers = [], []
    references = list(
        dict.fromkeys(bench.named_reference(row) for file in evidence.bench for row in bench.timed(file, "encoders"))
    )
    heading = f"Over {references[0] if len(references) == 1 else 'the reference'}"
    for file in evidence.bench:
        ways = bench.WAYS if file["device"] == "cuda" else bench.UNCAPTURED
        for row in bench.rows(file, "encoders"):
            kernels = " | ".join(own["name"] for own in row.get("kernels", []))
            chosen = " ".join(f"{name}:{kernel}" for name, kernel in row.get("kernels_of", {}).items())
            numbers.append({"device": file["device"]} | {**row, "kernels": kernels, "kernels_of": chosen})
        timed = bench.timed(file, "encoders")
        dense = {_place(row): row["median_ms"] for row in timed if row["form"] == "dense"}
        for row in timed:
            same = dense[_place(row)] / row["median_ms"] if _place(row) in dense else None
            shown.append(
                {
                    "Encoder": row["model"],
                    "Batch × length": f"{row['batch']} × {row['length']}",
                    "Type": bench.TYPES[row["dtype"]],
                    "Kernels": bench.FORMS[row["form"]],
                    "Run": ways[row["way"]],
                    "ms": f"{row['median_ms']:.3g}{' ~' if row['noisy'] else ''}",
                    heading: f"{row['speedup']:.2f}",
                    **({"Reference": bench.named_reference(row)} if len(references) > 1 else {}),
                    "Over dense in this type and way": statistics.ABSENT if same is None else f"{same:.2f}",
                    "Sparse kernels": str(row["sparse_launches"]),
                    "mJ": f"{1e3 * row['joules']:.0f}" if row.get("joules") is not None else statistics.ABSENT,
                }
            )
    table = pd.DataFrame(numbers, columns=FIELDS)
    return Table("Whole encoders", pd.DataFrame(shown), table, tuple(_notes(evidence, shown, heading)))


def _place(row: bench.Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "batch", "length", "dtype", "way"))


def _notes(evidence: Evidence, shown: list[dict[str, str]], heading: str) -> list[str]:
    if not shown:
        return [
            f"Study {evidence.study}: no encoder has been measured.",
            *bench.absences(evidence.bench, "encoders"),
        ]
    return [
        f"Study {evidence.study}; {bench.machines(evidence)}. Random weights, no padding, embeddings left out.",
        f"{heading}: medians within interleaved rounds; over dense in this type and way: ratios of medians. mJ: "
        "energy of a call, by the board's counter.",
        "~: the spread of the times is over 10 % of the median.",
        *bench.absences(evidence.bench, "encoders"),
    ]
