"""Integers: every row of a matrix on a symmetric grid of few bits with a scale of its own, alone or with N:M sparsity.

A matrix of the set is Z = s q: codes q of `bits` bits, -L <= q <= L with L = 2^(bits-1) - 1 (2 bits: -1, 0 and 1), and
one scale s > 0 per output row. Scales are bfloat16 numbers. Their 8 significant bits times the codes' 7 fit into the 24
of fp32, so that every product s q is exact, a matrix determines its codes, and a checkpoint stores a scale in two bytes
without loss.

**The joint projection.** Fix the scale s. Rounding is then separate for each entry: V goes to the nearest code, and
keeping V at the code q instead of zero lowers the squared error V^2 by

    gain(V) = max over |q| <= L of q s (2 |V| - q s).

Only q >= 0 matters here, since the grid is symmetric and codes take V's sign. Each term is then linear in |V| with a
slope 2 q s >= 0, so their maximum does not decrease with |V|, through rounding, clamping and the dead zone alike. In
each group of an N:M pattern the N largest magnitudes therefore have the N largest gains: *keep the N largest, then
round and clamp* is the exact projection on integers with N:M, and the mask depends on no scale. Two things are needed:
a scale that the group shares, and a symmetric grid. On -8..7 a large positive entry is clamped harder than a negative
one and may gain less than a smaller entry.

**The scale.** With codes fixed the squared error is a parabola in s with its minimum at <V, q> / <q, q>. The best pair
of codes and scale is found by a sweep over all bfloat16 scales at once (`_best_scale`), exactly.

**Costs.** With a cost v that differs inside a group, the gain v q s (2 |V| - q s) depends on the scale, and with it the
mask. The projection then starts from the N:M set's own mask, takes the best scale, keeps the largest gains, and repeats
that as long as the error falls: never farther than mask first and integers second, though another mask may be nearer
still. Without N:M it is exact for any cost.

Sums are in fp64. Where two scales are equally good to about 15 digits, devices may choose differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nxm.errors import Diverged, UserError
from nxm.sets.base import ConstraintSet, Grid, Projection, SparseSet, reject_nan
from nxm.sets.nm import NM

_LOWEST, _HIGHEST = 0x0080, 0x7F7F  # the bits of the smallest and the largest normal bfloat16 number


@dataclass(frozen=True)
class Integers(ConstraintSet):
    """Codes of `bits` bits times one scale per row, at most `mask` of them other than zero: `Integers(4, NM(2, 4))`.

    The choice is the codes, int8. `hold_` takes a bool mask in their place as well: then the zero pattern alone is
    given, and the weights move to the nearest point with it.

    bits: 2 to 8.
    mask: the N:M set that the zero pattern obeys; None: any pattern. (A dict of its fields is read as one, which is how
        config.json stores it.)

    Raises:
        UserError: no such number of bits.
    """

    notation: ClassVar[str] = 'integers of 2 to 8 bits, with N:M or without, such as "int8" or "2:4 int4"'
    examples: ClassVar[tuple[str, ...]] = ("int8", "int3", "2:4 int8", "2:4 int4", "1:4 int2")

    bits: int
    mask: NM | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(f"integers have 2 to 8 bits, got bits={self.bits}")
        if isinstance(self.mask, dict):
            object.__setattr__(self, "mask", NM(**self.mask))

    def __str__(self) -> str:
        return f"int{self.bits}" if self.mask is None else f"{self.mask} int{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Integers | None:
        match = re.fullmatch(r"(?:(\d+:\d+) )?int(\d+)", text)
        return cls(int(match[2]), NM.parse(match[1]) if match[1] else None) if match else None

    @property
    def largest(self) -> int:
        """The largest code L; the smallest is -L."""
        return 2 ** (self.bits - 1) - 1

    @property
    def zero_patterns(self) -> SparseSet | None:
        return self.mask

    def validate(self, shape: torch.Size | tuple[int, ...], name: str) -> None:
        if len(shape) != 2:
            raise UserError(f"{name}: integers have a scale per row of a matrix, this has shape {tuple(shape)}")
        if self.mask is not None:
            self.mask.validate(shape, name)

    def project(self, V: Tensor, cost: Tensor | None = None) -> Projection:
        """Project as described above. Raises Diverged for NaN, and for infinities, which have no nearest integer."""
        self.validate(V.shape, "matrix")
        V = V.detach()
        _reject_infinity(V)
        mask = None if self.mask is None else self.mask.project(V, cost).choice
        codes = self._codes(V, mask, cost)
        if self.mask is not None and cost is not None and cost.shape[-1] > 1:
            codes = self._exchange(V, codes, cost, self.mask)
        return self._canonical(V, codes, cost)

    def hold_(self, W: Tensor, choice: Tensor) -> None:
        """Move W, in place, to the nearest point with these codes, or with this zero pattern for a bool mask.

        Raises:
            TypeError: W is not fp32 or fp64, in which a code times a scale is exact.
        """
        _require_precision(W)
        if choice.dtype == torch.bool:
            _reject_infinity(W)
            W.copy_(self._canonical(W, self._codes(W, choice, None), None).Z)
        else:
            W.copy_(_product(choice, _fitted_scale(W, choice, None), W.dtype))

    def contains(self, W: Tensor) -> bool:
        self.validate(W.shape, "matrix")
        if self.mask is not None and not self.mask.contains(W):
            return False
        return bool(_read(W.detach(), self.largest)[2].all())

    def decode(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes, int8, and scales, bfloat16 `(out_features, 1)`, of a matrix of the set: W = scales x codes.

        Raises:
            UserError: W is not in the set.
        """
        if not self.contains(W):
            raise UserError(f"the matrix is not {self}, so it has no codes")
        codes, scale, _ = _read(W.detach(), self.largest)
        return codes, scale.bfloat16()

    def grid(self, W: Tensor, choice: Tensor) -> Grid:
        """Return the grid on which a training goes on: the zero pattern of a choice and the scales that suit W.

        Args:
            choice: a bool mask, for which the best scales are sought; or codes, whose scales are taken. A code of zero
                says that the entry is small and not that it is pruned: among such entries, those with the largest |W|
                complete an N:M pattern.

        Raises:
            TypeError: W is not fp32 or fp64.
        """
        _require_precision(W)
        W = W.detach()
        if choice.dtype == torch.bool:
            codes, mask = self._codes(W, choice, None), choice
        else:
            codes, mask = choice, torch.ones_like(choice, dtype=torch.bool)
            if self.mask is not None:
                mask = self.mask.mask(W.abs() + W.abs().amax() * (codes != 0))
        return Grid(mask, _fitted_scale(W, codes, None).to(W.dtype), self.largest)

    def similarity(self, choice: Tensor, before: Tensor) -> tuple[float, float]:
        """Return the non-zero codes that stay, and the non-zero codes before.

        Zeros do not count, as in the paper's Figure 3: with N:M most of them must stay whatever the weights do.
        """
        nonzero = before != 0
        return float(((choice == before) & nonzero).sum()), float(nonzero.sum())

    def _codes(self, V: Tensor, mask: Tensor | None, cost: Tensor | None) -> Tensor:
        """Return the codes of the nearest matrix with this zero pattern, int8."""
        rows = max(1, _ENTRIES_AT_ONCE // V.shape[1])
        parts = []
        for first in range(0, len(V), rows):
            part = slice(first, first + rows)
            v = cost if cost is None or cost.shape[0] == 1 else cost[part]
            parts.append(self._codes_of_rows(V[part], None if mask is None else mask[part], v))
        return torch.cat(parts)

    def _codes_of_rows(self, V: Tensor, mask: Tensor | None, cost: Tensor | None) -> Tensor:
        a = V.abs().float()
        if mask is not None:
            a = a * mask
        v = torch.ones_like(a) if cost is None else cost.float().expand_as(a)
        return _round(V * mask if mask is not None else V, _best_scale(a, v, self.largest), self.largest)

    def _exchange(self, V: Tensor, codes: Tensor, cost: Tensor, patterns: NM) -> Tensor:
        """Return codes whose mask has the largest gains at their own scale, by descent from the given ones."""
        a, v, improved = V.abs().double(), cost.double(), torch.ones(len(V), dtype=torch.bool, device=V.device)
        while bool(improved.any()):
            scale = _fitted_scale(V, codes, cost)
            size = _round(V, scale, self.largest).abs() * scale
            mask = patterns.mask(v * size * (2 * a - size))
            new = self._codes(V, mask, cost)
            improved = _error(V, new, cost) < _error(V, codes, cost) * (1 - 1e-9)
            codes = torch.where(improved[:, None], new, codes)
        return codes

    def _canonical(self, V: Tensor, codes: Tensor, cost: Tensor | None) -> Projection:
        """Return the projection for its codes, written with the smallest codes that the same Z has."""
        scale = _fitted_scale(V, codes, cost)
        inside, inside_scale, is_inside = _read(V, self.largest)
        if self.mask is not None and bool(is_inside.any()):
            kept = V.reshape(len(V), -1, self.mask.group_size) != 0
            is_inside = is_inside & (kept.sum(dim=2) <= self.mask.n_nonzero).all(dim=1)
        codes = torch.where(is_inside[:, None], inside, codes)  # a row in the set is its own projection
        scale = torch.where(is_inside[:, None], inside_scale, scale)
        shared = ~(codes.abs() == 1).any(dim=1) & codes.any(dim=1)  # a common divisor above 1 is possible
        if bool(shared.any()):
            divisor = _common_divisor(codes[shared].int())
            primitive = codes[shared] // divisor
            factor, _ = _largest_scale(primitive, scale[shared] * divisor, self.largest)
            codes[shared] = (primitive * factor).to(torch.int8)
            scale[shared] = scale[shared] * divisor / factor
        return Projection(_product(codes, scale, V.dtype), codes)


_ENTRIES_AT_ONCE = 2**20  # bounds the memory of the search for scales


def _best_scale(a: Tensor, v: Tensor, largest: int) -> Tensor:
    """Return the bfloat16 scale of each row that brings magnitudes nearest to integers, fp64 `(rows, 1)`.

    The error that a scale s saves is 2 s A(s) - s^2 B(s), for A = sum v a q and B = sum v q^2 with the nearest codes q.
    As s falls, an entry's code reaches k at s = a / (k - 1/2); A then grows by v a and B by (2 k - 1) v. Sorted into
    bins, one for each bfloat16 number, these steps give A and B of every scale by one cumulative sum.

    Args:
        a: magnitudes, (rows, columns), fp32, finite.
        v: costs, of the same shape.
        largest: the largest code.
    """
    a = a * (v > 0)  # what costs nothing decides nothing
    a, order = a.sort(dim=1, descending=True)
    n_nonzero = max(1, int((a > 0).sum(dim=1).amax()))
    a, v = a[:, :n_nonzero], v.gather(1, order[:, :n_nonzero]).double()
    va = v * a
    lowest = _lower_bound(a.double(), v, va, largest).float()
    first = (lowest.view(torch.int32) >> 16).clamp(_LOWEST, _HIGHEST)
    last = ((2.0 * a[:, :1]).view(torch.int32) >> 16).clamp(_LOWEST, _HIGHEST)  # above it all codes are 0
    n_bins = int((last - first).amax()) + 1
    A, B = (torch.zeros(len(a), n_bins + 1, dtype=torch.float64, device=a.device) for _ in range(2))
    reach = (a / lowest).amax(dim=0)  # codes at the smallest scale, over the rows: it falls from column to column
    for k in torch.arange(1, largest + 1, device=a.device).split(max(1, _ENTRIES_AT_ONCE // a.numel())):
        n_columns = int((reach >= k[0] - 0.5).sum())
        steps = a[:, None, :n_columns] / (k[:, None] - 0.5)  # (rows, codes, columns): q >= k from this scale down
        bins = ((steps.view(torch.int32) >> 16) - first[:, None] + 1).clamp_(0, n_bins)  # bin 0: below the smallest
        bins = bins.reshape(len(a), -1).long()
        A.scatter_add_(1, bins, va[:, None, :n_columns].expand_as(steps).reshape(len(a), -1))
        B.scatter_add_(1, bins, (v[:, None, :n_columns] * (2 * k[:, None] - 1)).reshape(len(a), -1))
    A, B = (_sum_from_the_right(sums[:, 1:]) for sums in (A, B))
    bits = (first + torch.arange(n_bins, device=a.device, dtype=torch.int32)).clamp(max=_HIGHEST)
    s = (bits << 16).view(torch.float32).double()
    saved = 2 * s * A - s.square() * B
    best = saved == saved.amax(dim=1, keepdim=True)
    return (s * best).amax(dim=1, keepdim=True)  # of equal ones the largest scale, with the smallest codes


def _sum_from_the_right(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1).flip(1)


def _lower_bound(a: Tensor, v: Tensor, va: Tensor, largest: int) -> Tensor:
    """Return a scale below the best one of each row, fp64 `(rows, 1)`; `a` falls from column to column.

    Two bounds, from the error E and the saving G = sum v a^2 - E that the scale a_max / L reaches: a scale s saves at
    most 2 s A <= 2 s L sum v a; and clamping one entry alone costs v (a - L s)^2, which must not exceed E.
    """
    guess = a[:, :1] / largest
    q = (a / guess.clamp_min(1e-300) + 0.5).floor_().clamp_(max=largest)
    A, B = (va * q).sum(dim=1, keepdim=True), (v * q * q).sum(dim=1, keepdim=True)
    saved = 0.999 * A.square() / B.clamp_min(1e-300)  # 0.999: the best scale for these codes, rounded to bfloat16
    error = (va * a).sum(dim=1, keepdim=True) - saved
    by_saving = saved / (2 * largest * va.sum(dim=1, keepdim=True)).clamp_min(1e-300)
    by_clamping = torch.where(v > 0, a - (error / v).sqrt(), 0.0).amax(dim=1, keepdim=True) / largest
    return (0.999 * torch.maximum(by_saving, by_clamping)).clamp_min(2.0**-126)


def _fitted_scale(V: Tensor, codes: Tensor, cost: Tensor | None) -> Tensor:
    """Return the bfloat16 scale of each row that is best for its codes, fp64 `(rows, 1)`; 0 where none above 0 is."""
    q = codes.double()
    vq = q if cost is None else q * cost
    scale = (vq * V).sum(dim=1, keepdim=True) / (vq * q).sum(dim=1, keepdim=True).clamp_min(1e-300)
    return scale.clamp_min(0.0).bfloat16().double()


def _round(V: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Return the nearest codes, int8."""
    return (V / scale.to(V.dtype)).nan_to_num_(0.0).round_().clamp_(-largest, largest).to(torch.int8)


def _product(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scale x codes without -0.0; exact in fp32."""
    return (codes * scale.float()).add_(0.0).to(dtype)


def _error(V: Tensor, codes: Tensor, cost: Tensor) -> Tensor:
    """Return the squared error of each row with the best scale for its codes."""
    Z = codes * _fitted_scale(V, codes, cost)
    return (cost * (V - Z).square()).sum(dim=1)


def _read(W: Tensor, largest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes and scales of the rows that are integers times a bfloat16 scale, and the bool mask of these rows.

    In units of a power of two such a row consists of integers below 2^15, for 8 bits of the scale and 7 of the code.
    Their greatest common divisor g is the largest real scale; bfloat16 ones are g / d for whole d.
    """
    codes = torch.zeros(W.shape, dtype=torch.int8, device=W.device)
    scale = torch.zeros(len(W), 1, dtype=torch.float64, device=W.device)
    exponent = torch.frexp(W.abs().amax(dim=1, keepdim=True).float()).exponent
    unit = torch.ldexp(torch.ones_like(scale), exponent - 15)
    whole = W.double() / unit
    inside = (whole == whole.round()).all(dim=1)
    if bool(inside.any()):
        n = whole[inside].int()
        divisor = _common_divisor(n)
        primitive = n // divisor
        factor, fits = _largest_scale(primitive, divisor * unit[inside], largest)
        codes[inside] = torch.where(fits, primitive * factor, 0).to(torch.int8)
        scale[inside] = torch.where(primitive.any(dim=1, keepdim=True), divisor * unit[inside] / factor, 0.0)
        inside[inside.clone()] = fits[:, 0]
    return codes, scale, inside


def _largest_scale(primitive: Tensor, scale: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return the smallest whole d for which scale / d is a bfloat16 number and the codes d x primitive are allowed.

    Args:
        primitive: codes without a common divisor, (rows, columns).
        scale: their scales, fp64 `(rows, 1)`.

    Returns: d, and whether there is one, both `(rows, 1)`.
    """
    d = torch.arange(1, largest + 1, device=scale.device)
    divided = scale / d
    fits = (divided.bfloat16().double() * d == scale) & (primitive.abs().amax(dim=1, keepdim=True) * d <= largest)
    return torch.where(fits, d, largest).amin(dim=1, keepdim=True), fits.any(dim=1, keepdim=True)


def _common_divisor(n: Tensor) -> Tensor:
    """Return the greatest common divisor of each row, `(rows, 1)`; 1 for a row of zeros."""
    while n.shape[1] > 1:
        half = n.shape[1] // 2
        n = torch.cat([torch.gcd(n[:, :half], n[:, half : 2 * half]), n[:, 2 * half :]], dim=1)
    return n.abs().clamp_min(1)


def _reject_infinity(V: Tensor) -> None:
    """Raise Diverged if V has NaN or an infinity."""
    reject_nan(V)
    if bool(V.abs().amax().isinf()):
        raise Diverged("cannot round a matrix with infinities to integers: training diverged (lower the learning rate)")


def _require_precision(W: Tensor) -> None:
    if W.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"integer weights need float32, in which a code times its scale is exact; these are {W.dtype}: load the "
            "model with dtype=torch.float32 and use autocast (bf16=True) for speed"
        )
