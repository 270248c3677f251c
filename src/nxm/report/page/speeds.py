"""Speeds for sentences: functions that a template calls, computed from the files of `nxm bench`.

    bench_machine()                            the device and the versions on which its speed depends
    product_gain(TYPE, OUT, IN, TOKENS)        1.40: the fastest 2:4 kernel over the fastest dense one
    product_gains(TYPE)                        0.89 to 1.57: the least and the most of them
    way_gains(TYPE, WAY)                       1.00 to 2.39: as product_gains, of one way, such as "2:4 to int32"
    product_rate(TYPE, KIND)                   1,059: the highest TFLOP/s of "dense" or "2:4" kernels in any product
    default_gains(TYPE)                        0.60 to 0.95: as product_gains, with cuSPARSELt's default algorithm
    encoder_gain(MODEL, BATCH, LENGTH, TYPE, FORM, WAY="compiled")   1.16: over the dense one in BF16, compiled
    encoder_energy(MODEL, BATCH, LENGTH, TYPE, FORM)                 90 %: energy as a share of that one's
    proven_encoders()                          18 of 18: encoders with 2:4 kernels that launched one per packed matrix
    packed_share()                             56 %: the bytes of a packed matrix in BF16, of the dense one's
    block_gains(BLOCK, DENSITY)                1.41 to 1.57: block-sparse over dense products, about DENSITY left
    block_shares(BLOCK, DENSITY)               17 to 21 %: the weights that are left in these

Each takes `study=`. A GPU's file counts before a CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nxm.errors import UserError
from nxm.report import bench
from nxm.report.bench import File, Row
from nxm.report.evidence import Evidence


def bench_machine(evidence: Evidence) -> str:
    """The device and the versions on which its speed depends."""
    _file(evidence)
    return bench.machines(evidence)


def product_gain(evidence: Evidence, dtype: str, out: int, inside: int, tokens: int) -> str:
    """The speed-up of one product."""
    key = dtype, (out, inside), tokens
    return f"{_measured(evidence, bench.products(_file(evidence)).get(key), *key)['speedup']:.2f}"


def product_gains(evidence: Evidence, dtype: str) -> str:
    """The least and the most speed-up over all products of a type."""
    return _range(evidence, (row["speedup"] for row in _best(evidence, dtype)), dtype)


def default_gains(evidence: Evidence, dtype: str) -> str:
    """The same with cuSPARSELt's default algorithm."""
    return way_gains(evidence, dtype, "2:4 algorithm 0")


def way_gains(evidence: Evidence, dtype: str, way: str) -> str:
    """The least and the most speed-up of one way over all products of a type."""
    ways = [own for (kind, *_), own in bench.products(_file(evidence)).items() if kind == dtype]
    return _range(evidence, (own[way]["speedup"] for own in ways if way in own), dtype, way)


def product_rate(evidence: Evidence, dtype: str, kind: str) -> str:
    """The highest rate in TFLOP/s."""
    rates = [
        row["tflops"]
        for (own, *_), ways in bench.products(_file(evidence)).items()
        for row in ways.values()
        if own == dtype and (bench.is_sparse(row) if kind == "2:4" else row["way"].startswith(kind))
    ]
    return f"{max(_some(evidence, rates, dtype, kind)):,.0f}"


def encoder_gain(
    evidence: Evidence, model: str, batch: int, length: int, dtype: str, form: str, way: str = "compiled"
) -> str:
    """The speed-up of an encoder's form."""
    gain = _encoder(evidence, model, batch, length, dtype, form, way)["speedup"]
    return f"{gain:.2f}"


def encoder_energy(evidence: Evidence, model: str, batch: int, length: int, dtype: str, form: str) -> str:
    """The energy of a form's call as a share of the dense one's in BF16."""
    own, dense = (
        _encoder(evidence, model, batch, length, *which, "compiled").get("joules")
        for which in ((dtype, form), ("bf16", "dense"))
    )
    if own is None or dense is None:
        raise UserError(f"study {evidence.study}: no energy was measured of {model}, {batch} x {length}")
    return f"{100 * own / dense:.0f} %"


