"""SR-STE: its gradient is the paper's eq. 9, by autograd and by hand."""

from __future__ import annotations

import torch
from torch import nn

from nxm import NM
from nxm.methods.sr_ste.algorithm import SRSTE


class StraightThrough(torch.autograd.Function):
    """The authors' implementation: mask in forward, the gradient plus the decay of masked weights in backward."""

    @staticmethod
    def forward(ctx, W, decay):
        mask = NM(2, 4).mask(W)
        ctx.save_for_backward(W)
        ctx.mask, ctx.decay = mask, decay
        return W * mask

    @staticmethod
    def backward(ctx, gradient):
        (W,) = ctx.saved_tensors
        return gradient + ctx.decay * ~ctx.mask * W, None


def test_steps_equal_the_authors_autograd_function():
    generator = torch.Generator().manual_seed(0)
    W0, X, Y = (torch.randn(*shape, generator=generator) for shape in ((6, 8), (32, 8), (32, 6)))
    ours, theirs = nn.Parameter(W0.clone()), nn.Parameter(W0.clone())
    sr_ste = SRSTE({"a": ours}, NM(2, 4), decay=0.3)
    optimizers = [torch.optim.Adam([W], lr=0.05) for W in (ours, theirs)]
    for _ in range(20):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sr_ste.mask_()
        assert NM(2, 4).contains(ours)
        (X @ ours.T - Y).square().mean().backward()
        sr_ste.restore_()
        (X @ StraightThrough.apply(theirs, 0.3).T - Y).square().mean().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert ours.count_nonzero() == ours.numel()  # dense weights go on behind the mask


def test_masked_weights_shrink_without_a_task():
    W = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
    sr_ste = SRSTE({"a": W}, NM(2, 4), decay=0.5)
    mask, before = NM(2, 4).mask(W), W.detach().clone()
    optimizer = torch.optim.SGD([W], lr=0.1)
    for _ in range(10):
        sr_ste.mask_()
        W.grad = torch.zeros_like(W)
        sr_ste.restore_()
        optimizer.step()
    torch.testing.assert_close(W[mask], before[mask])
    torch.testing.assert_close(W[~mask], before[~mask] * (1 - 0.1 * 0.5) ** 10)
