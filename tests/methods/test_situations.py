"""Trainings as users set them up: each works, or is refused before its first step."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    BertForSequenceClassification,
    LongformerConfig,
    LongformerForTokenClassification,
    Trainer,
    TrainerCallback,
)

from nxm import NM, Admm, AdmmCallback, AspCallback, GmpCallback, SrSteCallback, UserError, find_targets
from nxm.errors import Diverged
from nxm.methods import make_callback, settings_class
from nxm.methods.callback import STATE_FILE, SparsityCallback
from nxm.methods.gradual.settings import Gmp
from nxm.sets.saved import read_pattern, read_patterns
from tiny_training import WITH_SET, Pad, new_model, parity_data, trainer_for

TWO_OF_FOUR = NM(2, 4)
PROXIMAL = Admm(recipe="proximal", rho=0.35, interval=2, freeze_at=0.5)
GRADIENT = Admm(recipe="gradient", rho=0.05, interval=2, freeze_at=0.5)

every_method = pytest.mark.parametrize("name", WITH_SET)


def make(name: str) -> SparsityCallback:
    return make_callback(name, TWO_OF_FOUR, settings_class(name).model_validate(settings_class(name).examples[0]))


def obeys(model: nn.Module) -> bool:
    return all(TWO_OF_FOUR.contains(W) for W in find_targets(model).values())


class Stream(IterableDataset):
    """The parity data without a length, its first rows only."""

    def __init__(self, rows: int = 64) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(parity_data().select(range(self.rows)))


# --- Half precision -----------------------------------------------------------------------------------------------


class Fp16(Trainer):
    """A Trainer with a GradScaler on the CPU, whose first scale overflows: as fp16 begins on a GPU."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)


class Skips(TrainerCallback):
    """Notes for each step whether it was skipped (the scale shrank) and whether the targets moved in it."""

    def __init__(self) -> None:
        self.steps: list[tuple[bool, bool]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.before = {name: W.detach().clone() for name, W in find_targets(model).items()}
        self.scale = 2.0**30

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any, **kwargs: Any) -> None:
        now = {name: W.detach().clone() for name, W in find_targets(model).items()}
        moved = any(not torch.equal(W, self.before[name]) for name, W in now.items())
        self.steps.append((optimizer.scaler.get_scale() < self.scale, moved))
        self.before, self.scale = now, optimizer.scaler.get_scale()


@pytest.mark.situation(
    "training", "fp16, whose first steps overflow and are skipped, with a fused optimizer (the default)", "works"
)
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize(
    "callback",
    [
        lambda: AdmmCallback(TWO_OF_FOUR, PROXIMAL, importance="none"),
        lambda: AdmmCallback(TWO_OF_FOUR, PROXIMAL, importance="adam"),
        lambda: AdmmCallback(TWO_OF_FOUR, GRADIENT),
        lambda: AspCallback(TWO_OF_FOUR),
        lambda: SrSteCallback(TWO_OF_FOUR),
    ],
    ids=["admm", "admm adam", "admm gradient", "asp", "sr-ste"],
)
def test_a_skipped_step_moves_nothing(callback, optimizer, tmp_path):
    skips, model = Skips(), new_model()
    plain = trainer_for(model, parity_data(), tmp_path, [], fp16=True, optim=optimizer, max_steps=40)
    Fp16(model, plain.args, Pad(), parity_data(), callbacks=[callback(), skips]).train()
    skipped = [moved for was_skipped, moved in skips.steps if was_skipped]
    assert len(skipped) > 5
    assert not any(skipped)
    assert sum(moved for _, moved in skips.steps) > 20
    assert obeys(model)


