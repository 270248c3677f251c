"""Any order of training, stopping, interrupting, resuming, evaluating, saving and looking ends as one plain training.

The plain reference is a training of 16 steps from start to end. A few random orders run with every test;
`python -m pytest -m long tests/methods/test_any_order.py` runs them for minutes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from nxm import NM, SparsityCallback, find_targets
from nxm.methods import make_callback, settings_class
from tiny_training import WITH_SET, Stop, new_model, parity_data, trainer_for

TWO_OF_FOUR = NM(2, 4)
STEPS = 16
EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_evaluate", "on_save")
EXAMPLES = [(name, number) for name in WITH_SET for number in range(len(settings_class(name).examples))]


def make(name: str, number: int) -> SparsityCallback:
    values = settings_class(name).examples[number]
    return make_callback(name, TWO_OF_FOUR, settings_class(name).model_validate(values))


def train(
    model: nn.Module, folder: Path, callbacks: list[TrainerCallback], resume: bool, **changes: Any
) -> list[float]:
    """Train to the end or to an exception; return the evaluations' losses."""
    arguments = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "seed": 3}
    trainer = trainer_for(model, parity_data(), folder, callbacks, **(arguments | changes))
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=resume or None)
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


@cache
def reference(name: str, number: int) -> SimpleNamespace:
    with tempfile.TemporaryDirectory() as folder:
        model = new_model()
        losses = train(model, Path(folder), [make(name, number)], resume=False)
        saved = [load_file(Path(folder) / f"checkpoint-{step}" / "model.safetensors") for step in range(1, STEPS + 1)]
    assert len(losses) == STEPS
    return SimpleNamespace(losses=losses, saved=saved, final=dict(model.state_dict()))


class Look(TrainerCallback):
    """Runs the model in eval mode at some events, as users' callbacks do, and sets the mode back or not."""

    def __init__(self, events: set[str], put_back: bool) -> None:
        self.put_back = put_back
        for event in events:
            setattr(self, event, self.look)

    def look(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        model.eval()
        with torch.no_grad():
            model(torch.tensor([[7, 8, 9, 10]]))
        assert all(TWO_OF_FOUR.contains(W) for W in find_targets(model).values())
        if self.put_back:
            model.train()


class Interrupt(TrainerCallback):
    """Ctrl-C at an event, after some of them."""

    def __init__(self, event: str, after: int) -> None:
        self.left = after
        setattr(self, event, self.interrupt)

    def interrupt(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupted_forward(model: nn.Module, after: int | None) -> Iterator[None]:
    """Ctrl-C in a training pass, after some of them; None: never."""
    left = [after]

    def interrupt(module: nn.Module, inputs: Any) -> None:
        if module.training and left[0] is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    try:
        yield
    finally:
        hook.remove()


class AnyOrder(RuleBasedStateMachine):
    @initialize(
        example=st.sampled_from(EXAMPLES),
        events=st.sets(st.sampled_from(EVENTS)),
        put_back=st.booleans(),
        first=st.booleans(),
        save_steps=st.sampled_from([1, 3]),
    )
    def begin(self, example: tuple[str, int], events: set[str], put_back: bool, first: bool, save_steps: int) -> None:
        self.example, self.reference = example, reference(*example)
        self.looks, self.first, self.save_steps = (events, put_back), first, save_steps
        self.folder = Path(tempfile.mkdtemp())
        self.model = new_model()
        self.ours = make(*example)
        self.ended = False

    @property
    def last(self) -> int:
        """The step of the last whole checkpoint; 0: none."""
        return max((int(path.parent.name.partition("-")[2]) for path in self.folder.glob("*/nxm_state.*")), default=0)

    def train(self, *others: TrainerCallback, forward: int | None = None) -> None:
        if not self.last:
            self.model.load_state_dict(new_model().state_dict())
        begun, look = self.last, Look(*self.looks)
        for path in self.folder.glob("checkpoint-*"):  # one that a Ctrl-C cut is no checkpoint to resume from
            if int(path.name.partition("-")[2]) > begun:
                shutil.rmtree(path)
        callbacks = [look, self.ours] if self.first else [self.ours, look]
        with interrupted_forward(self.model, forward):
            changes = {"resume": begun > 0, "save_steps": self.save_steps}
            losses = train(self.model, self.folder, [*callbacks, *others], **changes)
        assert losses == self.reference.losses[: len(losses)]
        for step in range(begun + 1, self.last + 1):
            if not (self.folder / f"checkpoint-{step}").exists():
                continue
            saved = load_file(self.folder / f"checkpoint-{step}" / "model.safetensors")
            assert all(torch.equal(saved[name], W) for name, W in self.reference.saved[step - 1].items()), step

    @precondition(lambda self: not self.ended)
    @rule(steps=st.integers(1, 6))
    def train_some_steps(self, steps: int) -> None:
        self.train(Stop(min(self.last + steps, STEPS - 1)))

    @precondition(lambda self: not self.ended)
    @rule(event=st.sampled_from((*EVENTS, "on_prediction_step", "forward")), after=st.integers(1, 6))
    def interrupt(self, event: str, after: int) -> None:
        if event == "forward":
            self.train(forward=after)
        else:
            self.train(Interrupt(event, after))
        self.ended = self.last == STEPS

    @precondition(lambda self: not self.ended)
    @rule()
    def train_to_the_end(self) -> None:
        self.train()
        self.ended = True
        assert all(torch.equal(W, self.reference.final[name]) for name, W in self.model.state_dict().items())

    @rule()
    def begin_anew_in_another_process(self) -> None:
        """The next training resumes there from the last checkpoint; what has ended is read from its folder."""
        self.ours = make(*self.example)
        self.model = new_model()
        self.ended = False

    @rule(predict=st.booleans())
    def evaluate(self, predict: bool) -> None:
        trainer = trainer_for(self.model, parity_data(), self.folder, [self.ours])
        before = {name: W.clone() for name, W in self.model.state_dict().items()}
        trainer.predict(parity_data()) if predict else trainer.evaluate()
        assert all(torch.equal(W, before[name]) for name, W in self.model.state_dict().items())

    @rule()
    def save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors")
        assert all(torch.equal(W, saved[name]) for name, W in self.model.state_dict().items())

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            if not self.ended:
                self.train_to_the_end()
            shutil.rmtree(self.folder)


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@pytest.mark.situation("training", "any order of train, stop, Ctrl-C, resume, evaluate, predict and save", "works")
def test_any_order_ends_as_a_plain_training():
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=6, stateful_step_count=4, derandomize=True, **COMMON)
    )


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_order_for_minutes():
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=150, stateful_step_count=8, **COMMON))
