"""In eval mode a model is the projected one, in train mode and in a state dict it is not, whoever calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainerCallback

from nxm import NM, AdmmCallback, SparsityCallback, UserError, find_targets
from nxm.methods import make_callback, settings_class
from nxm.methods.evaluation import ProjectedInEval
from tiny_training import WITH_SET, new_model, parity_data, trainer_for, weights_of

TWO_OF_FOUR = NM(2, 4)
INPUT = torch.tensor([[7, 8, 9, 10]])

every_method = pytest.mark.parametrize("name", WITH_SET)


def make(name: str) -> SparsityCallback:
    return make_callback(name, TWO_OF_FOUR, settings_class(name).model_validate(settings_class(name).examples[0]))


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def obeys(model: nn.Module) -> bool:
    return all(TWO_OF_FOUR.contains(W) for W in find_targets(model).values())


def attach(model: nn.Module) -> ProjectedInEval:
    def project(name: str, W: torch.Tensor) -> torch.Tensor | None:
        return None if TWO_OF_FOUR.contains(W) else TWO_OF_FOUR.project(W).Z

    return ProjectedInEval(model, find_targets(model), project, lambda name: None, object(), on_taken=lambda by: None)


# --- The mechanism -----------------------------------------------------------------------------------------------


def test_the_mode_decides_and_the_state_dict_never_changes():
    model = new_model().train()
    before = weights_of(model)
    view = attach(model)
    assert equal(dict(model.state_dict()), before)
    assert not obeys(model)
    model.eval()
    assert obeys(model)
    assert equal(dict(model.state_dict()), before)
    model.eval()
    model.train()
    assert not obeys(model)
    assert equal(dict(model.state_dict()), before)
    model.eval()
    view.detach()
    view.detach()
    assert not obeys(model)
    assert equal(dict(model.state_dict()), before)
    assert equal({name: W.detach() for name, W in model.named_parameters()}, before)
    assert [
        type(child) for layer in model.modules() if isinstance(layer, nn.Linear) for child in layer.children()
    ] == []


def test_a_part_of_the_model_follows_its_own_mode():
    model = new_model().train()
    attach(model)
    first, second = model.bert.encoder.layer
    first.eval()
    assert TWO_OF_FOUR.contains(first.intermediate.dense.weight)
    assert not TWO_OF_FOUR.contains(second.intermediate.dense.weight)


def test_weights_that_are_loaded_in_eval_mode_count():
    model, other = new_model().train(), new_model()
    with torch.no_grad():
        for W in other.parameters():
            W.add_(0.5)
    attach(model)
    model.eval()
    model.load_state_dict(other.state_dict())
    model.train()
    assert equal(weights_of(model), weights_of(other))


def test_under_inference_mode_the_weights_stay_ordinary_tensors():
    model = new_model().train()
    attach(model)
    with torch.inference_mode():
        model.eval()
        model(INPUT)
        model.train()
    model(INPUT).logits.sum().backward()
    assert not any(W.is_inference() for W in model.parameters())


@pytest.mark.situation("training", "copy.deepcopy(model), as for the best model so far: a plain model", "works")
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_copy_is_a_plain_model_with_what_the_model_shows(mode, tmp_path):
    model = new_model().train()
    attach(model)
    model.train(mode)
    shown = {name: W.detach().clone() for name, W in model.named_parameters()}
    twin = copy.deepcopy(model)
    for again in (True, False, True):
        twin.train(again)
        assert equal({name: W.detach() for name, W in twin.named_parameters()}, shown)
        assert equal(weights_of(twin), {name: shown.get(name, W) for name, W in weights_of(twin).items()})
    trainer_for(twin, parity_data(), tmp_path, [make("admm")], max_steps=16).train()  # and may be trained like any
    assert obeys(twin)
    assert not any(list(layer.children()) for layer in twin.modules() if isinstance(layer, nn.Linear))


def test_a_weight_of_two_layers_is_saved_once_and_for_all():
    model = new_model().train()
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight
    before = weights_of(model)
    attach(model)
    model.eval()
    assert equal(dict(model.state_dict()), before)


def test_autocast_does_not_keep_the_values_of_the_other_mode():
    model = new_model().train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(INPUT).logits
    attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        model.eval()
        projected = model(INPUT).logits
        model.train()
        found = model(INPUT).logits
    assert torch.equal(found, expected)
    assert not torch.equal(projected, expected)


def test_a_model_in_eval_mode_can_be_freed_with_its_view():
    import gc
    import weakref

    model = new_model().eval()
    attach(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


# --- Whoever looks -----------------------------------------------------------------------------------------------


class Look(TrainerCallback):
    """A user's callback that runs the model in eval mode at every event, and leaves its mode or sets it back."""

    def __init__(self, put_back: bool) -> None:
        self.put_back = put_back
        self.seen: list[bool] = []

    def look(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        model.eval()
        with torch.no_grad():
            model(INPUT)
        self.seen.append(obeys(model))
        if self.put_back:
            model.train()

    on_step_begin = on_substep_end = on_pre_optimizer_step = on_optimizer_step = look
    on_step_end = on_epoch_begin = on_epoch_end = on_evaluate = on_log = on_save = look


@pytest.mark.situation("training", "a callback of your own runs the model in eval mode, before or after nxm's", "works")
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("put_back", [True, False], ids=["put back", "left in eval mode"])
@every_method
def test_a_look_sees_the_projected_model_and_changes_nothing(name, put_back, first, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 3, "seed": 3, "gradient_accumulation_steps": 2}
    undisturbed = new_model()
    trainer_for(undisturbed, parity_data(), tmp_path / "plain", [make(name)], **arguments, max_steps=12).train()
    look, ours, model = Look(put_back), make(name), new_model()
    callbacks = [look, ours] if first else [ours, look]
    trainer_for(model, parity_data(), tmp_path / "look", callbacks, **arguments, max_steps=12).train()
    assert len(look.seen) > 12
    assert all(look.seen)
    assert equal(weights_of(model), weights_of(undisturbed))
    for checkpoint in ("checkpoint-3", "checkpoint-6", "checkpoint-9"):
        saved = [load_file(tmp_path / folder / checkpoint / "model.safetensors") for folder in ("plain", "look")]
        assert equal(*saved)


class Pooled(Trainer):
    """A loss that calls a part of the model, as contrastive learning does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hidden = model.bert(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state.mean(dim=1)
        logits = model.classifier(hidden)
        if not model.training:
            self.seen.append(obeys(model))
        loss = nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


@pytest.mark.situation("training", "your Trainer's loss calls a part of the model and not the model", "works")
@every_method
def test_a_loss_that_calls_a_part_of_the_model_is_evaluated_on_the_projected_one(name, tmp_path):
    plain = trainer_for(new_model(), parity_data(), tmp_path, [make(name)], eval_strategy="steps", eval_steps=2)
    pooled = Pooled(plain.model, plain.args, plain.data_collator, plain.train_dataset, plain.eval_dataset)
    pooled.add_callback(make(name))
    pooled.seen = []
    pooled.train()
    assert len(pooled.seen) == 8
    assert all(pooled.seen)


@pytest.mark.situation("training", "generate while a method trains (predict_with_generate)", "works")
def test_generate_runs_on_the_projected_model_from_its_first_call_on():
    """It calls the encoder, which is not the model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).train()
    attach(model)
    seen: list[bool] = []
    for part in (model.encoder, model.decoder):
        part.register_forward_pre_hook(lambda *_: seen.append(obeys(model)))
    model.eval()
    model.generate(INPUT, max_new_tokens=3, min_new_tokens=3)
    assert len(seen) == 4
    assert all(seen)