def test_moments_that_are_all_zero_say_nothing_about_importance():
    """A fused Adam has them after a skipped step; every entry of a group would tie, and the first ones survive."""
    model = new_model()
    targets = find_targets(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for W in model.parameters():
        W.grad = torch.zeros_like(W)
    optimizer.step()
    callback = AdmmCallback(TWO_OF_FOUR, PROXIMAL, importance="adam")
    callback.targets = targets
    assert callback.measure_importance(AcceleratedOptimizer(optimizer, device_placement=False)) is None


# --- Data ---------------------------------------------------------------------------------------------------------


@pytest.mark.situation("training", "a stream that ends inside a gradient accumulation", "works")
@every_method
def test_the_end_of_a_stream_inside_an_accumulation_loses_no_weights(name, tmp_path):
    """SR-STE's dense weights would be replaced by the masked ones: a step of the size of the weights."""
    largest = []

    class Steps(TrainerCallback):
        before = None

        def on_step_end(self, args, state, control, model, **kwargs):
            W = model.bert.encoder.layer[0].intermediate.dense.weight.detach().clone()
            if self.before is not None:
                largest.append(float((W - self.before).abs().max()))
            self.before = W

    arguments = {"gradient_accumulation_steps": 2, "max_steps": 12, "learning_rate": 1e-4, "weight_decay": 0.0}
    model = new_model()
    trainer_for(model, Stream(40), tmp_path, [Steps(), SrSteCallback(TWO_OF_FOUR)], **arguments).train()
    assert len(largest) == 11
    assert max(largest) < 2e-4
    if name != "sr_ste":
        callback = make_callback(name, TWO_OF_FOUR, settings_class(name).model_validate(stream_settings(name)))
        trainer_for(model, Stream(40), tmp_path, [callback], **arguments).train()
    assert obeys(model)


def stream_settings(name: str) -> dict[str, Any]:
    values = dict(settings_class(name).examples[0])
    return values | {"interval": 2} if "interval" in values else values


@pytest.mark.situation("training", "interval 'epoch' with data without a length", "refused")
@pytest.mark.parametrize(
    "callback", [AdmmCallback(TWO_OF_FOUR, Admm(recipe="paper", rho=0.1)), GmpCallback(TWO_OF_FOUR)]
)
def test_an_epoch_of_data_without_a_length_is_refused(callback, tmp_path):
    if isinstance(callback, GmpCallback):
        callback = GmpCallback(TWO_OF_FOUR, Gmp(interval="epoch", prune_until=0.5))
    with pytest.raises(UserError, match=r"interval 'epoch' needs data with a length.*give a number of steps"):
        trainer_for(new_model(), Stream(), tmp_path, [callback], max_steps=8).train()


@pytest.mark.situation("training", "a stream with a number of steps", "works")
@every_method
def test_a_stream_with_max_steps_works(name, tmp_path):
    model = new_model()
    callback = make_callback(name, TWO_OF_FOUR, settings_class(name).model_validate(stream_settings(name)))
    trainer_for(model, Stream(), tmp_path, [callback], max_steps=12).train()
    assert obeys(model)


@pytest.mark.situation("training", "part of an epoch (num_train_epochs=2.5, max_steps)", "works")
@pytest.mark.parametrize("length", [{"num_train_epochs": 2.5}, {"max_steps": 9}, {"num_train_epochs": 3}])
@pytest.mark.parametrize(("accumulation", "steps"), [(1, 4), (3, 2)])
def test_an_epoch_is_an_epoch_of_the_data(length, accumulation, steps, tmp_path):
    callback = AdmmCallback(TWO_OF_FOUR, Admm(recipe="paper", rho=0.1))
    arguments = length | {"gradient_accumulation_steps": accumulation}
    trainer_for(new_model(), parity_data(), tmp_path, [callback], **arguments).train()
    assert callback.interval == steps
    assert [row["epoch"] for row in callback.iterations] == [row["step"] / steps for row in callback.iterations]


# --- Layers that take no part -------------------------------------------------------------------------------------


class WithSpare(nn.Module):
    """A BERT whose blocks have a Linear layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = new_model()
        self.config = self.inner.config
        for block in self.inner.bert.encoder.layer:
            block.spare = nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.inner(input_ids, attention_mask, labels=labels)


@pytest.mark.situation("training", "Linear layers that are never called, with a weighted projection", "works")
@pytest.mark.parametrize("importance", ["activations", "adam"])
@pytest.mark.parametrize("method", [AdmmCallback, GmpCallback])
def test_layers_that_are_never_called_go_by_magnitude_and_the_others_by_importance(method, importance, tmp_path):
    settings = PROXIMAL if method is AdmmCallback else Gmp(interval=2, prune_until=0.8)
    plain, spare = new_model(), WithSpare()
    arguments = {"max_grad_norm": 0.0, "weight_decay": 0.0}  # nothing else depends on the spare layers
    trainer_for(
        plain, parity_data(), tmp_path, [method(TWO_OF_FOUR, settings, importance=importance)], **arguments
    ).train()
    trainer = trainer_for(
        spare, parity_data(), tmp_path, [method(TWO_OF_FOUR, settings, importance=importance)], **arguments
    )
    with pytest.warns(UserWarning, match=r"2 of 14 matrices took no part.*layer\.0\.spare\.weight.*by magnitude"):
        trainer.train()
    assert all(torch.equal(W, find_targets(spare)[f"inner.{name}"]) for name, W in find_targets(plain).items())
    assert obeys(spare)
    assert set(read_pattern(spare.config)[1]) == find_targets(spare.inner).keys()  # the model that the config is of


@pytest.mark.situation("training", "Longformer without global attention", "works")
def test_a_longformer_is_weighted_though_its_global_layers_are_idle(tmp_path):
    config = LongformerConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        attention_window=4,
    )
    model = LongformerForTokenClassification(config)
    data = parity_data().map(
        lambda row: {"labels": [row["input_ids"][0] % 2] * 8, "input_ids": (row["input_ids"] * 8)[:8]}
    )
    callback = AdmmCallback(TWO_OF_FOUR, PROXIMAL, importance="activations")
    trainer = trainer_for(model, data, tmp_path, [callback], max_steps=8)
    with pytest.warns(UserWarning, match=r"3 of 9 matrices took no part.*query_global"):
        trainer.train()
    assert callback.weighted_choices


# --- What is around the model -------------------------------------------------------------------------------------


class Bare(nn.Module):
    """A user's module around a model, without a config."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = new_model()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.inner(input_ids, attention_mask, labels=labels)


@pytest.mark.situation("training", "your own nn.Module without a config", "works")
@every_method
def test_a_module_without_a_config_trains_to_its_end_and_says_what_is_missing(name, tmp_path):
    model = Bare()
    trainer = trainer_for(model, parity_data(), tmp_path, [make(name)], save_strategy="epoch")
    with pytest.warns(UserWarning, match=r"Bare has no config.*no config\.json will say so"):
        trainer.train()
    assert obeys(model)
    assert read_pattern(model.inner.config) is None


@pytest.mark.situation("training", "hyperparameter_search with checkpoints", "works")
@every_method
def test_a_search_saves_the_state_in_its_own_runs(name, tmp_path):
    """As Trainer.hyperparameter_search does it: `run-1/checkpoint-4`. (Its backends are no dependencies of nxm.)"""
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [make(name)], save_strategy="steps", save_steps=4)
    trainer._get_output_dir = lambda trial: str(tmp_path / "run-1")
    begun = trainer._init_training_state

    def begin(*args: Any, **kwargs: Any) -> Any:
        result = begun(*args, **kwargs)
        trainer.state.is_hyper_param_search = True
        return result

    trainer._init_training_state = begin
    trainer.train()
    assert {path.parent.name for path in (tmp_path / "run-1").glob(f"*/{STATE_FILE}")} == {
        f"checkpoint-{step}" for step in (4, 8, 12, 16)
    }


