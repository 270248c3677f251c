"""The importance is the training's own, and the projection obeys it."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from nxm import (
    NM,
    ActivationNorms,
    AdamSecondMoment,
    Admm,
    AdmmCallback,
    AspCallback,
    Gmp,
    GmpCallback,
    UserError,
    find_targets,
)
from tiny_training import Stop, new_model, trainer_for


def settings(interval: int = 4) -> Admm:
    return Admm(recipe="proximal", rho=0.3, interval=interval)


def test_activation_norms_are_the_mean_squares_of_each_layers_input(tiny_bert):
    importance = ActivationNorms()
    importance.begin(tiny_bert, (), ("attention",))
    seen = {}

    def remember(name):
        return lambda module, inputs: seen.setdefault(name, []).append(
            inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        )

    for i in range(2):
        tiny_bert.bert.encoder.layer[i].output.dense.register_forward_pre_hook(remember(i))
    tiny_bert.train()
    real = {5: torch.tensor([[1] * 5, [1] * 5, [1, 1, 0, 0, 0]]), 9: torch.ones(3, 9, dtype=torch.long)}
    for length, mask in real.items():
        tiny_bert(input_ids=torch.randint(1, 50, (3, length)), attention_mask=mask)
    tiny_bert.eval()
    tiny_bert(input_ids=torch.randint(1, 50, (3, 7)))  # evaluation does not count
    names = [f"bert.encoder.layer.{i}.{part}.dense.weight" for i in range(2) for part in ("intermediate", "output")]
    targets = {name: tiny_bert.get_parameter(name) for name in names}
    measured = importance.measure(targets, None)
    for i in range(2):
        tokens = torch.cat([mask.reshape(-1) for mask in real.values()]).bool()
        expected = torch.cat(seen[i][:2])[tokens].square().mean(dim=0)  # padding does not count
        torch.testing.assert_close(measured[f"bert.encoder.layer.{i}.output.dense.weight"], expected[None, :])
    tiny_bert.train()
    again = torch.randint(1, 50, (3, 5))
    tiny_bert(input_ids=again)
    later = importance.measure(targets, None)
    for i in range(2):
        tokens = torch.cat([*(mask.reshape(-1) for mask in real.values()), torch.ones(15)]).bool()
        expected = torch.cat([*seen[i][:2], seen[i][3]])[tokens].square().mean(dim=0)  # all tokens of the training
        torch.testing.assert_close(later[f"bert.encoder.layer.{i}.output.dense.weight"], expected[None, :])
    importance.end()
    tiny_bert(input_ids=again)
    ended = importance.measure(targets, None)
    assert all(torch.equal(ended[name], later[name]) for name in names)
    importance.begin(tiny_bert, (), ("attention",))
    assert importance.measure(targets, None) is None  # a new training has seen nothing
    importance.end()


def test_adams_second_moment_is_the_optimizers(tiny_data, tmp_path):
    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            self.measured = AdamSecondMoment().measure(callback.targets, optimizer)
            self.state = [optimizer.state[W]["exp_avg_sq"] for W in callback.targets.values()]

    watch, callback = Watch(), AdmmCallback(NM(2, 4), settings(), importance=AdamSecondMoment())
    trainer_for(new_model(), tiny_data, tmp_path, [callback, watch]).train()
    assert all(torch.equal(a, b) for a, b in zip(watch.measured.values(), watch.state, strict=True))
    assert all(moment.any() for moment in watch.state)


def test_an_optimizer_without_second_moments_is_refused(tiny_data, tmp_path):
    callback = AdmmCallback(NM(2, 4), settings(), importance=AdamSecondMoment())
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [callback], optim="sgd")
    with pytest.raises(UserError, match=r"has no second moment .* of bert"):
        trainer.train()


def test_evaluation_prunes_by_the_weighted_mask(tiny_data, tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.obeyed = []

        def on_prediction_step(self, args, state, control, **kwargs):
            pairs = [(W, callback.admm.choices[name]) for name, W in callback.targets.items()]
            self.obeyed.append(all(not W[~mask].any() for W, mask in pairs))

    callback, watch = AdmmCallback(NM(2, 4), settings(), importance=AdamSecondMoment()), Watch()
    arguments = {"eval_strategy": "steps", "eval_steps": 4}
    trainer_for(new_model(), tiny_data, tmp_path, [callback, watch], **arguments).train()
    assert watch.obeyed
    assert all(watch.obeyed)


@pytest.mark.parametrize("recipe", ["proximal", "gradient"])
def test_nothing_is_pulled_before_the_importance_was_measured(recipe, tiny_data, tmp_path):
    """Until the first projection, while Z is chosen by magnitude, training is plain and U stays zero."""

    class Watch(TrainerCallback):
        def __init__(self, admm=None):
            self.admm, self.weights, self.dual = admm, {}, {}

        def on_step_end(self, args, state, control, model, **kwargs):
            self.weights[state.global_step] = {name: W.detach().clone() for name, W in find_targets(model).items()}
            if self.admm is not None:
                self.dual[state.global_step] = sum(float(U.abs().sum()) for U in self.admm.admm.U.values())

    def run(folder, *callbacks):
        watch = Watch(*callbacks)
        trainer_for(new_model(), tiny_data, tmp_path / folder, [*callbacks, watch], max_steps=9).train()
        return watch

    course = Admm(recipe=recipe, rho=0.3, interval=4)
    plain = run("plain")
    weighted = run("weighted", AdmmCallback(NM(2, 4), course, importance="activations"))
    equal = [
        all(torch.equal(plain.weights[i][name], W) for name, W in weighted.weights[i].items()) for i in range(1, 10)
    ]
    assert equal == [True] * 4 + [False] * 5  # the first step that pulls is the fifth
    assert [step for step, size in weighted.dual.items() if size == 0] == list(range(1, 8))
    magnitudes = run("magnitudes", AdmmCallback(NM(2, 4), course, importance="none"))
    assert any(not torch.equal(plain.weights[1][name], W) for name, W in magnitudes.weights[1].items())
    assert magnitudes.dual[4] > 0


@pytest.mark.parametrize("importance", [AdamSecondMoment, ActivationNorms])
def test_gradual_pruning_chooses_by_importance(importance, tiny_data, tmp_path):
    """The last mask is the set's own of sqrt(v) |W|, with v as measured at the last pruning."""

    class Watch(importance):
        def measure(self, targets, optimizer):
            measured = super().measure(targets, optimizer)
            scores = {name: W.detach() * measured[name].sqrt() for name, W in targets.items()}
            self.masks = {name: NM(2, 4).mask(score) for name, score in scores.items()}
            self.plain = {name: NM(2, 4).mask(W) for name, W in targets.items()}
            return measured

    watch = Watch()
    callback = GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5), importance=watch)
    trainer_for(new_model(), tiny_data, tmp_path, [callback], max_steps=12).train()
    assert all(torch.equal(watch.masks[name], mask) for name, mask in callback.held.choices.items())
    assert any(not torch.equal(watch.plain[name], mask) for name, mask in callback.held.choices.items())


