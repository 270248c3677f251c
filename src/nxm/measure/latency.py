"""The time of a layer by its numbers of heads and FFN rows, for budgets in milliseconds (`nxm.models.cost`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nxm.errors import UserError
from nxm.measure.timing import time_call, time_interleaved
from nxm.models.cost import Cost, interpolated


def measure_latency(
    hidden_size: int,
    head_width: int,
    heads: Sequence[int],
    rows: Sequence[int],
    *,
    batch: int,
    length: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    repeats: int = 30,
    budget: float = 60.0,
) -> Cost:
    """Return the milliseconds of an attention by its heads and of an FFN by its rows, with random weights.

    All sizes are timed in the same rounds (`nxm.measure.timing`); the table has the median of each. A layer's
    LayerNorms and residual additions cost the same in every structure and are left out.

    Args:
        hidden_size, head_width: of the model.
        heads, rows: the numbers to measure; the largest is the dense model's, and between them the table interpolates.
        batch, length: of the hidden states, (batch, length, hidden_size).
        device: default CPU, with torch's current number of threads.
        repeats: the largest number of rounds.
        budget: seconds after which no further rounds begin.

    Raises:
        UserError: a number is below 1.
    """
    device = device or torch.device("cpu")
    for name, numbers in (("heads", heads), ("rows", rows), ("batch and length", (batch, length))):
        if not numbers or min(numbers) < 1:
            raise UserError(f"{name} = {list(numbers)}: each must be at least 1")
    with torch.random.fork_rng(), torch.no_grad():
        x = torch.randn(batch, length, hidden_size, device=device, dtype=dtype)
        parts: dict[tuple[str, int], nn.Module] = {("heads", n): _Attention(hidden_size, head_width, n) for n in heads}
        for n in rows:
            parts["rows", n] = nn.Sequential(nn.Linear(hidden_size, n), nn.GELU(), nn.Linear(n, hidden_size))
        calls = {key: partial(part.to(device, dtype), x) for key, part in parts.items()}
        seconds = time_interleaved(calls, warmup=3, repeats=repeats, budget=budget, device=device, timer=time_call)
    median = {key: 1e3 * float(np.median(values)) for key, values in seconds.items()}
    return interpolated({n: median["heads", n] for n in heads}, {n: median["rows", n] for n in rows})


class _Attention(nn.Module):
    def __init__(self, hidden_size: int, head_width: int, n_heads: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value = (nn.Linear(hidden_size, n_heads * head_width) for _ in range(3))
        self.output = nn.Linear(n_heads * head_width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        by_head = (*x.shape[:-1], -1, self.head_width)
        q, k, v = (layer(x).view(by_head).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1))