@pytest.mark.situation("training", "load_best_model_at_end, and the best checkpoint's folder is gone", "works")
@every_method
def test_a_best_checkpoint_that_is_gone_loses_nothing(name, tmp_path):
    class Gone(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 16:
                shutil.rmtree(state.best_model_checkpoint)

    model = new_model()
    arguments = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer_for(model, parity_data(), tmp_path, [make(name), Gone()], **arguments, **best).train()
    assert obeys(model)


@pytest.mark.situation("training", "enable_jit_checkpoint (saving on SIGTERM)", "refused")
@every_method
def test_checkpoints_in_the_middle_of_a_step_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"enable_jit_checkpoint saves in the middle of a step.*set save_steps"):
        trainer_for(new_model(), parity_data(), tmp_path, [make(name)], enable_jit_checkpoint=True).train()


class SwapsWeights(torch.optim.AdamW):
    """Like a schedule-free optimizer: other weights for evaluation than for training."""

    def eval(self) -> None: ...

    def train(self) -> None: ...


@pytest.mark.situation("training", "a schedule-free optimizer", "refused")
@every_method
def test_an_optimizer_that_swaps_weights_is_refused(name, tmp_path):
    model = new_model()
    plain = trainer_for(model, parity_data(), tmp_path, [])
    optimizers = (SwapsWeights(model.parameters()), None)
    trainer = Trainer(model, plain.args, Pad(), parity_data(), callbacks=[make(name)], optimizers=optimizers)
    with pytest.raises(UserError, match=r"SwapsWeights keeps other weights for evaluation.*optim='adamw_torch'"):
        trainer.train()


