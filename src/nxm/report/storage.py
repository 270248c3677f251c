"""The bits that a model takes when it is stored as its sets allow, from its results file alone.

`nxm.models.packed.stored_bits` counts the same from a set; here a set is its text, so that figures need no torch. A
test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nxm.study.results import Result

SCALE = 16  # bits of the scale of a row of integers
NUMBER = 32  # bits of a number that is no integer
_SET = re.compile(r"(?:(?P<n>\d+):(?P<m>\d+))?(?: ?int(?P<bits>\d+))?")
_UNSTRUCTURED = re.compile(r"(?:unstructured )?(?P<percent>[\d.]+) ?%")


def set_bits(pattern: str | None, shape: tuple[int, int]) -> int | None:
    """Return the bits of a matrix (rows, columns) of a set: values, what says where they are, and scales.

    Args:
        pattern: the set as text, such as "2:4 int4"; None: dense.

    Returns: the bits; None for a set of another kind, whose form of storage is not known.
    """
    rows, columns = shape
    if not pattern:
        return NUMBER * rows * columns
    if share := _UNSTRUCTURED.fullmatch(pattern):
        return NUMBER * round(float(share["percent"]) / 100 * rows * columns) + rows * columns
    found = _SET.fullmatch(pattern)
    if found is None:
        return None
    values, places = rows * columns, 0
    if found["n"]:
        values = rows * columns // int(found["m"]) * int(found["n"])
        places = (int(found["m"]) - 1).bit_length()
    if found["bits"]:
        return values * (int(found["bits"]) + places) + SCALE * rows
    return values * (NUMBER + places)


def shapes(result: Result) -> list[tuple[int, int]] | None:
    """Return the shapes of a result's target matrices, as (rows, columns).

    They are those of an encoder whose layers have four matrices for attention and two of an FFN, shrunk or not. None
    where their sizes do not add up to the targets', as with other architectures or with targets left out.
    """
    hidden, layers, weights = result.model.hidden_size, result.model.layers, result.sparsity.target_parameters
    if result.structure is not None:
        head = hidden // result.structure.dense_heads
        widths = [head * heads for heads in result.structure.heads]
        ffns = list(result.structure.rows)
    else:
        ffn = (weights // max(layers, 1) - 4 * hidden**2) // (2 * hidden)
        widths, ffns = [hidden] * layers, [ffn] * layers
    found = [
        shape
        for width, ffn in zip(widths, ffns, strict=True)
        for shape in (*[(width, hidden)] * 3, (hidden, width), (ffn, hidden), (hidden, ffn))
    ]
    right = result.sparsity.targets == len(found) and sum(rows * columns for rows, columns in found) == weights
    return found if right and min(map(min, found), default=0) > 0 else None


def target_bits(result: Result) -> int | None:
    """Return the bits of all target matrices; None where shapes or set are not known."""
    if result.allocation is not None:
        return sum(own.bits for own in result.allocation.matrices)
    known = shapes(result)
    bits = [] if known is None else [set_bits(result.sparsity.pattern, shape) for shape in known]
    return None if not bits or None in bits else sum(one for one in bits if one is not None)


def bits_per_weight(result: Result) -> float | None:
    """Return the bits of the target matrices over the number of their weights, zeros counted."""
    bits = target_bits(result)
    return None if bits is None else bits / result.sparsity.target_parameters


def largest_of(results: Iterable[Result]) -> Result:
    """Return the result with the most bits a weight: seeds differ where each chose a set for each matrix."""
    return max(results, key=lambda result: bits_per_weight(result) or 0.0)


def stored_bytes(result: Result) -> int | None:
    """Return the bytes of the whole model: its targets as their set allows, everything else in fp32."""
    bits = target_bits(result)
    if bits is None:
        return None
    return (bits + NUMBER * (result.sparsity.parameters - result.sparsity.target_parameters)) // 8


def integer_bits(result: Result) -> int | None:
    """Return the bits of a code; None for a model without integers, or with codes of several widths."""
    found = _SET.fullmatch(result.sparsity.pattern or "")
    return int(found["bits"]) if found and found["bits"] else None
