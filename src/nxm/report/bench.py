"""Rows of `nxm bench` as figures, tables and pages read them: the latest of each measurement, with its label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nxm.report import statistics
from nxm.report.evidence import Evidence

Row = dict[str, Any]
File = dict[str, Any]

TYPES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "fp8": "FP8", "int8": "INT8"}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
FORMS = {
    "dense": "dense",
    "2:4": "2:4",
    "2:4 FFN": "2:4 in the feed-forward layers",
    "auto": "2:4 where its product is faster",
}
WAYS = {
    "compiled": "compiled, in a CUDA graph",
    "captured": "eager, in a CUDA graph",
    "eager": "eager, launched by the host",
}
UNCAPTURED = {"compiled": "compiled", "captured": "eager", "eager": "eager"}  # a CPU's WAYS: it has no CUDA graphs
_KEYS = {  # of a measurement: of several rows with the same values the latest counts
    "products": ("dtype", "shape", "tokens", "way"),
    "encoders": ("model", "batch", "length", "dtype", "form", "way"),
    "blocks": ("shape", "tokens", "way"),
    "card": ("way",),
}


def rows(file: File, part: str) -> list[Row]:
    """Return the rows of a part, with times or with the reason why there are none, each measurement once.

    A measurement that an earlier call could not make, or made as well, is the latest call's.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    for row in file["rows"]:
        if row["part"] == part and "way" in row:
            key = tuple(str(row.get(name)) for name in _KEYS[part])
            if key not in latest or "absent" not in row:
                latest[key] = row
    return list(latest.values())


def timed(file: File, part: str) -> list[Row]:
    """Return the rows of a part that have a time."""
    return [row for row in rows(file, part) if "median_ms" in row]


def is_sparse(row: Row) -> bool:
    """Return whether a product's row is one of a 2:4 kernel with the best algorithm that was found."""
    return row["way"].startswith("2:4") and row["way"] != "2:4 algorithm 0"


def products(file: File) -> dict[tuple[str, tuple[int, int], int], dict[str, Row]]:
    """Return the timed ways of each product: (dtype, shape, tokens) -> way -> row."""
    found: dict[tuple[str, tuple[int, int], int], dict[str, Row]] = {}
    for row in timed(file, "products"):
        found.setdefault((row["dtype"], tuple(row["shape"]), row["tokens"]), {})[row["way"]] = row
    return found


def best(ways: dict[str, Row]) -> Row | None:
    """Return the fastest 2:4 way of a product, or its masked matrix in a dense kernel if there is none."""
    sparse = [row for row in ways.values() if is_sparse(row)]
    masked = [row for way, row in ways.items() if way.startswith("masked")]
    return max(sparse or masked, key=lambda row: row["speedup"], default=None)


def reference(ways: dict[str, Row]) -> Row:
    """Return the fastest dense way of a product."""
    return ways[next(iter(ways.values()))["reference"]]


def named_reference(row: Row) -> str:
    """Return the words for the encoder that a speed-up is over, such as "BF16 dense, compiled"."""
    dtype, _, rest = row["reference"].partition(" ")
    form, _, way = rest.rpartition(" ")
    return f"{TYPES[dtype]} {FORMS[form]}, {way}"


def asked(row: Row) -> float:
    """Return the share of blocks that a block-sparse row was to keep; its `density` is the nearest that there is."""
    return float(row["way"].rpartition(" at ")[2])


def absences(files: Iterable[File], part: str) -> list[str]:
    """Return a sentence for each reason why something of a part was not measured.

    A unit that failed as a whole, and was not measured by a later call, is there by its name.
    """
    reasons: dict[str, dict[str, None]] = {}
    for file in files:
        measured = {row["unit"] for row in file["rows"] if "unit" in row and "way" in row}
        for row in file["rows"]:
            if row["part"] == part and "absent" in row and "way" not in row and row["unit"] not in measured:
                what = f"{DEVICES[file['device']]}, {row['unit']}"
                reasons.setdefault(row["absent"].rstrip("."), {})[what] = None
        for row in rows(file, part):
            if "absent" in row:
                what = f"{DEVICES[file['device']]}, {TYPES.get(row.get('dtype', ''), row.get('dtype', ''))}"
                reasons.setdefault(row["absent"].rstrip("."), {})[what] = None
    return [f"Absent ({statistics.listed(what)}): {reason}." for reason, what in reasons.items()]


def machines(evidence: Evidence) -> str:
    """Return the devices of a study's benches with the versions on which their speed depends."""
    said = []
    for file in evidence.bench:
        versions = file["provenance"]["versions"]
        if "gpu" in file["provenance"]:
            library = next((f", cuSPARSELt {versions[name]}" for name in versions if "cusparselt" in name), "")
            power = f"{file['provenance']['gpu']['power_limit_watts']:.0f} W"
            said.append(f"{file['provenance']['gpu']['name']} ({power}), PyTorch {versions['torch']}{library}")
        else:
            machine = file["provenance"]["machine"]
            said.append(f"{machine['cpu']} ({machine['cores']} cores), PyTorch {versions['torch']}")
    return statistics.listed(dict.fromkeys(said))
