"""Sentences that nobody wrote, for a teacher to answer."""

from __future__ import annotations

import torch
from torch import Tensor

NOISY_SHARE = 0.5  # of a batch's examples have tokens replaced, where `noise` is above 0


def replace_tokens(input_ids: Tensor, replaceable: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Sentences that nobody wrote, for a teacher to answer: tokens replaced by others of the same batch.

    (TinyBERT replaces words by a language model's guesses, arXiv 1909.10351; drawing them from the batch needs none.)

    Args:
        input_ids: (batch, length) int64.
        replaceable: (batch, length) bool: neither padding nor special tokens.
        share: of the tokens of a chosen example; an example is chosen with probability `NOISY_SHARE`.

    Returns: the new input_ids, and which examples were chosen, (batch,) bool. Draws from torch's global generator.
    """
    pool = input_ids[replaceable]
    noisy = torch.rand(len(input_ids), device=input_ids.device) < NOISY_SHARE
    if not len(pool):
        return input_ids, noisy
    drawn = pool[torch.randint(len(pool), input_ids.shape, device=input_ids.device)]
    hit = replaceable & noisy[:, None] & (torch.rand(input_ids.shape, device=input_ids.device) < share)
    return torch.where(hit, drawn, input_ids), noisy
