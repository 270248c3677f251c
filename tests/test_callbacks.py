"""One callback in an ordinary Trainer script makes a model that obeys its pattern."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from conftest import tiny_config
from nxm import (
    ADMM,
    NM,
    ActivationNorms,
    Admm,
    AdmmCallback,
    AspCallback,
    Gmp,
    GmpCallback,
    SrSteCallback,
    Unstructured,
    find_targets,
)
from nxm.methods.admm.callback import BEST_ADMM
from nxm.methods.admm.history import MaskHistory
from nxm.methods.callback import STATE_FILE

PAPER = Admm(recipe="paper", rho=0.05)
PROXIMAL = Admm(recipe="proximal", rho=0.35, freeze_at=0.5)
RAMPED = Admm(recipe="proximal", rho=0.5, schedule="cosine", interval=3)
GRADIENT = Admm(recipe="gradient", rho=0.05, freeze_at=0.5)
DRIVEN = Admm(recipe="proximal", rho=0.2, schedule="similarity", interval=3, dual_step="matched")


class Pad:
    """Pads a batch by hand: these tests need no tokenizer."""

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
            ),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


def new_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config())


def trainer_for(model, data, folder: Path, callbacks, **changes) -> Trainer:
    values = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = TrainingArguments(**(values | changes))
    return Trainer(model, args, train_dataset=data, eval_dataset=data, data_collator=Pad(), callbacks=callbacks)


@pytest.mark.parametrize(
    "callback",
    [
        AspCallback(NM(2, 4)),
        AspCallback(NM(1, 4)),
        AspCallback(NM(2, 4), importance="activations"),
        AdmmCallback(NM(2, 4), PAPER),
        AdmmCallback(NM(2, 4), PROXIMAL),
        AdmmCallback(NM(3, 4), RAMPED),
        AdmmCallback(Unstructured(0.5), PROXIMAL),
        AdmmCallback(NM(2, 4), DRIVEN, relaxation=1.5),
        AdmmCallback(NM(2, 4), GRADIENT),
        GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5)),
        GmpCallback(NM(1, 4), Gmp(interval=3, prune_until=1.0)),
        GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5), importance=ActivationNorms()),
        SrSteCallback(NM(2, 4)),
        SrSteCallback(NM(1, 4), decay=0.1),
    ],
    ids=[
        *(
            "asp 2:4",
            "asp 1:4",
            "asp weighed",
            "paper 2:4",
            "proximal 2:4",
            "ramped 3:4",
            "unstructured",
            "driven 2:4",
            "gradient 2:4",
        ),
        *("gmp 2:4", "gmp 1:4 to the end", "gmp weighed", "sr-ste 2:4", "sr-ste 1:4"),
    ],
)
def test_the_saved_model_obeys_its_pattern_and_scores_the_same_when_loaded(callback, tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path / "out", [callback])
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "sparse"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse")
    assert all(callback.constraint.contains(W) for W in find_targets(loaded).values())
    assert any((W != 0).float().mean() > 0.2 for W in find_targets(loaded).values())  # pruned, not wiped out
    again = trainer_for(loaded, tiny_data, tmp_path / "again", []).evaluate()["eval_loss"]
    assert again == loss


def test_training_learns_under_the_constraint(tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback(NM(2, 4), PROXIMAL)], num_train_epochs=12)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


def test_asp_never_leaves_the_mask_of_the_pretrained_weights(tiny_data, tmp_path):
    model = new_model()
    masks = {name: NM(2, 4).mask(W) for name, W in find_targets(model).items()}
    trainer_for(model, tiny_data, tmp_path, [AspCallback(NM(2, 4))], weight_decay=0.1).train()
    for name, W in find_targets(model).items():
        assert not W[~masks[name]].any()
        assert W[masks[name]].all()


class Watch(TrainerCallback):
    """Remembers the weights around evaluations."""

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []
        self.during: list[bool] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.before.append(next(iter(find_targets(model).values())).detach().clone())

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.during.append(all(NM(2, 4).contains(W) for W in find_targets(model).values()))

    def on_save(self, args, state, control, model, **kwargs):
        self.after.append(next(iter(find_targets(model).values())).detach().clone())


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdmmCallback(NM(2, 4), PAPER),
        lambda: SrSteCallback(NM(2, 4)),
        lambda: GmpCallback(NM(2, 4), Gmp(interval=1, prune_until=1.0)),
    ],
    ids=["admm", "sr-ste", "gmp"],
)
def test_evaluation_sees_the_pruned_network_and_training_and_checkpoints_the_unpruned(make, tiny_data, tmp_path):
    watch = Watch()
    trainer = trainer_for(
        new_model(),
        tiny_data,
        tmp_path,
        [make(), watch],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=6,
    )
    trainer.eval_dataset = {"a": tiny_data, "b": tiny_data}  # on_evaluate comes once for each
    trainer.train()
    assert watch.during
    assert all(watch.during)
    assert len(watch.before) == len(watch.after) == 6
    for step, (before, after) in enumerate(zip(watch.before, watch.after, strict=True), start=1):
        assert torch.equal(before, after)
        assert step == 6 or not NM(2, 4).contains(before)  # GMP ends inside
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    name = next(iter(find_targets(trainer.model)))
    assert torch.equal(saved[name], watch.before[2])


@pytest.mark.parametrize("settings", [PAPER, PROXIMAL, RAMPED, DRIVEN], ids=["paper", "proximal", "ramped", "driven"])
@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_resumed_training_ends_with_the_same_weights(settings, stop, tiny_data, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    def run(folder: Path, *extra: TrainerCallback, resume: bool = False):
        callback = AdmmCallback(NM(2, 4), settings, MaskHistory())
        model = new_model()
        trainer = trainer_for(
            model, tiny_data, folder, [callback, *extra], save_strategy="steps", save_steps=1, max_steps=16, seed=3
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict(), callback

    whole, course = run(tmp_path / "whole")
    run(tmp_path / "stopped", Stop())
    for folder in (tmp_path / "stopped").glob("checkpoint-*"):
        assert int(folder.name.rpartition("-")[2]) <= stop
    resumed, course_after = run(tmp_path / "stopped", resume=True)
    assert course_after.iterations == course.iterations
    assert course_after.swaps == course.swaps
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AspCallback(NM(2, 4), importance="activations"),
        lambda: GmpCallback(NM(2, 4), Gmp(interval=3, prune_until=0.6)),
        lambda: GmpCallback(NM(2, 4), Gmp(interval=3, prune_until=0.6), importance=ActivationNorms()),
        lambda: SrSteCallback(NM(2, 4), decay=0.05),
    ],
    ids=["asp weighed", "gmp", "gmp weighed", "sr-ste"],
)
def test_the_rivals_resume_too(make, tiny_data, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 7

    def run(folder: Path, *extra: TrainerCallback, resume: bool = False):
        model = new_model()
        arguments = {"save_strategy": "steps", "save_steps": 1, "max_steps": 16, "seed": 3}
        trainer_for(model, tiny_data, folder, [make(), *extra], **arguments).train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "stopped", Stop())
    resumed = run(tmp_path / "stopped", resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_gmp_prunes_in_steps_and_then_holds_the_mask(tiny_data, tmp_path):
    class Density(TrainerCallback):
        def __init__(self):
            self.course = []

        def on_step_end(self, args, state, control, model, **kwargs):
            targets = find_targets(model).values()
            self.course.append(sum(int(W.count_nonzero()) for W in targets) / sum(W.numel() for W in targets))

    density = Density()
    callback = GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5))
    trainer_for(new_model(), tiny_data, tmp_path, [callback, density], max_steps=16).train()
    assert density.course == sorted(density.course, reverse=True)
    assert density.course[0] == 1.0  # nothing pruned before the first interval is over
    assert density.course[1:8:2] == pytest.approx([0.5 + 0.5 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1.0)], abs=0.01)
    assert set(density.course[8:]) == {0.5}


def test_gmp_that_would_prune_at_once_is_refused(tiny_data, tmp_path):
    callback = GmpCallback(NM(2, 4), Gmp(interval="epoch", prune_until=0.4))
    with pytest.raises(
        ValueError, match=r"has 6 optimizer steps \(prune_until = 0\.4 of 16\), fewer than two intervals of 4"
    ):
        trainer_for(new_model(), tiny_data, tmp_path, [callback]).train()


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdmmCallback(NM(2, 4), PROXIMAL, importance="none"),
        lambda: AdmmCallback(NM(2, 4), PROXIMAL),
        lambda: AdmmCallback(NM(2, 4), PROXIMAL.model_copy(update={"interval": 1})),
        lambda: GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5)),
        lambda: GmpCallback(NM(2, 4), Gmp(interval=2, prune_until=0.5), importance="activations"),
        lambda: SrSteCallback(NM(2, 4)),
    ],
    ids=["admm", "before a projection", "admm weighed", "gmp", "gmp weighed", "sr-ste"],
)
def test_the_best_evaluation_loaded_back_is_pruned_as_it_was_evaluated(make, tiny_data, tmp_path, monkeypatch):
    """The best is the first one, before any mask was fixed: the metric grows, and less is better."""
    model = new_model()
    trainer = trainer_for(
        model,
        tiny_data,
        tmp_path,
        [make()],
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
        **{"load_best_model_at_end": True, "metric_for_best_model": "calls", "greater_is_better": False},
    )
    losses: list[float] = []
    honest = trainer.evaluate

    def evaluate(*args, **kwargs):
        metrics = honest(*args, **kwargs)
        losses.append(metrics["eval_loss"])
        return metrics | {"eval_calls": len(losses)}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert all(NM(2, 4).contains(W) for W in find_targets(model).values())
    assert honest()["eval_loss"] == losses[0]


def test_a_callback_may_be_used_for_one_training_after_another(tiny_data, tmp_path):
    callback = AdmmCallback(NM(2, 4), PROXIMAL)
    courses, weights = [], []
    for _ in range(2):
        model = new_model()
        trainer_for(model, tiny_data, tmp_path, [callback], seed=3).train()
        courses.append(callback.iterations)
        weights.append(model.state_dict())
    assert courses[0] == courses[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_without_the_callbacks_state_is_refused_by_name(tiny_data, tmp_path):
    trainer_for(new_model(), tiny_data, tmp_path, [], save_strategy="steps", save_steps=2, max_steps=4).train()
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback()], max_steps=8)
    with pytest.raises(ValueError, match=rf"checkpoint-4/{STATE_FILE} is missing"):
        trainer.train(resume_from_checkpoint=True)


def test_a_damaged_state_is_refused_by_name(tiny_data, tmp_path):
    trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback()], save_strategy="steps", save_steps=4).train()
    state = max(tmp_path.glob(f"checkpoint-*/{STATE_FILE}"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    state.write_bytes(state.read_bytes()[:200])
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AdmmCallback()], num_train_epochs=8)
    with pytest.raises(ValueError, match="damaged"):
        trainer.train(resume_from_checkpoint=True)


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
    with pytest.raises(ValueError, match="not of this model"):
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
    with pytest.raises(ValueError, match="fewer than one iteration"):
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


def test_a_width_that_is_no_multiple_of_the_group_is_refused_before_training(tiny_data, tmp_path):
    trainer = trainer_for(new_model(), tiny_data, tmp_path, [AspCallback(NM(2, 32))])
    with pytest.raises(ValueError, match=r"query\.weight: input width 16 is no multiple of the group size 32"):
        trainer.train()


def test_a_skipped_optimizer_step_moves_nothing(tiny_bert):
    callback = AdmmCallback(NM(2, 4), PROXIMAL, importance="none")
    callback.targets = find_targets(tiny_bert)
    callback.begin(steps=100, steps_per_epoch=10)
    before = {name: W.detach().clone() for name, W in callback.targets.items()}

    class Overflowed:
        step_was_skipped = True

    callback.on_optimizer_step(None, None, None, optimizer=Overflowed())
    assert all(torch.equal(W, before[name]) for name, W in callback.targets.items())
    callback.on_optimizer_step(None, None, None, optimizer=object())
    assert not any(torch.equal(W, before[name]) for name, W in callback.targets.items())


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
def test_the_dual_takes_up_the_share_that_the_settings_say(dual_step, share, tiny_data, tmp_path):
    class Before(TrainerCallback):
        """Keeps U, W and Z around each iteration: before the callback's own turn, and after."""

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