@pytest.mark.situation("training", "two callbacks for different parts of the model", "works")
def test_two_callbacks_for_two_parts_each_end_in_their_own_set(tmp_path):
    model = new_model()
    attention = AdmmCallback(TWO_OF_FOUR, include=("attention",))
    rest = GmpCallback(NM(1, 4), Gmp(interval=2, prune_until=0.8), exclude=("attention",))
    trainer_for(model, parity_data(), tmp_path, [attention, rest], eval_strategy="steps", eval_steps=2).train()
    assert all(TWO_OF_FOUR.contains(W) for W in find_targets(model, include=["attention"]).values())
    assert all(NM(1, 4).contains(W) for W in find_targets(model, exclude=["attention"]).values())
    assert read_patterns(model.config) == [
        (TWO_OF_FOUR, list(attention.targets)),
        (NM(1, 4), list(rest.targets)),
    ]


@pytest.mark.situation("training", "a sparse model trained again, into another set", "works")
def test_a_second_training_takes_over_what_it_changed(tmp_path):
    model = new_model()
    trainer_for(model, parity_data(), tmp_path, [AspCallback(TWO_OF_FOUR)]).train()
    second = AspCallback(NM(1, 4), include=("attention",))
    with pytest.warns(UserWarning, match="no longer claims 2:4"):  # it moves the matrices that are not its targets too
        trainer_for(model, parity_data(), tmp_path, [second]).train()
    assert read_patterns(model.config) == [(NM(1, 4), list(second.targets))]


# --- Values -------------------------------------------------------------------------------------------------------


@pytest.mark.situation("training", "a training that diverged to NaN", "refused")
@every_method
def test_a_diverged_training_says_so(name, tmp_path):
    class Diverge(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            with torch.no_grad():
                model.bert.encoder.layer[0].intermediate.dense.weight[0, 0] = float("nan")

    with pytest.raises(Diverged, match="training diverged"):
        trainer_for(new_model(), parity_data(), tmp_path, [Diverge(), make(name)]).train()


@pytest.mark.parametrize("callback", [AdmmCallback, GmpCallback, AspCallback, SrSteCallback])
def test_a_set_given_as_text_is_refused_with_what_would_be_right(callback):
    with pytest.raises(UserError, match=r"'2:4' is not a constraint set; give one such as NM\(2, 4\), or parse_set"):
        callback("2:4")


@pytest.mark.parametrize("callback", [AdmmCallback, GmpCallback])
def test_settings_given_as_a_dict_are_refused(callback):
    with pytest.raises(UserError, match=r"settings must be an object of class \w+, got \{'rho': 0\.1\}"):
        callback(TWO_OF_FOUR, {"rho": 0.1})


def test_a_training_that_begins_with_an_error_leaves_nothing_on_the_model(tmp_path):
    model: BertForSequenceClassification = new_model()
    callback = AdmmCallback(TWO_OF_FOUR)
    state = SimpleNamespace(max_steps=16, global_step=4)
    args = trainer_for(model, parity_data(), tmp_path, []).args
    with pytest.raises(UserError, match="is missing"):
        callback.on_train_begin(args, state, None, model=model, train_dataloader=[0] * 4)
    assert not model._forward_pre_hooks
    assert not any(
        layer._forward_pre_hooks or list(layer.children()) for layer in model.modules() if isinstance(layer, nn.Linear)
    )
