"""The integers of a trained model, as exports take them over: codes and scales, not rounded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nxm.export.trained import Trained
from nxm.sets.integers import Integers

Values = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True)
class Codes:
    """A matrix W = scales x codes.

    bits: of a code, 2 to 8.
    codes: int8, (out_features, in_features), within +-(2^(bits-1) - 1).
    scales: fp32, (out_features,); 0 for a row of zeros.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray

    @property
    def W(self) -> np.ndarray:
        """The matrix, fp32; each product is exact."""
        return self.codes * self.scales[:, None] + np.float32(0.0)  # + 0.0: no -0.0


def trained_codes(trained: Trained) -> dict[str, Codes]:
    """Return the codes of every matrix that config.json claims for a set of integers, by name; {} without any."""
    weights = dict(trained.model.named_parameters())
    found = {}
    for constraint, names in trained.claims:
        if isinstance(constraint, Integers):
            for name in names:
                codes, scales = constraint.decode(weights[name].detach())
                found[name] = Codes(constraint.bits, codes.numpy(), scales[:, 0].float().numpy())
    return found


def by_values(integers: Mapping[str, Codes]) -> dict[Values, list[str]]:
    """Return the names of matrices by their values, for graphs that name weights otherwise."""
    names: dict[Values, list[str]] = {}
    for name, own in integers.items():
        names.setdefault(values_of(own.W), []).append(name)
    return names


def values_of(W: np.ndarray) -> Values:
    """Return the key of a matrix in `by_values`."""
    return W.shape, W.tobytes()
