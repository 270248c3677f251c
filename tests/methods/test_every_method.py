"""The common test suite of the methods: every entry of METHODS, by the examples of its own settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainerCallback

import nxm
from nxm import NM, SparsityCallback, UserError, find_targets, parse_set
from nxm.methods import METHODS, ImportanceName, make_callback, settings_class
from nxm.methods.callback import STATE_FILE
from nxm.methods.importance import make_importance
from nxm.sets import all_sets
from nxm.sets.base import SparseSet
from nxm.sets.saved import read_pattern
from tiny_training import (
    WITH_SET,
    assert_best_is_loaded_back_as_evaluated,
    assert_equal,
    new_model,
    parity_data,
    trainer_for,
    weights_of,
)

EXAMPLES = [(name, values) for name in WITH_SET for values in settings_class(name).examples]
NAMES = [f"{name} {' '.join(str(value) for value in values.values())}" for name, values in EXAMPLES]
SETS = [text for cls in all_sets().values() for text in cls.examples]
TWO_OF_FOUR = NM(2, 4)

every_example = pytest.mark.parametrize(("name", "values"), EXAMPLES, ids=NAMES)


def make(name: str, values: dict[str, Any], constraint: nxm.ConstraintSet = TWO_OF_FOUR) -> SparsityCallback:
    return make_callback(name, constraint, settings_class(name).model_validate(values))


def method_class(name: str) -> type[SparsityCallback]:
    return type(make(name, settings_class(name).examples[0]))


@pytest.fixture(scope="module", params=EXAMPLES, ids=NAMES)
def trained(request, tmp_path_factory) -> SimpleNamespace:
    """A whole training of 16 steps with a checkpoint at each, without evaluations."""
    name, values = request.param
    callback, model, folder = make(name, values), new_model(), tmp_path_factory.mktemp("trained")
    trainer = trainer_for(model, parity_data(), folder, [callback], save_strategy="steps", save_steps=1, seed=3)
    trainer.train()
    return SimpleNamespace(
        **{"name": name, "values": values, "callback": callback, "record": callback.record()},
        **{"trainer": trainer, "folder": folder, "model": model, "weights": weights_of(model)},
    )


# --- The registry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_folder_of_three_modules(name):
    folder = Path(nxm.__file__).parent / "methods" / name
    assert {path.name for path in folder.glob("*.py")} == {"__init__.py", "settings.py", "algorithm.py", "callback.py"}


def test_the_settings_load_without_torch():
    code = (
        "import sys; from nxm.methods import METHODS, settings_class\n"
        "for name in METHODS: settings_class(name)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=f"method 'magic' is unknown; known are {', '.join(METHODS)}"):
        settings_class("magic")
    with pytest.raises(UserError, match="method 'magic' is unknown"):
        make_callback("magic", NM(2, 4), settings_class("admm").model_validate(EXAMPLES[0][1]))


@every_example
def test_settings_take_their_own_keys_and_no_other(name, values):
    settings = settings_class(name).model_validate(values)
    assert settings_class(name).model_validate(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValidationError, match=r"nonesuch\n.*Extra inputs are not permitted"):
        settings_class(name).model_validate(values | {"nonesuch": 1})


def test_settings_name_importances_that_there_are():
    for name in ImportanceName.__args__:
        assert (make_importance(name) is None) == (name == "none")


# --- Trainings ---------------------------------------------------------------------------------------------------


def test_the_saved_model_obeys_its_set_and_scores_the_same_when_loaded(trained, tmp_path):
    loss = trained.trainer.evaluate()["eval_loss"]
    trained.trainer.save_model(str(tmp_path / "sparse"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse")
    targets = find_targets(loaded)
    assert all(TWO_OF_FOUR.contains(W) for W in targets.values())
    assert all((W != 0).float().mean() > 0.4 for W in targets.values())  # pruned, not wiped out
    assert read_pattern(loaded.config) == (TWO_OF_FOUR, list(targets))
    again = trainer_for(loaded, parity_data(), tmp_path / "again", []).evaluate()["eval_loss"]
    assert again == loss


def test_the_record_is_json_or_none(trained):
    assert trained.record is None or json.loads(json.dumps(trained.record, allow_nan=False)) == trained.record


def test_the_state_is_saved_with_every_checkpoint(trained):
    assert len(list(trained.folder.glob("checkpoint-*"))) == 16
    assert len(list(trained.folder.glob(f"checkpoint-*/{STATE_FILE}"))) == 16


@pytest.mark.situation("training", "killed and resumed from a checkpoint", "works", since="0.1")
@pytest.mark.parametrize("step", [2, 7, 11])
def test_a_resumed_training_ends_with_the_same_weights(step, trained, tmp_path):
    checkpoint = tmp_path / f"checkpoint-{step}"
    shutil.copytree(trained.folder / checkpoint.name, checkpoint)
    callback, model = make(trained.name, trained.values), new_model()
    arguments = {"save_strategy": "steps", "save_steps": 1, "seed": 3}
    trainer = trainer_for(model, parity_data(), tmp_path, [callback], **arguments)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(weights_of(model), trained.weights)
    assert callback.record() == trained.record


class Watch(TrainerCallback):
    """Remembers the targets around evaluations, and whether they obeyed their set in them."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.obeyed: list[bool] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.before.append({name: W.detach().clone() for name, W in find_targets(model).items()})

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.obeyed.append(all(TWO_OF_FOUR.contains(W) for W in find_targets(model).values()))

    def on_save(self, args, state, control, model, **kwargs):
        saved = model.state_dict()  # in eval mode the model has the projected weights, its state dict never
        self.after.append({name: saved[name].clone() for name in find_targets(model)})