def proven_encoders(evidence: Evidence) -> str:
    """The number of encoders with 2:4 kernels that launched one sparse kernel per packed matrix, of all."""
    own = [row for row in bench.timed(_file(evidence), "encoders") if row["form"] != "dense"]
    packed = [row["layers"] * sum(kernel != "dense" for kernel in row["kernels_of"].values()) for row in own]
    proven = sum(row["sparse_launches"] == count for row, count in zip(own, packed, strict=True))
    return f"{proven} of {len(own)}"


def packed_share(evidence: Evidence) -> str:
    """The bytes of a packed matrix in BF16 as a share of the dense one's."""
    rows = [row for row in _file(evidence)["rows"] if row["part"] == "proof" and row["dtype"] == "bf16"]
    shares = [row["stored_share"] for row in rows if "stored_share" in row]
    return f"{100 * _some(evidence, shares, 'proof')[-1]:.0f} %"


def block_gains(evidence: Evidence, block: int, density: float) -> str:
    """The least and the most speed-up of a block size and the density that was asked for."""
    return _range(evidence, (row["speedup"] for row in _blocks(evidence, block, density)), block, density)


def block_shares(evidence: Evidence, block: int, density: float) -> str:
    """The least and the most share of the weights that is left with a block size and the density that was asked for."""
    shares = [100 * row["density"] for row in _blocks(evidence, block, density)]
    own = list(dict.fromkeys(f"{value(_some(evidence, shares, block, density)):.0f}" for value in (min, max)))
    return f"{' to '.join(own)} %"


SPEEDS: dict[str, Callable[..., str]] = {
    make.__name__: make
    for make in (
        *(bench_machine, product_gain, product_gains, default_gains, way_gains, product_rate),
        *(encoder_gain, encoder_energy, proven_encoders, packed_share, block_gains, block_shares),
    )
}


def _file(evidence: Evidence) -> File:
    if not evidence.bench:
        raise UserError(f"study {evidence.study} has no result of nxm bench")
    return max(evidence.bench, key=lambda file: file["device"] == "cuda")


def _best(evidence: Evidence, dtype: str) -> list[Row]:
    ways = [own for (kind, *_), own in bench.products(_file(evidence)).items() if kind == dtype]
    return [row for own in ways if (row := bench.best(own)) is not None and bench.is_sparse(row)]


def _blocks(evidence: Evidence, block: int, density: float) -> list[Row]:
    rows = bench.timed(_file(evidence), "blocks")
    return [row for row in rows if row.get("block") == block and bench.asked(row) == density]


def _encoder(evidence: Evidence, model: str, batch: int, length: int, dtype: str, form: str, way: str) -> Row:
    wanted = model, batch, length, dtype, form, way
    for row in bench.timed(_file(evidence), "encoders"):
        if (row["model"], row["batch"], row["length"], row["dtype"], row["form"], row["way"]) == wanted:
            return row
    raise _unmeasured(evidence, *wanted)


def _measured(evidence: Evidence, ways: dict[str, Row] | None, *wanted: object) -> Row:
    row = bench.best(ways) if ways else None
    if row is None:
        raise _unmeasured(evidence, *wanted)
    return row


def _range(evidence: Evidence, values: Iterable[float], *wanted: object) -> str:
    own = _some(evidence, list(values), *wanted)
    return f"{min(own):.2f} to {max(own):.2f}"


def _some(evidence: Evidence, values: list[float], *wanted: object) -> list[float]:
    if not values:
        raise _unmeasured(evidence, *wanted)
    return values


def _unmeasured(evidence: Evidence, *wanted: object) -> UserError:
    return UserError(f"study {evidence.study}: {', '.join(map(str, wanted))} was not measured by nxm bench")
