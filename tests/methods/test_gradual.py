"""Gradual magnitude pruning: nested masks on a cubic curve that end in the set."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from nxm import NM, Gmp, GmpCallback, Unstructured, find_targets
from nxm.methods.gradual.algorithm import gradual_mask, share_left
from tiny_training import new_model, trainer_for


def test_the_curve_is_zhu_and_guptas():
    """Their eq. 1 with initial sparsity 0 and final 0.5."""
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        sparsity = 0.5 + (0.0 - 0.5) * (1 - t) ** 3
        assert 0.5 + 0.5 * share_left(t) == pytest.approx(1 - sparsity)
    assert share_left(1.7) == 0.0


@pytest.mark.parametrize("constraint", [NM(2, 4), NM(1, 4), NM(2, 8), Unstructured(0.3)], ids=str)
def test_masks_shrink_one_inside_the_other_and_end_in_the_set(constraint):
    W = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    before = torch.ones_like(W, dtype=torch.bool)
    counts = []
    for step in range(11):
        mask = gradual_mask(W, constraint, share_left(step / 10))
        assert not (mask & ~before).any()
        assert (mask | ~constraint.mask(W)).all()  # the set's own mask is always inside
        W, before = W * mask, mask
        counts.append(int(mask.sum()))
    assert counts[0] == 128
    assert counts == sorted(counts, reverse=True)
    assert constraint.contains(W)
    assert counts[-1] == int(constraint.mask(W).sum())


def test_the_smallest_losers_go_first():
    W = torch.tensor([[4.0, 3.0, 2.0, 0.5, 9.0, 8.0, 7.0, 1.0]])
    assert gradual_mask(W, NM(2, 4), 0.5).tolist() == [[True, True, True, False, True, True, True, False]]
    assert gradual_mask(W, NM(2, 4), 0.25).tolist() == [[True, True, False, False, True, True, True, False]]


def test_pruned_weights_do_not_come_back():
    W = torch.tensor([[1.0, 0.0, 0.0, 0.0, 2.0, 3.0, 4.0, 0.0]])
    mask = gradual_mask(W, NM(2, 4), 1.0)
    assert (W * mask).count_nonzero() == W.count_nonzero()
    assert int(mask.sum()) == 5  # the set's own two of the first group, of which one is zero, and three


def test_gmp_prunes_in_steps_and_then_holds_the_mask(tiny_data, tmp_path):
    class Density(TrainerCallback):
        def __init__(self):
            self.course = []

        def on_step_end(self, args, state, control, model, **kwargs):
            targets = find_targets(model).values()
            self.course.append(sum(int(W.count_nonzero()) for W in targets) / sum(W.numel() for W in targets))

    density = Density()
    callback = GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5))
    trainer_for(new_model(), tiny_data, tmp_path, [callback, density], max_steps=16).train()
    assert density.course == sorted(density.course, reverse=True)
    assert density.course[0] == 1.0  # nothing pruned before the first interval is over
    assert density.course[1:8:2] == pytest.approx([0.5 + 0.5 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1.0)], abs=0.01)
    assert set(density.course[8:]) == {0.5}


def test_gmp_that_would_prune_at_once_is_refused(tiny_data, tmp_path):
    callback = GmpCallback(NM(2, 4), Gmp(interval="epoch", prune_until=0.4))
    with pytest.raises(
        ValueError, match=r"interval = epoch is 4 optimizer steps, and pruning has 6 \(prune_until = 0\.4 of 16\)"
    ):
        trainer_for(new_model(), tiny_data, tmp_path, [callback]).train()
