"""The loss of a model over fixed batches, to compare versions of it: sensitivities are measured by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm.distillation.loss import distillation_loss
from nxm.distillation.settings import Distillation
from nxm.distillation.trainer import Teacher, accepted, predicts_next_token, problem_type_of
from nxm.errors import UserError

Batch = Mapping[str, Any]


def loss_on(
    batches: Iterable[Batch], teacher: PreTrainedModel | None = None, temperature: float = 1.0
) -> Callable[[nn.Module], float]:
    """Return the function that gives a model's loss over fixed batches, the mean over their examples.

    With a teacher it is the distance to its logits (KL, or the squared error for regression, see
    `nxm.distillation.loss.distillation_loss`), else the model's own loss on the labels.

    The model must be in eval mode for the same value at every call. Its columns are moved to its device.

    Args:
        batches: the model's inputs with tensors, as a DataLoader yields them, with labels where there is no teacher.
        teacher: a model of the same task with as many outputs; set to eval mode and asked once.
        temperature: of KL.

    Raises:
        UserError: there is no batch. When the function is called: the outputs have no loss or fit no task.
    """
    fixed = [dict(batch) for batch in batches]
    if not fixed:
        raise UserError("a loss needs at least one batch of examples, got none")
    distance = Distillation(task=0.0, logits=1.0, hidden=0.0, temperature=temperature)
    taught = Teacher(teacher, hidden_states=False) if teacher is not None else None
    answers: dict[int, Mapping[str, Any]] = {}

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        device = next(model.parameters()).device
        total = examples = 0.0
        for place, batch in enumerate(fixed):
            inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            outputs = model(**accepted(model, inputs))
            if taught is None or teacher is None:
                value = outputs.get("loss") if isinstance(outputs, Mapping) else None
                if value is None:
                    raise UserError(
                        f"{type(model).__name__} gives no loss on these batches: add their labels, or give a teacher"
                    )
            else:
                if place not in answers:
                    answers[place] = taught(inputs)
                labels = inputs.get("labels")
                value = distillation_loss(
                    outputs,
                    answers[place],
                    inputs.get("attention_mask"),
                    distance,
                    labels=labels if isinstance(labels, Tensor) else None,
                    problem_type=problem_type_of(model, teacher),
                    causal=predicts_next_token(model),
                )
            count = next(len(column) for column in batch.values() if isinstance(column, Tensor))
            total += float(value) * count
            examples += count
        return total / examples

    return loss
