"""The plan of a run: its epochs, and the time they take, estimated from a few steps on this machine."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from nxm.compress.encode import Encoded
from nxm.compress.train import Course, device
from nxm.distillation.trainer import accepted
from nxm.durations import say_duration
from nxm.errors import UserError
from nxm.measure.timing import Timer, time_call
from nxm.training.trainer import LengthGroupedByEpoch

Batch = list[dict[str, Any]]  # rows

TIMED_STEPS = 4  # the first also warms up, and does not count
MARGIN = 1.25  # of the estimate, which a busy machine exceeds
METHOD = 1.1  # projections, the proximal step and the checkpoints, over a step without them
FIXED_SECONDS = 30.0  # exports, latency and the report


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step, of one forward pass over a batch, and of one over the held-out rows."""

    step: float
    forward: float
    held_out: float


@dataclass(frozen=True)
class Plan:
    """Epochs, the estimated seconds of each, and of everything else.

    dense_epochs: 0 where the model has its head already.
    """

    dense_epochs: int
    epochs: int
    dense_epoch_seconds: float
    epoch_seconds: float
    other_seconds: float

    @property
    def seconds(self) -> float:
        """The estimate for the whole run."""
        return self.dense_epochs * self.dense_epoch_seconds + self.epochs * self.epoch_seconds + self.other_seconds


def measure_speed(
    model: PreTrainedModel,
    data: Encoded,
    held_out: int,
    course: Course,
    timer: Timer = time_call,
) -> Speed:
    """Time a few optimizer steps of a copy of the model on training rows, and forward passes over the same batches.

    Both include the making of the batch, for which images are read.

    Args:
        held_out: number of held-out rows, each of which is scored a few times.
        timer: runs a call once and returns its seconds.
    """
    place, copied = device(), copy.deepcopy(model)
    torch.nn.Module.to(copied, place)
    copied.train()
    optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-9)
    batches = _batches(data, course)

    def answer(rows: Batch) -> Any:
        inputs = accepted(copied, data.collate(rows))
        return copied(**{name: tensor.to(place) for name, tensor in inputs.items()})

    def step(rows: Batch) -> None:
        answer(rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward(rows: Batch) -> None:
        answer(rows)

    step_seconds, forward_seconds = (_median(call, batches, place, timer) for call in (step, forward))
    return Speed(step_seconds, forward_seconds, forward_seconds * held_out / course.batch(len(data)))


def _batches(data: Encoded, course: Course) -> list[Batch]:
    batch = course.batch(len(data))
    order = list(LengthGroupedByEpoch(list(data.rows["length"]), batch, course.seed))
    starts = [(i % (len(order) // batch)) * batch for i in range(TIMED_STEPS)]
    return [[data.rows[i] for i in order[start : start + batch]] for start in starts]


def _median(call: Callable[[Batch], None], batches: Sequence[Batch], place: torch.device, timer: Timer) -> float:
    seconds = [timer(lambda rows=rows: call(rows), place) for rows in batches]  # type: ignore[misc]
    return statistics.median(seconds[1:])


def make_plan(
    speed: Speed,
    steps_per_epoch: int,
    dense_epochs: int,
    epochs: int,
    teacher: bool,
    budget: float | None,
) -> Plan:
    """Return the plan for as many epochs as are wanted, or as many as fit the budget.

    Args:
        dense_epochs, epochs: wanted; 0 dense epochs for a model that is fine-tuned already.
        teacher: a teacher answers every batch of the compression.
        budget: seconds; None: any.

    Raises:
        UserError: not even one epoch of each fits.
    """
    taught = speed.forward if teacher else 0.0
    whole = Plan(
        dense_epochs,
        epochs,
        MARGIN * steps_per_epoch * speed.step,
        MARGIN * steps_per_epoch * METHOD * (speed.step + taught),
        MARGIN * 6 * speed.held_out + FIXED_SECONDS,  # dense, compressed and exported, before and after saving
    )
    if budget is None:
        return whole
    plans = [
        replace(whole, dense_epochs=a, epochs=b)
        for a in range(min(1, dense_epochs), dense_epochs + 1)
        for b in range(1, epochs + 1)
    ]
    fitting = [plan for plan in plans if plan.seconds <= budget]
    if not fitting:
        least = min(plans, key=lambda plan: plan.seconds)
        raise UserError(
            f"budget: {say_duration(budget)} are not enough: one epoch of each training and the rest take about "
            f"{say_duration(least.seconds)} here; give that much, fewer training rows, or a smaller max_length"
        )
    return max(fitting, key=lambda plan: _share(plan, whole))


def _share(plan: Plan, whole: Plan) -> tuple[float, int]:
    shares = [plan.epochs / whole.epochs]
    if whole.dense_epochs:
        shares.append(plan.dense_epochs / whole.dense_epochs)
    return min(shares), plan.epochs + plan.dense_epochs


def after_dense(plan: Plan, dense_seconds: float, budget: float | None) -> Plan:
    """Return the plan with fewer epochs of compression, if the dense training took longer than estimated.

    Its epochs are taken to be as much slower. One epoch remains at least.
    """
    if budget is None or plan.dense_epochs == 0:
        return plan
    slower = max(1.0, dense_seconds / (plan.dense_epochs * plan.dense_epoch_seconds))
    seconds = plan.epoch_seconds * slower
    left = budget - dense_seconds - plan.other_seconds
    return replace(plan, epochs=max(1, min(plan.epochs, int(left / seconds))), epoch_seconds=seconds)
