"""Augmentation for distillation: sentences with replaced tokens, for which the teacher provides the labels."""

from __future__ import annotations

import torch
from torch import Tensor

NOISY_SHARE = 0.5  # the share of a batch's examples that get noise


def replace_tokens(input_ids: Tensor, replaceable: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace tokens by others of the same batch, in examples chosen with probability `NOISY_SHARE`.

    TinyBERT (arXiv 1909.10351) replaces words by a language model's predictions; drawing them from the batch needs no
    such model. Draws from torch's global generator.

    Args:
        input_ids: (batch, length) int64.
        replaceable: (batch, length) bool: neither padding nor special tokens.
        share: the probability that a replaceable token of a chosen example is replaced.

    Returns: the new input_ids, and the mask of the chosen examples, (batch,) bool.
    """
    pool = input_ids[replaceable]
    noisy = torch.rand(len(input_ids), device=input_ids.device) < NOISY_SHARE
    if not len(pool):
        return input_ids, noisy
    drawn = pool[torch.randint(len(pool), input_ids.shape, device=input_ids.device)]
    hit = replaceable & noisy[:, None] & (torch.rand(input_ids.shape, device=input_ids.device) < share)
    return torch.where(hit, drawn, input_ids), noisy
