"""A set for each matrix: every method, with an allocation in place of one set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nxm import ADMM, NM, Admm, AdmmCallback, Allocation, Integers, SparsityCallback, UserError, find_targets, parse_set
from nxm.methods import make_callback, settings_class
from nxm.sets.base import ConstraintSet
from nxm.sets.saved import read_patterns, write_pattern, write_patterns
from tiny_training import WITH_SET, Stop, assert_equal, new_model, parity_data, trainer_for, weights_of

MIXED = ("2:4 int8", "2:4 int4", "int3", "2:4", "dense", "50 %")
MASKS = ("2:4", "1:4", "50 %", "dense")
NAMES = list(find_targets(new_model()))
MIXED_METHODS = [name for name in WITH_SET if name not in ("gradual", "sr_ste")]
RAMPED = {"recipe": "proximal", "rho": 0.35, "interval": 2, "freeze_at": 0.6}
JOINED = RAMPED | {"integers_from": 0.2, "integers_ramped": True, "importance": "activations"}


def allocation(texts: tuple[str, ...]) -> Allocation:
    """The texts in turn for the matrices of the tiny model."""
    chosen = [texts[place % len(texts)] for place in range(len(NAMES))]
    return Allocation(
        {name: None if text == "dense" else parse_set(text) for name, text in zip(NAMES, chosen, strict=True)}
    )


def make(name: str, constraint: ConstraintSet | Allocation, values: dict[str, Any] | None = None) -> SparsityCallback:
    values = settings_class(name).examples[-1] if values is None else values
    return make_callback(name, constraint, settings_class(name).model_validate(values))


def texts_for(name: str) -> tuple[str, ...]:
    return MIXED if name in MIXED_METHODS else MASKS


@pytest.mark.situation("training", "a set for each matrix, some of them dense", "works")
@pytest.mark.parametrize("name", WITH_SET)
def test_every_matrix_ends_in_its_own_set_and_a_killed_training_as_one_that_was_not(name, tmp_path):
    sets, values = allocation(texts_for(name)), JOINED if name == "admm" else None
    saved = {"save_strategy": "steps", "save_steps": 5, "seed": 3}
    model, callback = new_model(), make(name, sets, values)
    trainer_for(model, parity_data(), tmp_path / "whole", [callback], **saved).train()
    targets = find_targets(model)
    assert all(sets.sets[own] is None or sets.sets[own].contains(W) for own, W in targets.items())
    start = find_targets(new_model())
    for own in sets.dense:
        assert not torch.equal(targets[own], start[own])
        assert targets[own].count_nonzero() == targets[own].numel()
    claims = {own: constraint for constraint, names in read_patterns(model.config) for own in names}
    assert claims == sets.sparse

    again, killed = new_model(), make(name, sets, values)
    trainer_for(again, parity_data(), tmp_path / "again", [killed, Stop(5)], **saved).train()
    again, resumed = new_model(), make(name, sets, values)
    trainer_for(again, parity_data(), tmp_path / "again", [resumed], **saved).train(resume_from_checkpoint=True)
    assert_equal(weights_of(again), weights_of(model))
    assert resumed.record() == callback.record()


@pytest.mark.parametrize("name", WITH_SET)
def test_the_same_set_for_every_matrix_is_one_set_for_all(name, tmp_path):
    text = "2:4 int4" if name in MIXED_METHODS else "2:4"
    models, records = [], []
    for constraint in (parse_set(text), Allocation(dict.fromkeys(NAMES, parse_set(text)))):
        models.append(new_model())
        callback = make(name, constraint)
        trainer_for(models[-1], parity_data(), tmp_path, [callback], seed=3, max_steps=10).train()
        records.append(callback.record())
    assert_equal(*map(weights_of, models))
    assert records[0] == records[1]
    assert models[0].config.nxm_sparsity == models[1].config.nxm_sparsity


def test_in_eval_mode_every_matrix_is_in_its_own_set(tmp_path):
    sets = allocation(MIXED)
    seen = []

    class Watch(Stop):
        def on_prediction_step(self, args, state, control, model, **kwargs):
            seen.append(
                [
                    sets.sets[name].contains(W) if sets.sets[name] else not NM(2, 4).contains(W)
                    for name, W in find_targets(model).items()
                ]
            )

    callbacks = [make("admm", sets, RAMPED), Watch(6)]
    trainer_for(new_model(), parity_data(), tmp_path, callbacks, eval_strategy="steps", eval_steps=3).train()
    assert len(seen) == 2
    assert all(map(all, seen))


# --- ADMM by hand -------------------------------------------------------------------------------------------------


def weights() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(8, 16, generator=generator)) for name in ("masked", "free", "joint")}


SETS = {"masked": NM(2, 4), "free": Integers(3), "joint": Integers(4, NM(2, 4))}


def test_of_several_matrices_each_does_what_it_does_alone():
    together = ADMM(weights(), SETS, share=0.0)
    alone = {name: ADMM({name: W}, SETS[name], share=0.0) for name, W in weights().items()}
    for share in (0.0, 0.0, 0.5, 1.0, 1.0):
        together.join_(share)
        found = together.iterate_(dual_step=0.3, relaxation=1.2)
        together.proximal_step_(0.2)
        similarities = {}
        for name, own in alone.items():
            own.join_(share)
            similarities[name] = own.iterate_(dual_step=0.3 if own.constrains else 0.0, relaxation=1.2).similarity
            if own.constrains:
                own.proximal_step_(0.2)
        assert_equal(together.state_dict(), {k: v for own in alone.values() for k, v in own.state_dict().items()})
        if share < 1.0:  # integers without a zero pattern choose nothing yet; the others choose equally many
            assert found.similarity == pytest.approx((similarities["masked"] + similarities["joint"]) / 2)
            assert similarities["free"] == 1.0


def test_a_matrix_that_waits_for_its_grid_is_not_pulled():
    W = weights()
    admm = ADMM(W, SETS, share=0.0)
    with torch.no_grad():
        for own in W.values():
            own.add_(0.1)
    before = {name: own.detach().clone() for name, own in W.items()}
    admm.proximal_step_(0.5)
    admm.penalty_gradient_(0.5)
    assert admm.constrains
    assert torch.equal(W["free"], before["free"])
    assert W["free"].grad is None
    assert not torch.equal(W["masked"], before["masked"])
    assert not torch.equal(W["joint"], before["joint"])


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradual", "sr_ste"])
def test_a_set_that_the_method_cannot_train_into_is_named(name):
    with pytest.raises(UserError, match=r"needs a set of zero patterns \(a mask\), which 2:4 int8 is not"):
        make(name, allocation(MIXED))


def test_when_integers_join_is_refused_without_integers_alone():
    settings = Admm(**JOINED)
    assert AdmmCallback(allocation(MIXED), settings).settings == settings
    with pytest.raises(UserError, match="says when integers join, and 1:4"):
        AdmmCallback(allocation(("1:4", "2:4", "1:4")), settings)


@pytest.mark.situation("training", "an allocation that names other matrices than the model has", "refused")
def test_an_allocation_of_other_matrices_is_refused_by_name(tmp_path):
    sets = allocation(MIXED).sets
    missing = {name: own for name, own in sets.items() if name != NAMES[3]}
    with pytest.raises(UserError, match=rf"no entry for 1 of 12 matrices, first {NAMES[3]}"):
        trainer_for(new_model(), parity_data(), tmp_path, [make("one_shot", Allocation(missing), {})]).train()
    strange = Allocation({**sets, "layer.9": NM(2, 4)})
    with pytest.raises(UserError, match=r"names 1 matrices that are no targets of this model, first layer\.9"):
        trainer_for(new_model(), parity_data(), tmp_path, [make("one_shot", strange, {})]).train()


def test_a_choice_that_does_not_fit_is_refused_with_its_matrix(tmp_path):
    sets = Allocation(dict.fromkeys(NAMES, NM(2, 4)) | {NAMES[5]: NM(2, 64)})
    with pytest.raises(UserError, match=r"output\.dense\.weight: input width 32 is no multiple of the group size 64"):
        trainer_for(new_model(), parity_data(), tmp_path, [make("one_shot", sets, {})]).train()


@pytest.mark.situation("training", "resume with other sets than those of the checkpoint", "refused")
@pytest.mark.parametrize("former", [NM(2, 4), allocation(MASKS)], ids=["one set", "another allocation"])
def test_a_checkpoint_with_other_sets_is_refused_and_stays(former, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    trainer_for(new_model(), parity_data(), tmp_path, [make("one_shot", former, {})], **arguments).train()
    sets = allocation(MIXED)
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [make("one_shot", sets, {})])
    words = rf"saved with other sets: \d+ matrices differ, first {NAMES[0]}, which was 2:4 and is 2:4 int8 now"
    with pytest.raises(UserError, match=words):
        trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-4").is_dir()


def test_a_set_given_as_text_is_refused():
    with pytest.raises(UserError, match="'2:4' is not a constraint set"):
        make("admm", "2:4")


# --- Claims in config.json ----------------------------------------------------------------------------------------


def test_claims_written_together_replace_a_former_one_without_a_warning(recwarn):
    model = new_model()
    targets = find_targets(model)
    with torch.no_grad():
        for W in targets.values():
            W.copy_(NM(2, 4).project(W).Z)
    write_pattern(model.config, NM(2, 4), targets)
    sets = allocation(("int4", "2:4", "2:4 int8"))
    with torch.no_grad():
        for name, W in targets.items():
            W.copy_(sets.sets[name].project(W).Z)
    claims = [(own, [name for name in NAMES if sets.sets[name] == own]) for own in dict.fromkeys(sets.sets.values())]
    write_patterns(model.config, claims, dict(model.named_parameters()))
    assert {name: own for own, names in read_patterns(model.config) for name in names} == sets.sparse
    assert not recwarn.list
