"""Products of single matrices: times, the kernels that ran, and the share of the machine's limit."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [
    "device",
    "dtype",
    "out_features",
    "in_features",
    "batch",
    "length",
    "way",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "noisy",
    "speedup_over_dense",
    "relative_error",
    "bytes",
    "operations",
    "limit_ms",
    "bound",
    "share",
    "sparse_kernels",
    "kernels",
    "absent",
]


def make(evidence: Evidence) -> Table:
    """Return a row per device, dtype and kernel, over all shapes; the CSV has every product and the kernels' names."""
    numbers = []
    for measured in evidence.matrices:
        for row in measured["rows"]:
            out_features, in_features = row["shape"]
            shape = {"device": measured["device"], "out_features": out_features, "in_features": in_features}
            numbers.append(shape | {**row, "kernels": " | ".join(row.get("kernels", []))})
    table = pd.DataFrame(numbers, columns=FIELDS)
    timed = table[table["median_ms"].notna()]
    shown = []
    for (device, dtype, way), own in timed.groupby(["device", "dtype", "way"], sort=False):
        shown.append(
            {
                "Device": device.upper(),
                "Type": dtype,
                "Kernel": way,
                "Products": str(len(own)),
                "Sparse kernels ran": f"{int(own['sparse_kernels'].sum())} of {len(own)}",
                "Speed-up, median": f"{own['speedup_over_dense'].median():.2f}",
                "least": f"{own['speedup_over_dense'].min():.2f}",
                "most": f"{own['speedup_over_dense'].max():.2f}",
                "Share of the limit, median": statistics.percent(100 * own["share"].median()),
                "Noisy": str(int(own["noisy"].astype(bool).sum())),
            }
        )
    machines = dict.fromkeys(captions.machine_of(file) for file in evidence.matrices if file["rows"])
    lacking = table[table["absent"].notna()]
    absent = {f"{row.device.upper()}, {row.way}: {row.absent}": None for row in lacking.itertuples()}
    absent |= {f"{file['device'].upper()}: {file['absent']}": None for file in evidence.matrices if "absent" in file}
    if shown:
        notes = [
            f"Study {evidence.study}; {statistics.listed(machines)}. Masked: 2:4 in dense kernels.",
            "Limit: the time that bandwidth and speed, measured in the same run, allow.",
            "Noisy: a spread (10th to 90th percentile) over 10 % of the median.",
        ]
    else:
        notes = [f"Study {evidence.study}: no product has been measured."]
    notes += [f"Absent: {reason}." for reason in absent]
    return Table("Products of single matrices", pd.DataFrame(shown), table, tuple(notes))
