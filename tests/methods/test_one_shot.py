"""One-shot pruning: the mask of the pretrained weights, and no other."""

from __future__ import annotations

import torch

from nxm import NM, AspCallback, find_targets
from nxm.methods.one_shot.algorithm import one_shot_choices
from tiny_training import new_model, trainer_for


def test_the_choice_is_the_projections_own():
    targets = find_targets(new_model())
    cost = {name: torch.rand(1, W.shape[1]) for name, W in targets.items()}
    for importance in (None, cost):
        choices = one_shot_choices(targets, NM(2, 4), importance)
        for name, W in targets.items():
            scores = W if importance is None else W * cost[name].sqrt()
            assert torch.equal(choices[name], NM(2, 4).mask(scores))


def test_training_never_leaves_the_mask_of_the_pretrained_weights(tiny_data, tmp_path):
    model = new_model()
    masks = {name: NM(2, 4).mask(W) for name, W in find_targets(model).items()}
    trainer_for(model, tiny_data, tmp_path, [AspCallback(NM(2, 4))], weight_decay=0.1).train()
    for name, W in find_targets(model).items():
        assert not W[~masks[name]].any()
        assert W[masks[name]].all()
