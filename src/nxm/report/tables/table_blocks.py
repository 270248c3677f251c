"""Block-sparse matrices against dense ones."""

from __future__ import annotations

import pandas as pd

from nxm.report import bench
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [
    *("device", "dtype", "out_features", "in_features", "tokens", "way", "block", "density", "median_ms", "p10_ms"),
    *("p90_ms", "noisy", "speedup", "tflops", "relative_error", "warps", "stages", "captured", "call", "absent"),
]


def make(evidence: Evidence) -> Table:
    """Return a row per device, matrix and number of tokens, with the speed-up of each block size and density."""
    numbers = []
    for file in evidence.bench:
        for row in bench.rows(file, "blocks"):
            out_features, in_features = row["shape"]
            numbers.append(
                {"device": file["device"], "out_features": out_features, "in_features": in_features} | dict(row)
            )
    table = pd.DataFrame(numbers, columns=FIELDS)
    shown = []
    own = table[table["median_ms"].notna()]
    for (device, out, inside, tokens), group in own.groupby(
        ["device", "out_features", "in_features", "tokens"], sort=False
    ):
        by_way = group.set_index("way")
        line = {
            "Device": bench.DEVICES[device],
            "Outputs × inputs": f"{out} × {inside}",
            "Tokens": f"{tokens:,}",
            "Dense, ms": f"{by_way.loc['dense', 'median_ms']:.3g}",
        }
        for row in group[group["way"] != "dense"].itertuples():
            heading = f"{row.block:.0f} × {row.block:.0f}, about {100 * bench.asked({'way': row.way}):.0f} % left"
            line[heading] = f"{row.speedup:.2f}{' ~' if row.noisy else ''} ({100 * row.density:.1f} %)"
        shown.append(line)
    return Table("Block-sparse products", pd.DataFrame(shown), table, tuple(_notes(evidence, shown)))


def _notes(evidence: Evidence, shown: list[dict[str, str]]) -> list[str]:
    if not shown:
        return [
            f"Study {evidence.study}: no block-sparse product has been measured.",
            *bench.absences(evidence.bench, "blocks"),
        ]
    return [
        f"Study {evidence.study}; {bench.machines(evidence)}. Speed-up over the dense product, in interleaved rounds, "
        "with the share of the weights that is left: a row of blocks keeps a whole number of them.",
        "GPU: PyTorch's Triton kernel in BF16, the best of a few configurations; CPU: PyTorch's in FP32.",
        "~: the spread of the times is over 10 % of the median.",
        *bench.absences(evidence.bench, "blocks"),
    ]
