"""The loss of knowledge distillation (the DistilBERT part, section 4.3 of the paper)."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional as F

from nxm.distillation.settings import Distillation
from nxm.errors import UserError


def matching_layers(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Return pairs (student, teacher) of hidden states, where index 0 is the output of the embeddings.

    They are spread evenly, and the last is paired with the last: 3 of 6 layers gives (0, 0), (1, 2), (2, 4), (3, 6).

    Raises:
        UserError: the teacher has fewer layers than the student.
    """
    if teacher_layers < student_layers:
        raise UserError(f"a teacher of {teacher_layers} layers cannot guide a student of {student_layers}")
    return [(i, i * teacher_layers // student_layers) for i in range(student_layers + 1)]


def distillation_loss(
    student: dict[str, Tensor | tuple[Tensor, ...]],
    teacher: dict[str, Tensor | tuple[Tensor, ...]],
    attention_mask: Tensor,
    settings: Distillation,
) -> Tensor:
    """Return the weighted sum of the task's loss, the distance to the teacher's logits and to its hidden states.

    - logits: for classes T^2 KL(teacher / T || student / T) (Hinton et al., arXiv 1503.02531), the mean over the batch;
      for a single output (regression) the squared error to the teacher's score.
    - hidden: mean squared error over the real tokens of matching hidden states, the mean over the pairs, which need
      equal widths. With several processes the tokens are those of all of them together.

    Args:
        student, teacher: model outputs with `logits` (batch, classes) and, where `settings.hidden` > 0, `hidden_states`
            (layers + 1 of (batch, length, width)); the student's also with `loss`.
        attention_mask: (batch, length), 1 at real tokens.

    Returns: a scalar.

    Raises:
        UserError: the widths differ.
    """
    loss = settings.task * student["loss"]
    if settings.logits > 0:
        loss = loss + settings.logits * _logits_loss(student["logits"], teacher["logits"], settings.temperature)
    if settings.hidden > 0:
        loss = loss + settings.hidden * _hidden_loss(student["hidden_states"], teacher["hidden_states"], attention_mask)
    return loss


def _logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def _hidden_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], attention_mask: Tensor) -> Tensor:
    if student[0].shape[-1] != teacher[0].shape[-1]:
        raise UserError(
            f"hidden states of widths {student[0].shape[-1]} (student) and {teacher[0].shape[-1]} (teacher) cannot be "
            "compared: set distillation.hidden to 0"
        )
    real = attention_mask.unsqueeze(-1).to(student[0].dtype)
    tokens = real.sum()
    if PartialState().num_processes > 1:  # gradients are averaged over processes, each with its own number of tokens
        tokens = reduce(tokens, reduction="mean")
    entries = tokens * student[0].shape[-1]
    pairs = matching_layers(len(student) - 1, len(teacher) - 1)
    errors = [((student[i] - teacher[j]).square() * real).sum() / entries for i, j in pairs]
    return torch.stack(errors).mean()
