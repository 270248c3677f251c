"""Integer activations in a real Trainer: with a method, evaluated, saved, killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from nxm import NM, Activations, ActivationsCallback, AdmmCallback, Integers, UserError, find_targets
from nxm.activations.callback import STATE_FILE
from nxm.models.activations import quantise_inputs, read_ranges, write_ranges
from tiny_training import (
    Stop,
    assert_best_is_loaded_back_as_evaluated,
    assert_equal,
    new_model,
    parity_data,
    trainer_for,
    weights_of,
)

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
    plain, late = new_model(), new_model()
    trainer_for(plain, parity_data(), tmp_path, [AdmmCallback(INT4), Stop(15)], seed=3).train()
    with pytest.warns(UserWarning, match="no inputs were rounded in what is kept of the training"):
        trainer_for(late, parity_data(), tmp_path, [*callbacks(Activations(round_from=0.99)), Stop(15)], seed=3).train()
    assert_equal(weights_of(late), weights_of(plain))
    assert read_ranges(late.config) is None


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
    callback = ActivationsCallback(Activations(round_from=0.0, averaging=0.5))
    assert_best_is_loaded_back_as_evaluated(new_model(), callback, 3, tmp_path)  # of eight


def test_a_best_checkpoint_from_before_has_real_activations(tmp_path: Path) -> None:
    model = new_model()
    write_ranges(model.config, 4, dict.fromkeys(find_targets(model), (-9.0, 9.0)))  # of another training
    with pytest.warns(UserWarning, match="the model has real activations"):
        assert_best_is_loaded_back_as_evaluated(model, ActivationsCallback(HALF), 2, tmp_path)
    assert read_ranges(model.config) is None


def test_a_training_that_is_refused_leaves_the_ranges(tmp_path: Path) -> None:
    model = new_model()
    write_ranges(model.config, 8, dict.fromkeys(find_targets(model), (-1.0, 1.0)))
    before = read_ranges(model.config)
    trainer = trainer_for(model, parity_data(), tmp_path, [AdmmCallback(NM(2, 5))])  # no width is a multiple of 5
    with pytest.raises(UserError, match="5"):
        trainer.train()
    assert read_ranges(model.config) == before


@pytest.mark.parametrize("second", ["method", "activations"])
def test_a_new_training_of_the_same_model_is_that_of_a_fresh_one(second: str, tmp_path: Path) -> None:
    """Also without the first callback, as after an interruption."""

    def train(model: BertForSequenceClassification) -> None:
        late = ActivationsCallback(Activations(round_from=0.9))
        callback = AdmmCallback(NM(2, 4)) if second == "method" else late
        trainer_for(model, parity_data(), tmp_path, [callback], seed=3).train()

    used, fresh = new_model(), new_model()
    trainer_for(used, parity_data(), tmp_path, [ActivationsCallback(Activations(bits=2, round_from=0.0))]).train()
    used.load_state_dict(new_model().state_dict())
    train(used)
    train(fresh)
    assert_equal(weights_of(used), weights_of(fresh))
    assert read_ranges(used.config) == read_ranges(fresh.config)


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