# --- Trainings that are left ---------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    """Raises KeyboardInterrupt at an event of step 5."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.interrupt)

    def interrupt(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def plain_training(model: nn.Module, folder: Any) -> dict[str, torch.Tensor]:
    trainer = trainer_for(model, parity_data(), folder, [], eval_strategy="epoch", seed=3)
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return load_file(folder / "saved" / "model.safetensors")


@pytest.mark.situation("training", "Ctrl-C in a notebook, then a dense training of the same model", "works")
@pytest.mark.parametrize(
    "event", ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_prediction_step"]
)
@every_method
def test_after_an_interrupted_training_a_dense_one_is_dense(name, event, tmp_path):
    model = new_model()
    arguments = {"eval_strategy": "steps", "eval_steps": 5}
    with pytest.raises(KeyboardInterrupt):
        trainer_for(model, parity_data(), tmp_path / "sparse", [make(name), Interrupt(event)], **arguments).train()
    start = new_model()
    start.load_state_dict(weights_of(model))
    dense = plain_training(model, tmp_path / "dense")
    if (
        name != "sr_ste"
    ):  # which runs on masked weights from the step's begin: the dense training's first pass sees them
        assert equal(dense, plain_training(start, tmp_path / "reference"))
    assert not all(TWO_OF_FOUR.contains(dense[target]) for target in find_targets(model)) or name == "one_shot"
    assert equal(
        {n: W.detach() for n, W in model.named_parameters()}, {n: dense[n] for n, _ in model.named_parameters()}
    )


@pytest.mark.situation("training", "Ctrl-C, then a sparse training of the same model with a new callback", "works")
@every_method
def test_after_an_interrupted_training_another_sparse_one_works(name, tmp_path):
    model = new_model()
    with pytest.raises(KeyboardInterrupt):
        trainer_for(model, parity_data(), tmp_path, [make(name), Interrupt("on_step_end")]).train()
    trainer_for(model, parity_data(), tmp_path, [make(name)]).train()
    assert obeys(model)
    assert not any(list(layer.children()) for layer in model.modules() if isinstance(layer, nn.Linear))


@pytest.mark.situation("training", "out of memory, and auto_find_batch_size starts again", "works")
@every_method
def test_a_training_that_starts_again_after_out_of_memory(name, tmp_path):
    class Full(TrainerCallback):
        full = True

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 and self.full:
                self.full = False
                raise RuntimeError("CUDA out of memory.")

    model = new_model()
    trainer_for(model, parity_data(), tmp_path, [make(name), Full()], auto_find_batch_size=True).train()
    assert obeys(model)
    assert not any(list(layer.children()) for layer in model.modules() if isinstance(layer, nn.Linear))


@pytest.mark.situation("training", "two callbacks with a matrix in common", "refused")
def test_two_callbacks_cannot_share_a_target(tmp_path):
    callbacks = [make("admm"), AdmmCallback(NM(1, 4), include=("query",), importance="none")]
    model = new_model()
    before = weights_of(model)
    with pytest.raises(UserError, match=r"query\.weight is a target of two callbacks"):
        trainer_for(model, parity_data(), tmp_path, callbacks).train()
    assert equal(weights_of(model), before)


@every_method
def test_a_callback_can_be_copied_after_a_training(name, tmp_path):
    callback, model = make(name), new_model()
    trainer_for(model, parity_data(), tmp_path, [callback]).train()
    twin, other = copy.deepcopy(callback), new_model()
    trainer_for(other, parity_data(), tmp_path, [twin]).train()
    assert equal(weights_of(other), weights_of(model))


def interrupt_in_a_forward_pass(trainer: Trainer, step: int) -> None:
    """Raise KeyboardInterrupt in the forward pass of a step, in whose middle most of a Ctrl-C's fall."""
    compute_loss = trainer.compute_loss

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step and trainer.model.training:
            raise KeyboardInterrupt
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.compute_loss = compute_loss


@pytest.mark.situation("training", "Ctrl-C in a forward pass, then resumed in the same process", "works")
@every_method
def test_what_is_loaded_after_an_interruption_counts(name, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 3, "seed": 3}
    whole = new_model()
    trainer_for(whole, parity_data(), tmp_path / "whole", [make(name)], **arguments).train()
    model = new_model()
    trainer = trainer_for(model, parity_data(), tmp_path / "cut", [make(name)], **arguments)
    interrupt_in_a_forward_pass(trainer, 5)
    trainer.train(resume_from_checkpoint=True)
    assert equal(weights_of(model), weights_of(whole))


@every_method
def test_another_callback_starts_from_the_weights_that_an_interrupted_training_had(name, tmp_path):
    """SR-STE has masked weights in the network in the middle of a step."""
    model, reference = new_model(), new_model()
    interrupt_in_a_forward_pass(trainer_for(model, parity_data(), tmp_path / "cut", [make(name)]), 5)
    reference.load_state_dict(weights_of(model))
    for other in (model, reference):
        trainer_for(other, parity_data(), tmp_path / "next", [AdmmCallback(TWO_OF_FOUR)], seed=3).train()
    assert equal(weights_of(model), weights_of(reference))


@pytest.mark.situation("training", "a checkpoint in the middle of a gradient accumulation", "works")
@every_method
def test_a_checkpoint_inside_an_accumulation_has_the_training_weights(name, tmp_path):
    saved = []

    class Save(TrainerCallback):
        def on_substep_end(self, args, state, control, model, **kwargs):
            saved.append(weights_of(model))

        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            assert equal(saved[-1], weights_of(model))  # after nxm's callback the model has them

    arguments = {"gradient_accumulation_steps": 2, "max_steps": 12}
    trainer_for(new_model(), parity_data(), tmp_path, [make(name), Save()], **arguments).train()
    assert len(saved) == 12


@pytest.mark.situation(
    "training", "a second optimizer that steps inside the training step (layer-wise optimizers)", "refused"
)
def test_an_optimizer_besides_the_trainers_is_named(tmp_path):
    class Two(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            torch.optim.SGD(self.model.bert.encoder.parameters(), lr=1e-3).step()
            return loss

    plain = trainer_for(new_model(), parity_data(), tmp_path, [])
    trainer = Two(plain.model, plain.args, plain.data_collator, plain.train_dataset, callbacks=[make("admm")])
    with pytest.raises(UserError, match=r"an optimizer of class SGD changed the weights outside"):
        trainer.train()
