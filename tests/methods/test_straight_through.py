"""Training on integers: the straight-through phase, QAT, and ADMM whose set has integers."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback

from nxm import BEST_ADMM, NM, ActivationNorms, Admm, AdmmCallback, Integers, StraightThroughCallback, UserError
from nxm.methods.held import HeldWeights, StraightThrough, hold
from nxm.methods.straight_through.algorithm import zero_patterns
from nxm.methods.straight_through.settings import Qat
from nxm.models.targets import find_targets
from nxm.sets.base import Grid
from nxm.sets.saved import read_pattern
from tiny_training import (
    assert_best_is_loaded_back_as_evaluated,
    assert_equal,
    new_model,
    parity_data,
    trainer_for,
    weights_of,
)

JOINT, ALONE = Integers(4, mask=NM(2, 4)), Integers(3)
LATE = Admm(recipe="proximal", rho=0.35, interval=3, freeze_at=0.6, dual_step="matched")
ACTIVATIONS = {"importance": "activations"}
CALLBACKS = {
    "qat": lambda: StraightThroughCallback(JOINT),
    "qat-late": lambda: StraightThroughCallback(JOINT, Qat(round_from=0.4)),
    "qat-alone-late": lambda: StraightThroughCallback(ALONE, Qat(round_from=0.4)),
    "admm": lambda: AdmmCallback(JOINT, LATE),
    "admm-by-default": lambda: AdmmCallback(JOINT),
    "admm-alone": lambda: AdmmCallback(ALONE, LATE.model_copy(update=ACTIVATIONS)),
    "admm-joint": lambda: AdmmCallback(JOINT, LATE.model_copy(update={"integers_from": 0.0} | ACTIVATIONS)),
    "admm-joined-later": lambda: AdmmCallback(JOINT, LATE.model_copy(update={"integers_from": 0.3})),
    "admm-ramped": lambda: AdmmCallback(
        JOINT, LATE.model_copy(update={"integers_from": 0.1, "integers_ramped": True} | ACTIVATIONS)
    ),
    "admm-never-frozen": lambda: AdmmCallback(JOINT, Admm(recipe="paper", rho=0.05)),
}
every_callback = pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS.keys())


def one_matrix(*rows: list[float]) -> dict[str, nn.Parameter]:
    return {"layer": nn.Parameter(torch.tensor(rows))}


def test_a_step_by_hand():
    """W = 0.9, 0.3 and a pruned 0.4 on the grid of 0.5: Z = 1, 0.5, 0. The gradient of a sum over Z is the input."""
    weights = one_matrix([0.9, 0.3, 0.4])
    grid = Grid(torch.tensor([[True, True, False]]), torch.tensor([[0.5]]), largest=3)
    held = StraightThrough(weights, {"layer": grid})
    W, optimizer = weights["layer"], torch.optim.SGD(weights.values(), lr=0.1)
    assert W.tolist() == [[1.0, 0.5, 0.0]]
    (W @ torch.tensor([2.0, 4.0, 8.0])).sum().backward()
    held.apply_to_gradients_()
    torch.testing.assert_close(W.detach(), torch.tensor([[0.9, 0.3, 0.0]]))
    optimizer.step()
    torch.testing.assert_close(W.detach(), torch.tensor([[0.7, -0.1, 0.0]]))
    held.apply_to_weights_()
    assert W.tolist() == [[0.5, 0.0, 0.0]]
    torch.testing.assert_close(held.W["layer"], torch.tensor([[0.7, -0.1, 0.0]]))
    assert not torch.signbit(W).any()


def test_the_gradient_is_that_of_the_rounded_weights_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    start, x = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 8), (5, 8)))
    weights = {"layer": nn.Parameter(start)}
    held = hold(weights, zero_patterns(weights, JOINT), JOINT)
    Z = weights["layer"].detach().clone()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).tanh().square().sum()

    loss(weights["layer"]).backward()
    held.apply_to_gradients_()
    mask = NM(2, 4).mask(start)
    for i, j in [(0, 0), (1, 3), (2, 7), (0, 5), (2, 2)]:
        step = torch.zeros_like(Z)
        step[i, j] = 1e-6
        slope = float(loss(Z + step) - loss(Z - step)) / 2e-6
        expected = slope if mask[i, j] else 0.0
        assert float(weights["layer"].grad[i, j]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(weights["layer"].detach(), start * mask)


def test_small_steps_add_up_until_a_code_changes():
    weights = one_matrix([1.0, 0.5, -0.5, 0.0])
    held = StraightThrough(weights, {"layer": Grid(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[0.5]]), 3)})
    W, optimizer = weights["layer"], torch.optim.SGD(weights.values(), lr=0.1)
    codes = []
    for _ in range(4):
        W.grad = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
        held.apply_to_gradients_()
        optimizer.step()
        held.apply_to_weights_()
        codes.append(W[0, 0].item() / 0.5)
    assert codes == [2.0, 2.0, 1.0, 1.0]
    assert W[0, 1:].tolist() == [0.5, -0.5, 0.0]


def test_a_skipped_step_leaves_the_rounded_weights():
    weights = one_matrix([0.9, 0.3])
    held = StraightThrough(weights, {"layer": Grid(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.5]]), 3)})
    before = weights["layer"].detach().clone()
    held.apply_to_gradients_()
    held.apply_to_weights_()
    assert torch.equal(weights["layer"], before)


def test_the_recovery_phase_of_a_mask_is_masked_and_of_integers_straight_through():
    weights = {"layer": nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))}
    assert isinstance(hold(weights, zero_patterns(weights, NM(2, 4)), NM(2, 4)), HeldWeights)
    assert isinstance(hold(weights, zero_patterns(weights, JOINT), JOINT), StraightThrough)


def test_half_precision_is_refused():
    weights = {"layer": nn.Parameter(torch.randn(4, 8).bfloat16())}
    with pytest.raises(TypeError, match="integer weights need float32"):
        hold(weights, zero_patterns(weights, JOINT), JOINT)


# --- Trainings ---------------------------------------------------------------------------------------------------


@every_callback
def test_the_saved_model_obeys_its_set_and_scores_the_same_when_loaded(make, tmp_path):
    model, callback = new_model(), make()
    trainer = trainer_for(model, parity_data(), tmp_path, [callback], seed=3)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    targets = find_targets(loaded)
    assert all(callback.constraint.contains(W) and W.any() for W in targets.values())
    assert read_pattern(loaded.config) == (callback.constraint, list(targets))
    assert trainer_for(loaded, parity_data(), tmp_path / "again", []).evaluate()["eval_loss"] == loss


@every_callback
def test_evaluations_change_nothing_and_a_resumed_training_ends_with_the_same_weights(make, tmp_path):
    class Watch(TrainerCallback):
        obeyed = []

        def on_prediction_step(self, args, state, control, model, **kwargs):
            self.obeyed.append(all(callback.constraint.contains(W) for W in find_targets(model).values()))

    callback, model = make(), new_model()
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "seed": 3}
    trainer_for(model, parity_data(), tmp_path, [callback, Watch()], **steps).train()
    assert Watch.obeyed
    assert all(Watch.obeyed)
    plain = new_model()
    trainer_for(plain, parity_data(), tmp_path / "plain", [make()], seed=3).train()
    assert_equal(weights_of(model), weights_of(plain))
    for step in (2, 8, 12):
        checkpoint = tmp_path / f"resumed-{step}" / f"checkpoint-{step}"
        shutil.copytree(tmp_path / checkpoint.name, checkpoint)
        resumed, again = new_model(), make()
        arguments = {"save_strategy": "steps", "save_steps": 100, "seed": 3}
        trainer_for(resumed, parity_data(), checkpoint.parent, [again], **arguments).train(
            resume_from_checkpoint=str(checkpoint)
        )
        assert_equal(weights_of(resumed), weights_of(model))
        assert again.record() == callback.record()


@every_callback
@pytest.mark.parametrize("best", [1, 7])
def test_the_best_evaluation_loaded_back_is_rounded_as_it_was_evaluated(make, best, tmp_path):
    callback, model = make(), new_model()
    assert_best_is_loaded_back_as_evaluated(model, callback, best, tmp_path)
    assert all(callback.constraint.contains(W) for W in find_targets(model).values())


def test_from_the_freeze_on_checkpoints_have_the_integers_and_the_state_the_numbers_behind(tmp_path):
    callback = AdmmCallback(JOINT, LATE)
    steps = {"save_strategy": "steps", "save_steps": 1, "seed": 3}
    trainer_for(new_model(), parity_data(), tmp_path, [callback], **steps).train()
    assert callback.frozen_at_step == 9
    name = next(iter(callback.targets))
    for step in (8, 9, 16):
        saved = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")[name]
        state = load_file(tmp_path / f"checkpoint-{step}" / "nxm_state.safetensors")
        assert JOINT.contains(saved) == (step >= 9)
        assert (f"W.{name}" in state) == (step >= 9)
    first, last = (load_file(tmp_path / f"checkpoint-{step}" / "nxm_state.safetensors") for step in (9, 16))
    assert torch.equal(first[f"scale.{name}"], last[f"scale.{name}"])
    assert torch.equal(first[f"mask.{name}"], last[f"mask.{name}"])
    assert not torch.equal(first[f"W.{name}"], last[f"W.{name}"])


# --- When the integers join ADMM ----------------------------------------------------------------------------------


def shares(settings: Admm, constraint: Integers, tmp_path) -> list[float]:
    """Return, by ADMM iteration, how far the grid had joined."""

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if len(callback.iterations) > len(found):
                found.append(callback.admm.share)

    found: list[float] = []
    callback = AdmmCallback(constraint, settings)
    trainer_for(new_model(), parity_data(), tmp_path, [callback, Watch()], max_steps=20).train()
    return found


@pytest.mark.parametrize(
    ("joins", "expected"),
    [
        ({}, [0.0] * 6),
        ({"integers_from": 0.0}, [1.0] * 6),
        ({"integers_from": 0.3}, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        ({"integers_from": 0.2, "integers_ramped": True}, [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_the_grid_joins_when_the_settings_say(joins, expected, tmp_path):
    settings = LATE.model_copy(update={"interval": 2} | joins)
    assert shares(settings, JOINT, tmp_path) == pytest.approx(expected)
    assert shares(settings, NM(2, 4), tmp_path) == [1.0] * 6 if not joins else True


def test_without_a_pattern_nothing_pulls_before_the_grid_joins(tmp_path):
    """ADMM on any pattern is fine-tuning: until the freeze it ends where a training without a callback does."""
    plain, model = new_model(), new_model()
    trainer_for(plain, parity_data(), tmp_path, [], seed=3, max_steps=16).train()
    settings = Admm(recipe="proximal", rho=2.0, interval=3)
    callback = AdmmCallback(ALONE, settings)
    trainer_for(model, parity_data(), tmp_path, [callback], seed=3, max_steps=16).train()
    for name, W in find_targets(plain).items():
        assert torch.equal(callback.targets[name], ALONE.project(W).Z)


def test_one_line_selects_the_recipe(tmp_path):
    callback = AdmmCallback(Integers(4, mask=NM(2, 4)))
    assert callback.settings == BEST_ADMM
    assert isinstance(callback.importance, ActivationNorms)
    trainer_for(new_model(), parity_data(), tmp_path, [callback], max_steps=24).train()
    assert len(callback.iterations) == 12
    assert callback.frozen_at_step == 12
    assert all(choice.dtype == torch.bool for choice in callback.admm.choices.values())


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"integers_from = 0\.5 must be below freeze_at = 0\.5"):
        Admm(recipe="proximal", rho=0.1, freeze_at=0.5, integers_from=0.5)
    with pytest.raises(ValueError, match="integers_ramped = true needs integers_from"):
        Admm(recipe="proximal", rho=0.1, integers_ramped=True)
    settings = Admm(recipe="proximal", rho=0.1, integers_from=0.5)
    with pytest.raises(UserError, match=r"integers_from = 0\.5 says when integers join, and 2:4 has none"):
        AdmmCallback(NM(2, 4), settings)
