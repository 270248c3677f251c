"""ADMM's callback: its course, its defaults, its record."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from nxm import ADMM, BEST_ADMM, NM, Admm, AdmmCallback, MaskHistory, UserError
from nxm.methods.callback import STATE_FILE
from nxm.methods.importance import ActivationNorms
from tiny_training import new_model, trainer_for

PROXIMAL = Admm(recipe="proximal", rho=0.35, freeze_at=0.5)
RAMPED = Admm(recipe="proximal", rho=0.5, schedule="cosine", interval=3)


def test_the_importance_is_the_settings_unless_one_is_given():
    assert BEST_ADMM.importance == "activations"
    assert isinstance(AdmmCallback().importance, ActivationNorms)
    assert AdmmCallback(importance="none").importance is None
    assert AdmmCallback(NM(2, 4), PROXIMAL).importance is None  # as the paper projects
    own = ActivationNorms()
    assert AdmmCallback(NM(2, 4), PROXIMAL, importance=own).importance is own


def test_the_penalty_in_the_gradient_has_no_share_to_match():
    with pytest.raises(ValueError, match="recipe 'gradient' has full dual steps"):
        Admm(recipe="gradient", rho=0.1, dual_step="matched")


@pytest.mark.parametrize("change", [{"freeze_at": 0.5}, {"schedule": "cosine"}, {"dual_step": "matched"}])
def test_the_papers_recipe_is_the_papers(change):
    Admm(recipe="paper", rho=0.1, schedule="constant", freeze_at=1.0, dual_step="full")
    with pytest.raises(ValueError, match="recipe 'paper' has a constant rho, full dual steps and no frozen phase"):
        Admm(recipe="paper", rho=0.1, **change)


def test_training_learns_under_the_constraint(tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback(NM(2, 4), PROXIMAL)], num_train_epochs=12)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


def test_state_of_another_model_is_refused(tiny_data, tmp_path):
    trainer_for(
        new_model(), tiny_data, tmp_path, [AdmmCallback()], save_strategy="steps", save_steps=8, max_steps=8
    ).train()
    path = tmp_path / "checkpoint-8" / STATE_FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {key.replace("layer.0", "layer.7"): tensor for key, tensor in load_file(path).items()}
    save_file(state, path, metadata=metadata)
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback()], max_steps=16)
    with pytest.raises(UserError, match="not of this model"):
        trainer.train(resume_from_checkpoint=True)


def test_the_schedule_rescales_the_dual_so_that_the_mask_holds(tiny_data, tmp_path, monkeypatch):
    callback = AdmmCallback(NM(2, 4), RAMPED)
    trainer_for(new_model(), tiny_data, tmp_path, [callback], max_steps=30, learning_rate=1e-3).train()
    strengths = [iteration["rho"] for iteration in callback.iterations]
    assert strengths == sorted(strengths)
    assert strengths[0] < strengths[-1]
    plain = AdmmCallback(NM(2, 4), RAMPED)
    monkeypatch.setattr(ADMM, "rescale_dual_", lambda self, factor: None)
    trainer_for(new_model(), tiny_data, tmp_path, [plain], max_steps=30, learning_rate=1e-3).train()
    assert callback.iterations[-1]["similarity"] > plain.iterations[-1]["similarity"]


def test_a_run_too_short_for_one_iteration_is_refused(tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback(settings=PROXIMAL)], num_train_epochs=1)
    with pytest.raises(ValueError, match="interval = epoch is 4 optimizer steps, and the ADMM phase has 2"):
        trainer.train()


@pytest.mark.parametrize(("steps", "interval"), [(72, 3), (120, 5), (24, 1)])
def test_by_default_twelve_iterations_fit_before_the_mask_is_frozen(steps, interval, tiny_data, tmp_path):
    models, courses = [], []
    for callback in (AdmmCallback(), AdmmCallback(settings=BEST_ADMM.model_copy(update={"interval": interval}))):
        models.append(new_model())
        trainer_for(models[-1], tiny_data, tmp_path, [callback], max_steps=steps).train()
        courses.append([iteration["step"] for iteration in callback.iterations])
        assert callback.frozen_at_step == steps // 2
    assert courses[0] == courses[1] == [interval * k for k in range(1, 13)]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_the_shortest_run_by_default_has_an_iteration(tiny_data, tmp_path):
    callback = AdmmCallback()
    trainer_for(new_model(), tiny_data, tmp_path, [callback], max_steps=2).train()
    assert [iteration["step"] for iteration in callback.iterations] == [1]


def test_state_is_fp32_under_bf16_autocast(tiny_data, tmp_path):
    callback = AdmmCallback(NM(2, 4), PROXIMAL)
    model = new_model()
    trainer_for(model, tiny_data, tmp_path, [callback], bf16=True).train()
    assert {tensor.dtype for tensor in (*callback.admm.Z.values(), *callback.admm.U.values())} == {torch.float32}
    assert {W.dtype for W in callback.targets.values()} == {torch.float32}
    assert all(NM(2, 4).contains(W) for W in callback.targets.values())


def test_history_counts_iterations_outside_the_mask(tiny_data, tmp_path):
    callback = AdmmCallback(NM(2, 4), Admm(recipe="proximal", rho=0.3), MaskHistory())
    model = new_model()
    trainer_for(model, tiny_data, tmp_path, [callback], num_train_epochs=5).train()
    swaps = {row["iterations_outside"]: row for row in callback.swaps}
    weights = sum(W.numel() for W in callback.targets.values())
    assert sum(row["count"] for row in swaps.values()) == weights
    assert sum(row["kept_count"] for row in swaps.values()) == weights // 2
    assert sum(times * row["count"] for times, row in swaps.items()) == 5 * weights // 2  # half are outside each time
    assert swaps[5]["mean_abs_after"] < 0.8 * swaps[5]["mean_abs_before"]  # always outside: pulled to zero
    assert swaps[0]["mean_abs_after"] > 0.8 * swaps[0]["mean_abs_before"]  # never outside: left alone


@pytest.mark.parametrize(("dual_step", "share"), [("full", 1.0), ("matched", 1 - math.exp(-0.35))])
def test_the_dual_takes_up_the_share_in_the_settings(dual_step, share, tiny_data, tmp_path):
    class Before(TrainerCallback):
        """Copies U and W before the callback's own turn in an iteration."""

        def __init__(self, callback):
            self.callback = callback

        def on_step_end(self, args, state, control, **kwargs):
            self.W = {name: W.detach().clone() for name, W in self.callback.admm.W.items()}
            self.U = {name: U.clone() for name, U in self.callback.admm.U.items()}

    course = Admm(recipe="proximal", rho=0.35, dual_step=dual_step)
    callback = AdmmCallback(NM(2, 4), course, importance="none")
    before = Before(callback)
    trainer_for(new_model(), tiny_data, tmp_path, [before, callback], num_train_epochs=1).train()
    for name, U in callback.admm.U.items():
        expected = before.U[name] + share * (before.W[name] - callback.admm.Z[name])
        torch.testing.assert_close(U, expected)