def test_one_shot_pruning_by_activations_is_wandas(tiny_data, tmp_path):
    """The mask of |W| times the norm of its input over the first batch, and no other later."""
    model = new_model()
    seen: dict[str, torch.Tensor] = {}

    class Watch(ActivationNorms):
        def measure(self, targets, optimizer):
            measured = super().measure(targets, optimizer)
            for name, W in targets.items():
                seen[name] = W.detach().abs() * measured[name].sqrt()
            return measured

    callback = AspCallback(NM(2, 4), importance=Watch())
    trainer_for(model, tiny_data, tmp_path, [callback], max_steps=5).train()
    plain = {name: NM(2, 4).mask(W) for name, W in find_targets(new_model()).items()}
    for name, W in find_targets(model).items():
        assert torch.equal(W != 0, NM(2, 4).mask(seen[name]))
    assert any(not torch.equal(plain[name], NM(2, 4).mask(seen[name])) for name in plain)


def test_one_shot_pruning_by_an_importance_that_needs_a_step_is_refused(tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AspCallback(importance="adam")])
    with pytest.raises(UserError, match="AdamSecondMoment knows nothing before the first step"):
        trainer.train()


def test_an_unknown_importance_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'wanda' is unknown; known are none, adam, activations"):
        AdmmCallback(importance="wanda")


@pytest.mark.parametrize("importance", [AdamSecondMoment, ActivationNorms])
def test_importance_changes_the_mask_and_survives_a_restart(importance, tiny_data, tmp_path):
    """Stopped between two projections, so that the sums measured until then must be saved."""

    def run(folder, *extra, resume=False, weighted=True):
        callback = AdmmCallback(NM(2, 4), settings(), importance=importance() if weighted else "none")
        model = new_model()
        arguments = {"save_strategy": "steps", "save_steps": 1, "max_steps": 12, "seed": 3}
        trainer_for(model, tiny_data, folder, [callback, *extra], **arguments).train(resume_from_checkpoint=resume)
        return model.state_dict(), callback.admm.choices

    whole, masks = run(tmp_path / "whole")
    run(tmp_path / "stopped", Stop(6))
    resumed, _ = run(tmp_path / "stopped", resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert all(not weights.any() for weights in (resumed[name][~masks[name]] for name in masks))  # pruned by that mask
    _, plain = run(tmp_path / "plain", weighted=False)
    assert any(not torch.equal(masks[name], plain[name]) for name in masks)


def test_measuring_stops_when_the_choice_is_final(tiny_data, tmp_path):
    class Watch(ActivationNorms):
        def __init__(self):
            super().__init__()
            self.ends = 0

        def end(self):
            self.ends += bool(self._hooks)
            super().end()

    class Hooks(TrainerCallback):
        """Counts the importance's hooks at the beginning of each step's forward pass."""

        def __init__(self, importance):
            self.importance, self.counts = importance, []

        def on_step_begin(self, args, state, control, **kwargs):
            self.counts.append(len(self.importance._hooks))

    for make, steps in (
        (lambda watch: AdmmCallback(NM(2, 4), Admm(recipe="proximal", rho=0.3, freeze_at=0.5), importance=watch), 8),
        (lambda watch: GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5), importance=watch), 8),
        (lambda watch: AspCallback(NM(2, 4), importance=watch), 1),
        (lambda watch: AdmmCallback(NM(2, 4), Admm(recipe="proximal", rho=0.3), importance=watch), 16),
    ):
        watch = Watch()
        hooks = Hooks(watch)
        trainer_for(new_model(), tiny_data, tmp_path, [make(watch), hooks]).train()
        assert [count > 0 for count in hooks.counts] == [True] * steps + [False] * (16 - steps)
        assert watch.ends == 1
        assert not watch._hooks
