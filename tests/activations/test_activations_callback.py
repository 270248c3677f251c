"""Integer activations in a real Trainer: beside a method, evaluated, saved, killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from nxm import NM, Activations, ActivationsCallback, AdmmCallback, Integers, UserError, find_targets
from nxm.activations.callback import STATE_FILE
from nxm.activations.inputs import quantise_inputs, read_ranges
from tiny_training import Stop, assert_equal, new_model, parity_data, trainer_for, weights_of

INT4 = Integers(4, mask=NM(2, 4))
HALF = Activations(bits=4, round_from=0.5, averaging=0.1)
SAVING = {"save_strategy": "steps", "save_steps": 1}


def callbacks(settings: Activations = HALF) -> list:
    return [AdmmCallback(INT4), ActivationsCallback(settings)]


@pytest.mark.situation("training", "integer weights and integer activations together", "works", since="0.2")
def test_the_model_is_evaluated_saved_and_loaded_with_its_integer_inputs(tmp_path: Path) -> None:
    model = new_model()
    trainer = trainer_for(model, parity_data(), tmp_path / "run", callbacks())
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    claimed = read_ranges(model.config)
    assert claimed is not None
    assert claimed.bits == 4
    assert claimed.ranges.keys() == find_targets(model).keys()
    assert all(INT4.contains(W) for W in find_targets(model).values())
    trainer.save_model(str(tmp_path / "saved"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    again = trainer_for(loaded, parity_data(), tmp_path / "again", [])
    real = again.evaluate()["eval_loss"]
    inputs = quantise_inputs(loaded)
    assert again.evaluate()["eval_loss"] == loss
    assert real != loss  # 4 bits change the outputs
    inputs.remove()
    assert again.evaluate()["eval_loss"] == real


def test_before_its_share_of_the_run_a_training_is_that_without_it(tmp_path: Path) -> None:
    late = Activations(round_from=0.99)
    with_activations, without = new_model(), new_model()
    trainer_for(without, parity_data(), tmp_path, [AdmmCallback(INT4)], seed=3).train()
    trainer_for(with_activations, parity_data(), tmp_path, [AdmmCallback(INT4), Stop(15)], seed=3).train()
    plain = new_model()
    trainer_for(plain, parity_data(), tmp_path, [*callbacks(late), Stop(15)], seed=3).train()
    assert_equal(weights_of(plain), weights_of(with_activations))


@pytest.mark.parametrize("step", [3, 8, 11])
def test_a_resumed_training_ends_with_the_same_weights_and_ranges(step: int, tmp_path: Path) -> None:
    whole = new_model()
    trainer_for(whole, parity_data(), tmp_path / "whole", callbacks(), seed=3, **SAVING).train()
    stopped = [*callbacks(), Stop(step)]
    trainer_for(new_model(), parity_data(), tmp_path / "part", stopped, seed=3, **SAVING).train()
    model = new_model()
    trainer = trainer_for(model, parity_data(), tmp_path / "part", callbacks(), seed=3, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert_equal(weights_of(model), weights_of(whole))
    assert model.config.nxm_activations == whole.config.nxm_activations


def test_the_best_checkpoint_has_its_own_ranges(tmp_path: Path) -> None:
    model, callback = new_model(), ActivationsCallback(Activations(round_from=0.0, averaging=0.5))
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = trainer_for(
        model, parity_data(), tmp_path, [callback], **SAVING, **evaluating, metric_for_best_model="loss", seed=3
    )
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_loss"] == best


@pytest.mark.situation("training", "resume integer activations from a checkpoint without them", "refused", since="0.2")
def test_a_checkpoint_without_ranges_is_refused_by_name(tmp_path: Path) -> None:
    trainer_for(new_model(), parity_data(), tmp_path, [Stop(2)], **SAVING).train()
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [ActivationsCallback()], **SAVING)
    with pytest.raises(UserError, match=rf"{STATE_FILE} is missing"):
        trainer.train(resume_from_checkpoint=True)


def test_a_second_training_starts_with_ranges_of_its_own(tmp_path: Path) -> None:
    callback = ActivationsCallback(Activations(round_from=0.0))
    first, second = new_model(), new_model()
    trainer_for(first, parity_data(), tmp_path, [callback], seed=3).train()
    ids = torch.tensor([[7, 8, 9]])
    rounded = first.eval()(ids).logits
    trainer_for(second, parity_data(), tmp_path, [callback], seed=3).train()
    assert second.config.nxm_activations == first.config.nxm_activations
    assert not torch.equal(first.eval()(ids).logits, rounded)  # the callback has left it
