"""The loss of knowledge distillation (the DistilBERT part, section 4.3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional as F

from nxm.config import listed
from nxm.distillation.settings import Distillation
from nxm.errors import UserError

IGNORED_LABEL = -100  # of tokens without a label, as in torch's cross entropy

_NO_LOGITS = "distillation.logits needs 'logits', or 'start_logits' and 'end_logits': set it to 0"


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
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    attention_mask: Tensor | None,
    settings: Distillation,
    labels: Tensor | None = None,
    problem_type: str | None = None,
    causal: bool = False,
) -> Tensor:
    """Return the weighted sum of the task's loss, the distance to the teacher's logits and to its hidden states.

    The distance to the logits depends on the task. KL below is T^2 KL(teacher / T || student / T) with the temperature
    T (Hinton et al., arXiv 1503.02531).

    - One class per example, `logits` (batch, classes): KL, the mean over the batch. The classes may be the choices of
      multiple choice.
    - Regression, `logits` (batch, outputs): the mean squared error to the teacher's scores.
    - Several labels per example, `logits` (batch, labels): each label is a choice between yes and no with the
      probabilities sigmoid(logit) and 1 - sigmoid(logit); KL, the mean over batch and labels.
    - One class per token, `logits` (batch, length, classes), as in token classification and language modelling: KL, the
      mean over the tokens with a label; if there are no labels of tokens, over the real tokens. With several processes
      the tokens are those of all of them together.
    - Question answering, `start_logits` and `end_logits` (batch, length): the mean of the two KLs over positions,
      without padding.

    The distance to the hidden states is the mean squared error over the real tokens (without `attention_mask`, as for
    images: over everything) of matching hidden states of equal shapes, the mean over the pairs. With several processes
    the tokens are those of all of them together.

    Args:
        student, teacher: model outputs with logits as above where `settings.logits` > 0, and `hidden_states` (layers +
            1 of (batch, length, width)) where `settings.hidden` > 0; the student's also with `loss`.
        attention_mask: (batch, length), 1 at real tokens; for multiple choice (batch, choices, length). None if the
            inputs are no tokens.
        labels: the batch's labels, which tell tokens with a label from those without (-100).
        problem_type: the config's: 'regression', 'single_label_classification', 'multi_label_classification', or None.
        causal: the logits at a token predict the next one, so that each belongs to the label one further.

    Returns: a scalar.

    Raises:
        UserError: the outputs lack what a term needs; logits or hidden states differ in shape; or the logits fit none
            of the tasks above.
    """
    if settings.task > 0 or student.get("loss") is not None:
        needs = "batches need labels (for question answering start_positions and end_positions), or set task to 0"
        loss = settings.task * _output(student, "loss", "student", needs)
    else:
        loss = 0.0
    if settings.logits > 0:
        T = settings.temperature
        loss = loss + settings.logits * _logits_loss(student, teacher, T, attention_mask, labels, problem_type, causal)
    if settings.hidden > 0:
        states = [
            _output(outputs, "hidden_states", whose, "set distillation.hidden to 0")
            for outputs, whose in ((student, "student"), (teacher, "teacher"))
        ]
        loss = loss + settings.hidden * _hidden_loss(*states, attention_mask)
    return loss


def _output(outputs: Mapping[str, Any], name: str, whose: str, remedy: str) -> Any:
    value = outputs.get(name)
    if value is None:
        raise UserError(f"the {whose}'s outputs have no '{name}', only {listed(outputs)}: {remedy}")
    return value


def _logits_loss(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    temperature: float,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    problem_type: str | None,
    causal: bool,
) -> Tensor:
    names = ("start_logits", "end_logits") if student.get("start_logits") is not None else ("logits",)
    pairs = [
        (_output(student, name, "student", _NO_LOGITS).float(), _output(teacher, name, "teacher", _NO_LOGITS).float())
        for name in names
    ]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise UserError(
                f"logits of shapes {tuple(ours.shape)} (student) and {tuple(theirs.shape)} (teacher) cannot be "
                "compared: give a teacher of the same task, with as many outputs"
            )
    if len(pairs) == 2:
        return torch.stack([_positions_loss(*pair, temperature, attention_mask) for pair in pairs]).mean()
    ours, theirs = pairs[0]
    if ours.ndim == 3:
        return _tokens_loss(ours, theirs, temperature, _labelled_tokens(ours, attention_mask, labels, causal))
    if ours.ndim != 2:
        raise UserError(
            f"logits of shape {tuple(ours.shape)} are of no task that can be distilled: (batch, classes) or "
            "(batch, length, classes) are; set distillation.logits to 0"
        )
    return _examples_loss(ours, theirs, temperature, labels, problem_type)


def _examples_loss(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None, problem_type: str | None
) -> Tensor:
    """Return the distance of logits for whole examples, (batch, outputs)."""
    if problem_type == "multi_label_classification":  # sigmoid(x) is the softmax of (x, 0)
        student, teacher = (torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(0, 1) for x in (student, teacher))
        return _kl(student, teacher, temperature, len(student))
    if problem_type == "regression" or student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    if labels is not None and labels.numel() != len(student):
        raise UserError(
            f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(student.shape)} are not one class per "
            "example: set config.problem_type to 'regression' or 'multi_label_classification' if it is one of these, "
            "or distillation.logits to 0"
        )
    return _kl(student, teacher, temperature, len(student))


def _labelled_tokens(logits: Tensor, attention_mask: Tensor | None, labels: Tensor | None, causal: bool) -> Tensor:
    """Return the mask of the tokens whose logits count, (batch, length) bool."""
    shape = logits.shape[:2]
    if labels is not None and labels.shape == shape:
        labelled = labels != IGNORED_LABEL
        return F.pad(labelled[:, 1:], (0, 1)) if causal else labelled
    if attention_mask is None or attention_mask.shape != shape:
        raise UserError(
            f"logits of shape {tuple(logits.shape)} have neither labels nor an attention_mask of shape {tuple(shape)}: "
            "set distillation.logits to 0"
        )
    return attention_mask.bool()


def _tokens_loss(student: Tensor, teacher: Tensor, temperature: float, counted: Tensor) -> Tensor:
    """Return KL over the classes, (batch, length, classes), the mean over the counted tokens."""
    return _kl(student[counted], teacher[counted], temperature, _over_processes(counted.sum().to(student.dtype)))


def _positions_loss(student: Tensor, teacher: Tensor, temperature: float, attention_mask: Tensor | None) -> Tensor:
    """Return KL over the positions, (batch, length), where padding has no probability."""
    if attention_mask is not None:
        if attention_mask.shape != student.shape:
            raise UserError(
                f"an attention_mask of shape {tuple(attention_mask.shape)} does not fit the positions' logits of shape "
                f"{tuple(student.shape)}: set distillation.logits to 0"
            )
        # finite after the division by the temperature too: -inf minus -inf is not a number
        lowest = torch.finfo(student.dtype).min * min(1.0, temperature)
        student, teacher = (x.masked_fill(attention_mask == 0, lowest) for x in (student, teacher))
    return _kl(student, teacher, temperature, len(student))


def _kl(student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | int) -> Tensor:
    """Return T^2 times the sum of the rows' KL(teacher / T || student / T) over the number of rows."""
    total = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    if isinstance(rows, Tensor):
        rows = torch.where(rows > 0, rows, torch.ones_like(rows))  # of a batch without labelled tokens the sum is 0
    return temperature**2 * (total / rows)


def _hidden_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    matching = matching_layers(len(student) - 1, len(teacher) - 1)
    pairs = [(student[i].float(), teacher[j].float()) for i, j in matching]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise UserError(
                f"hidden states of shapes {tuple(ours.shape)} (student) and {tuple(theirs.shape)} (teacher) cannot be "
                "compared: set distillation.hidden to 0"
            )
    if attention_mask is None:
        return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()
    mask = attention_mask.flatten(0, -2)  # of multiple choice, whose hidden states are (batch * choices, length, width)
    if any(mask.shape != ours.shape[:-1] for ours, _ in pairs):
        raise UserError(
            f"an attention_mask of shape {tuple(attention_mask.shape)} does not fit hidden states of shape "
            f"{tuple(student[0].shape)}: set distillation.hidden to 0"
        )
    real = mask.unsqueeze(-1).float()
    entries = _over_processes(real.sum()) * student[0].shape[-1]
    return torch.stack([((ours - theirs).square() * real).sum() / entries for ours, theirs in pairs]).mean()


def _over_processes(tokens: Tensor) -> Tensor:
    """Return the mean number of tokens per process, since gradients are averaged over processes."""
    return reduce(tokens, reduction="mean") if PartialState().num_processes > 1 else tokens
