"""The cost of an encoder by its numbers of heads and FFN rows: weights, FLOPs or measured milliseconds.

The cost of a structure is the sum over its layers of the cost of the attention with so many heads and of the FFN with
so many rows. Weights and FLOPs are linear in both; milliseconds come from a measured table
(`nxm.measure.latency.measure_latency`), as in ZipLM (Kurtic et al., arXiv 2302.04089).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from nxm.errors import UserError
from nxm.files import write_text
from nxm.models.roles import find_blocks
from nxm.models.structure import Structure


@dataclass(frozen=True)
class Cost:
    """A table of costs of one layer, the same for all layers.

    unit: of the values, for messages: "weights", "FLOPs" or "ms".
    heads: number of heads -> cost of the attention, from 0 to all heads; it never falls.
    rows: number of rows -> cost of the FFN, from 0 to all rows; it never falls.
    """

    unit: str
    heads: tuple[float, ...]
    rows: tuple[float, ...]

    def of(self, structure: Structure) -> float:
        """Return the cost of a structure."""
        return self.of_counts(structure.n_heads, structure.n_rows)

    def of_counts(self, n_heads: Sequence[int], n_rows: Sequence[int]) -> float:
        """Return the cost of layers with these numbers of heads and rows."""
        return sum(self.heads[n] for n in n_heads) + sum(self.rows[n] for n in n_rows)

    def dense(self, n_layers: int) -> float:
        """Return the cost of all heads and rows of so many layers."""
        return n_layers * (self.heads[-1] + self.rows[-1])

    def share(self, structure: Structure) -> float:
        """Return the cost of a structure as a share of that of all heads and rows in as many layers."""
        return self.of(structure) / self.dense(len(structure.heads))


def weights(model: nn.Module) -> Cost:
    """Return the entries of the six matrices of a layer by its heads and rows, biases not counted.

    Over the dense model's this is the density that the study reports ("remaining weights"). A model that was shrunk has
    the table of its largest layer.

    Raises:
        UserError: the architecture has no entry in `nxm.models.roles`.
    """
    head, row, n_heads, n_rows = _sizes(model)
    return Cost(
        "weights", tuple(float(k * head) for k in range(n_heads + 1)), tuple(float(k * row) for k in range(n_rows + 1))
    )


def flops(model: nn.Module, length: int) -> Cost:
    """Return the FLOPs of a layer on one sequence by its heads and rows, a multiplication and an addition being two.

    Counted are the matrix products: those with weights, and the two of attention, whose cost grows with the square of
    the length. Biases, softmax, activations and LayerNorm are not counted.

    Args:
        length: tokens of the sequence, padding included.

    Raises:
        UserError: the architecture has no entry in `nxm.models.roles`, or the length is below 1.
    """
    if length < 1:
        raise UserError(f"length = {length}: FLOPs need a sequence of at least one token")
    head, row, n_heads, n_rows = _sizes(model)
    attention = 2 * 2 * length * length * find_blocks(model)[0].head_width  # Q K^T, and the probabilities times V
    return Cost(
        "FLOPs",
        tuple(float(k * (2 * length * head + attention)) for k in range(n_heads + 1)),
        tuple(float(k * 2 * length * row) for k in range(n_rows + 1)),
    )


def interpolated(heads: Mapping[int, float], rows: Mapping[int, float], unit: str = "ms") -> Cost:
    """Return the table of measured points, with straight lines between them and from 0 to the first.

    A point below an earlier one is raised to it: more heads or rows never cost less, and what is left are disturbances
    of the measurement.

    Args:
        heads, rows: number -> cost, measured up to the dense model's number.

    Raises:
        UserError: no point, a number below 1, or a cost that is not positive.
    """
    return Cost(unit, _line(heads, "heads"), _line(rows, "rows"))


def write_cost(path: Path, cost: Cost, notes: Mapping[str, object]) -> None:
    """Write a table as JSON with notes on its origin, such as the machine, batch and length."""
    table = {"unit": cost.unit, **notes, "heads": cost.heads, "rows": cost.rows}
    write_text(path, json.dumps(table, indent=1) + "\n")


def read_cost(path: Path, model: nn.Module) -> Cost:
    """Read a table written by `write_cost`, for a model.

    Raises:
        UserError: the file is missing or no such table, or it is for other numbers of heads or rows.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(str(table["unit"]), tuple(map(float, table["heads"])), tuple(map(float, table["rows"])))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; measure_latency makes it") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no table of costs with unit, heads and rows ({error!r})") from None
    _, _, n_heads, n_rows = _sizes(model)
    if (len(cost.heads), len(cost.rows)) != (n_heads + 1, n_rows + 1):
        raise UserError(
            f"{path}: the table is for {len(cost.heads) - 1} heads and {len(cost.rows) - 1} rows, but the model's "
            f"layers have {n_heads} and {n_rows}: measure it again"
        )
    return cost


def _sizes(model: nn.Module) -> tuple[int, int, int, int]:
    """Return the weights of a head and of a row, and the largest numbers of heads and rows of a layer."""
    blocks = find_blocks(model)
    hidden, width = blocks[0].hidden_size, blocks[0].head_width
    return 4 * hidden * width, 2 * hidden, max(b.n_heads for b in blocks), max(b.n_rows for b in blocks)


def _line(points: Mapping[int, float], what: str) -> tuple[float, ...]:
    if not points or min(points) < 1 or min(points.values()) <= 0:
        raise UserError(f"{what}: {dict(points)} are not measured points, numbers from 1 on with a positive cost")
    numbers = sorted(points)
    costs = np.maximum.accumulate([points[number] for number in numbers])
    return tuple(np.interp(range(numbers[-1] + 1), [0, *numbers], [0.0, *costs]).tolist())
