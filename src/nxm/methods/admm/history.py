"""What happened to the weights while ADMM ran: the numbers behind the paper's Figures 1 and 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nxm.methods.admm.algorithm import ADMM


class MaskHistory:
    """Counts, for every weight, the ADMM iterations that it spent outside the mask.

    Keeps a copy of the weights at the start (fp32) and one byte a weight.
    """

    def __init__(self) -> None:
        self._start: dict[str, Tensor] = {}
        self._outside: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, admm: ADMM) -> None:
        """Before the first optimizer step: remember the pretrained weights."""
        self._start = {name: W.detach().clone() for name, W in admm.W.items()}
        self._outside = {name: torch.zeros_like(W, dtype=torch.uint8) for name, W in admm.W.items()}

    @torch.no_grad()
    def record(self, admm: ADMM) -> None:
        """After each ADMM iteration."""
        for name, mask in admm.masks.items():
            outside = self._outside[name]
            outside.add_(~mask & (outside < 255))  # saturates: 255 stands for "255 or more"

    @torch.no_grad()
    def swaps(self, admm: ADMM, masks: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Mean |w| before and after, by the number of iterations outside the mask (Figure 4).

        To be called at the end of the ADMM phase, before any hard prune. Before: the pretrained weight. `kept_*`: those
        weights alone that the final `masks` keep, which are the ones the sparse network works with.
        """
        totals: dict[int, list[float]] = {}
        for name, W in admm.W.items():
            outside, before, after, kept = self._outside[name], self._start[name].abs(), W.detach().abs(), masks[name]
            for times in outside.unique().tolist():
                chosen = outside == times
                surviving = chosen & kept
                row = totals.setdefault(int(times), [0.0] * 6)
                row[0] += int(chosen.sum())
                row[1] += float(before[chosen].sum(dtype=torch.float64))
                row[2] += float(after[chosen].sum(dtype=torch.float64))
                row[3] += int(surviving.sum())
                row[4] += float(before[surviving].sum(dtype=torch.float64))
                row[5] += float(after[surviving].sum(dtype=torch.float64))
        return [
            {
                "iterations_outside": times,
                "count": int(count),
                "mean_abs_before": before / count,
                "mean_abs_after": after / count,
                "kept_count": int(kept),
                "kept_mean_abs_before": kept_before / kept if kept else None,
                "kept_mean_abs_after": kept_after / kept if kept else None,
            }
            for times, (count, before, after, kept, kept_before, kept_after) in sorted(totals.items())
        ]

    def example(self, admm: ADMM, pattern: str, rows: int = 8, columns: int = 16) -> dict[str, Any]:
        """A corner of the first matrix whose name contains `pattern`, before training and now (Figure 1)."""
        name = next((name for name in admm.W if pattern in name), next(iter(admm.W)))
        return {
            "matrix": name,
            "before": _corner(self._start[name], rows, columns),
            "after": _corner(admm.W[name], rows, columns),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The copies and counts, for checkpoints."""
        return {f"start.{name}": tensor for name, tensor in self._start.items()} | {
            f"outside.{name}": tensor for name, tensor in self._outside.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; `begin` must have been called."""
        for name in self._start:
            self._start[name].copy_(state[f"start.{name}"])
            self._outside[name].copy_(state[f"outside.{name}"])


def _corner(W: Tensor, rows: int, columns: int) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in W[:rows, :columns].tolist()]