def test_evaluation_is_of_the_projected_network_and_does_not_disturb_training(trained, tmp_path):
    watch, model = Watch(), new_model()
    trainer = trainer_for(
        model,
        parity_data(),
        tmp_path,
        [make(trained.name, trained.values), watch],
        **{"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3, "seed": 3},
    )
    trainer.eval_dataset = {"a": parity_data(), "b": parity_data()}  # on_evaluate comes once for each
    trainer.train()
    assert watch.obeyed
    assert all(watch.obeyed)
    assert len(watch.before) == 16
    for before, after in zip(watch.before[2::3], watch.after, strict=False):  # the last is of step 16
        assert_equal(after, before)
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert_equal({name: saved[name] for name in watch.before[2]}, watch.before[2])
    assert_equal(weights_of(model), trained.weights)


@pytest.mark.situation("training", "load_best_model_at_end, with an early best", "works", since="0.1")
@every_example
@pytest.mark.parametrize("best", [1, 3])
def test_the_best_evaluation_loaded_back_is_pruned_as_it_was_evaluated(name, values, best, tmp_path):
    """The best is an early one, before the choice is final in most methods."""
    model = new_model()
    assert_best_is_loaded_back_as_evaluated(model, make(name, values), best, tmp_path)
    assert all(TWO_OF_FOUR.contains(W) for W in find_targets(model).values())


@pytest.mark.situation("training", "one callback for one training after another", "works", since="0.1")
def test_a_callback_may_be_used_for_one_training_after_another(trained, tmp_path):
    model = new_model()
    trainer_for(model, parity_data(), tmp_path, [trained.callback], seed=3).train()
    assert_equal(weights_of(model), trained.weights)
    assert trained.callback.record() == trained.record


@pytest.mark.parametrize("text", SETS)
@pytest.mark.parametrize("name", WITH_SET)
def test_every_method_ends_in_every_set(name, text, tmp_path):
    constraint, model = parse_set(text), new_model()
    if not isinstance(constraint, SparseSet) and method_class(name).needs_mask:
        with pytest.raises(UserError, match="needs a set of zero patterns"):
            make(name, settings_class(name).examples[-1], constraint)
        return
    callback = make(name, settings_class(name).examples[-1], constraint)
    trainer_for(model, parity_data(), tmp_path, [callback]).train()
    assert all(constraint.contains(W) for W in find_targets(model).values())
    assert all(W.any() for W in find_targets(model).values()) or not isinstance(constraint, SparseSet)
    assert read_pattern(model.config) == (constraint, list(find_targets(model)))


@pytest.mark.parametrize("name", WITH_SET)
def test_targets_can_be_chosen(name, tmp_path):
    model, values = new_model(), settings_class(name).examples[0]
    settings = settings_class(name).model_validate(values)
    callback = make_callback(name, TWO_OF_FOUR, settings, include=("intermediate", "query"), exclude=(r"layer\.0\.",))
    trainer_for(model, parity_data(), tmp_path, [callback]).train()
    chosen = [f"bert.encoder.layer.1.{part}.weight" for part in ("attention.self.query", "intermediate.dense")]
    assert model.config.nxm_sparsity["targets"] == chosen
    assert [name for name, W in find_targets(model).items() if TWO_OF_FOUR.contains(W)] == chosen


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.situation("training", "a matrix whose width is no multiple of M", "refused", since="0.1")
@pytest.mark.parametrize("name", WITH_SET)
def test_a_width_that_is_no_multiple_of_the_group_is_refused_before_training(name, tmp_path):
    callback = make(name, settings_class(name).examples[0], NM(2, 32))
    with pytest.raises(UserError, match=r"query\.weight: input width 16 is no multiple of the group size 32"):
        trainer_for(new_model(), parity_data(), tmp_path, [callback]).train()


@pytest.mark.situation(
    "training", "resume from a checkpoint without the method's state, or in another output_dir", "refused", since="0.1"
)
@pytest.mark.parametrize("name", WITH_SET)
def test_a_checkpoint_without_the_methods_state_is_refused_by_name(name, tmp_path):
    trainer_for(new_model(), parity_data(), tmp_path, [], save_strategy="steps", save_steps=2, max_steps=4).train()
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [make(name, settings_class(name).examples[0])])
    with pytest.raises(UserError, match=rf"checkpoint-4/{STATE_FILE} is missing"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.situation("training", "resume from a damaged checkpoint", "refused", since="0.1")
@pytest.mark.parametrize("name", WITH_SET)
def test_a_damaged_state_is_refused_by_name(name, tmp_path):
    values = settings_class(name).examples[0]
    arguments = {"save_strategy": "steps", "save_steps": 12, "max_steps": 12}
    trainer_for(new_model(), parity_data(), tmp_path, [make(name, values)], **arguments).train()
    state = tmp_path / "checkpoint-12" / STATE_FILE
    state.write_bytes(state.read_bytes()[:-1] if state.stat().st_size < 200 else state.read_bytes()[:200])
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [make(name, values)])
    with pytest.raises(UserError, match=rf"checkpoint-12/{STATE_FILE} is damaged"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", WITH_SET)
def test_a_set_that_config_json_cannot_name_is_refused_before_training(name, tmp_path):
    class Mine(NM):
        pass

    callback = make(name, settings_class(name).examples[0], Mine())
    with pytest.raises(UserError, match=r"Mine is not a constraint set of nxm\.sets"):
        trainer_for(new_model(), parity_data(), tmp_path, [callback]).train()
