"""Products of single matrices, dense and 2:4: times, rates, and the kernels that ran."""

from __future__ import annotations

import pandas as pd

from nxm.report import bench, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [
    *("device", "dtype", "out_features", "in_features", "tokens", "way", "median_ms", "p10_ms", "p90_ms", "noisy"),
    *("speedup", "reference", "tflops", "relative_error", "algorithm", "care", "captured", "sparse_launches"),
    *("launches", "kernels_us", "kernels", "sm_mhz", "celsius", "call", "absent"),
]


def make(evidence: Evidence) -> Table:
    """Return a row per product with its fastest dense and its fastest 2:4 kernel; the CSV has every way."""
    shown, numbers = [], []
    for file in evidence.bench:
        device = bench.DEVICES[file["device"]]
        for row in bench.rows(file, "products"):
            out_features, in_features = row["shape"]
            where = {"device": file["device"], "out_features": out_features, "in_features": in_features}
            numbers.append(where | {**row, "kernels": " | ".join(own["name"] for own in row.get("kernels", []))})
        found = bench.products(file)
        ceilings = _ceilings(found)
        for (dtype, (out, inside), tokens), ways in found.items():
            own, dense, default = bench.best(ways), bench.reference(ways), ways.get("2:4 algorithm 0")
            if own is None:
                continue
            sparse = bench.is_sparse(own)
            share = 100 * own["tflops"] / ceilings[dtype, sparse]
            shown.append(
                {
                    "Device": device,
                    "Type": bench.TYPES[dtype],
                    "Outputs × inputs": f"{out} × {inside}",
                    "Tokens": f"{tokens:,}",
                    "Dense, TFLOP/s": _rate(dense["tflops"]),
                    "2:4, TFLOP/s": _rate(own["tflops"]) if sparse else statistics.ABSENT,
                    "Speed-up": f"{'' if sparse else 'masked '}{own['speedup']:.2f}{' ~' if own['noisy'] else ''}",
                    "Default algorithm": statistics.ABSENT if default is None else f"{default['speedup']:.2f}",
                    "Share of the ceiling": statistics.percent(share),
                    "Sparse kernels": str(own["sparse_launches"]),
                }
            )
    table = pd.DataFrame(numbers, columns=FIELDS)
    return Table("Products of single matrices", pd.DataFrame(shown), table, tuple(_notes(evidence, shown)))


def _ceilings(found: dict[tuple[str, tuple[int, int], int], dict[str, bench.Row]]) -> dict[tuple[str, bool], float]:
    """Return the highest rate that a type reached in any product, dense and 2:4: (dtype, sparse) -> TFLOP/s."""
    ceilings: dict[tuple[str, bool], float] = {}
    for (dtype, _, _), ways in found.items():
        for row in ways.values():
            key = dtype, bench.is_sparse(row)
            ceilings[key] = max(row["tflops"], ceilings.get(key, 0.0))
    return ceilings


def _rate(tflops: float) -> str:
    return f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.2g}"


def _notes(evidence: Evidence, shown: list[dict[str, str]]) -> list[str]:
    if not shown:
        return [
            f"Study {evidence.study}: no product has been measured.",
            *bench.absences(evidence.bench, "products"),
        ]
    return [
        f"Study {evidence.study}; {bench.machines(evidence)}.",
        "Speed-up: over the fastest dense kernel, in interleaved rounds (GPU: of CUDA graphs, with operands beyond the "
        "cache); masked: 2:4 in a dense kernel. A 2:4 product has the operations of the dense one.",
        "INT8: the dense kernel writes INT32, the 2:4 kernel BF16 or INT32, whichever is faster; the CSV has both.",
        "Ceiling: the highest rate of this type and kernel in any product here. Default algorithm: without a search.",
        "~: the spread of the times is over 10 % of the median.",
        *bench.absences(evidence.bench, "products"),
    ]
