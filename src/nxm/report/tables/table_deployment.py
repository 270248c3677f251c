"""Latency, throughput, size and score of models in the forms in which they are deployed."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, statistics
from nxm.report.evidence import Evidence
from nxm.report.forms import absences, described
from nxm.report.table import Table

KEY = ["device", "model", "way", "dtype", "kernel"]
TIMES = [
    "batch",
    "length",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "noisy",
    "speedup_over_dense_fp32",
    "sentences_per_second",
    "tokens_per_second",
    "size_mib",
    "sparse_kernels",
    "absent",
]


def make(evidence: Evidence) -> Table:
    """Return a row per device, model and form, at the smallest and the largest batch; the CSV has all."""
    rows = [row | {"device": file["device"]} for file in evidence.deployment for row in file["rows"]]
    scores = [score | {"device": file["device"]} for file in evidence.deployment for score in file["scores"]]
    table = pd.DataFrame(rows, columns=[*KEY, *TIMES], dtype=object).merge(
        pd.DataFrame(scores, columns=[*KEY, "metric", "score"], dtype=object), on=KEY, how="left"
    )
    timed = table[table["median_ms"].notna()]
    shown = []
    for (device, model, _way, _dtype, _kernel), own in timed.groupby(KEY, sort=False):
        own = own.sort_values(["batch", "length"])
        least, most = own.iloc[0], own.iloc[-1]
        shown.append(
            {
                "Device": device.upper(),
                "Model": labels.run_label(model),
                "Form": described(most.to_dict()),
                "Weights (MiB)": f"{most['size_mib']:.1f}",
                "Score": statistics.ABSENT if pd.isna(most["score"]) else f"{most['score']:.1f}",
                **{
                    f"ms, {int(row['batch'])} × {int(row['length'])}": f"{row['median_ms']:.1f}"
                    + (" ~" if row["noisy"] else "")
                    for row in (least, most)
                },
                "Speed-up": f"{least['speedup_over_dense_fp32']:.2f}, {most['speedup_over_dense_fp32']:.2f}",
                "Sentences per second": f"{own['sentences_per_second'].max():.0f}",
                "Sparse kernels ran": _proof(own),
            }
        )
    return Table("Models in the forms they are deployed in", pd.DataFrame(shown), table, tuple(_notes(evidence, shown)))


def _proof(rows: pd.DataFrame) -> str:
    if rows.iloc[0]["kernel"] == "dense":
        return statistics.ABSENT
    return f"{int(rows['sparse_kernels'].sum())} of {len(rows)}"


def _notes(evidence: Evidence, shown: list[dict[str, str]]) -> list[str]:
    if not shown:
        notes = [f"Study {evidence.study}: no form has been measured."]
    else:
        machines = dict.fromkeys(captions.machine_of(file) for file in evidence.deployment if file["rows"])
        notes = [
            f"Study {evidence.study}; {statistics.listed(machines)}.",
            "Speed-up: over the dense model in fp32 PyTorch, in interleaved rounds.",
            "2:4 in dense kernels gains nothing. ~: the spread of the times is over 10 % of the median.",
        ]
    return [*notes, *absences(evidence.deployment)]
