"""Students and knowledge distillation (the DistilBERT part, section 4.3 of the paper).

`DistillationTrainer` takes the sparsity callbacks as any Trainer does: the dense model then teaches its sparse self.
"""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from nxm.errors import UserError
from nxm.recipes import BEST
from nxm.settings import Distillation
from nxm.targets import find_stack

# What the study's students are trained with: half the labels, half the teacher's answers, and its hidden states.
DISTILLATION = Distillation.model_validate(BEST["distillation"])
NOISY_SHARE = 0.5  # of a batch's examples have tokens replaced, where `noise` is above 0


def every_other_layer(teacher: PreTrainedModel) -> PreTrainedModel:
    """Make a student as DistilBERT was made (Sanh et al., arXiv 1910.01108): the teacher's layers 0, 2, 4, ...

    Everything outside the stack of blocks (embeddings, pooler, classifier) is copied. Returns a model of the same class
    with half the layers, rounded up. Raises ValueError for a teacher of one layer.
    """
    prefix, stack = find_stack(teacher)
    if len(stack) < 2:
        raise UserError(f"a teacher of {len(stack)} layer has no other layer to drop")
    kept = list(range(0, len(stack), 2))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    student = type(teacher)(config)
    block = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.(.*)$")
    weights = {}
    for name, tensor in teacher.state_dict().items():
        match = block.match(name)
        if match is None:
            weights[name] = tensor
        elif int(match[1]) in kept:
            weights[f"{prefix}.{kept.index(int(match[1]))}.{match[2]}"] = tensor
    student.load_state_dict(weights)
    return student.to(dtype=teacher.dtype)


def matching_layers(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Pairs (student, teacher) of hidden states, index 0 being the embeddings' output.

    Spread evenly, the last on the last: 3 of 6 layers gives (0, 0), (1, 2), (2, 4), (3, 6). Raises ValueError when the
    teacher has fewer layers than the student.
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
    """The weighted sum of the task's loss, the distance to the teacher's logits and to its hidden states.

    - logits, classes: T^2 KL(teacher / T || student / T) (Hinton et al., arXiv 1503.02531), the mean over the batch;
      a single output (regression): the squared error to the teacher's score.
    - hidden: mean squared error over real tokens of matching hidden states, the mean over the pairs. It needs equal
      widths. With several processes the tokens are those of all of them together.

    Args:
        student, teacher: model outputs with `logits` (batch, classes), `hidden_states` (layers + 1 of (batch, length,
            width)) where `settings.hidden` > 0; the student's also with `loss`.
        attention_mask: (batch, length), 1 at real tokens.

    Returns a scalar. Raises ValueError on unequal widths.
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
    if PartialState().num_processes > 1:  # whose gradients are averaged: each has its part of the batch's tokens
        tokens = reduce(tokens, reduction="mean")
    entries = tokens * student[0].shape[-1]
    pairs = matching_layers(len(student) - 1, len(teacher) - 1)
    errors = [((student[i] - teacher[j]).square() * real).sum() / entries for i, j in pairs]
    return torch.stack(errors).mean()


def set_dropout_(model: nn.Module, p: float) -> None:
    """Set every dropout of a model to p, in place. Its config, and so what is loaded from it later, keeps its own.

    A student that is to match its teacher's hidden states has to hit them with its own dropout in between, while the
    teacher answers without any.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def replace_tokens(input_ids: Tensor, replaceable: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Sentences that nobody wrote, for a teacher to answer: tokens replaced by others of the same batch.

    (TinyBERT replaces words by a language model's guesses, arXiv 1909.10351; drawing them from the batch needs none.)

    Args:
        input_ids: (batch, length) int64.
        replaceable: (batch, length) bool: neither padding nor special tokens.
        share: of the tokens of a chosen example; an example is chosen with probability `NOISY_SHARE`.

    Returns: the new input_ids, and which examples were chosen, (batch,) bool. Draws from torch's global generator.
    """
    pool = input_ids[replaceable]
    noisy = torch.rand(len(input_ids), device=input_ids.device) < NOISY_SHARE
    if not len(pool):
        return input_ids, noisy
    drawn = pool[torch.randint(len(pool), input_ids.shape, device=input_ids.device)]
    hit = replaceable & noisy[:, None] & (torch.rand(input_ids.shape, device=input_ids.device) < share)
    return torch.where(hit, drawn, input_ids), noisy


class Teacher:
    """A fixed model that says what it would answer. It keeps its own copy of the weights, in eval mode."""

    def __init__(self, model: PreTrainedModel, hidden_states: bool) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.hidden_states = hidden_states
        self.accepted = frozenset(inspect.signature(model.forward).parameters) - {"labels"}

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """The outputs for a batch; what the model does not take, and the labels, are left out."""
        own = {name: tensor for name, tensor in inputs.items() if name in self.accepted}
        self.model.to(inputs["input_ids"].device)
        return self.model(**own, output_hidden_states=self.hidden_states)


class DistillationTrainer(Trainer):
    """The Hugging Face Trainer with a teacher: trains on `distillation_loss`, evaluates on the task's own loss.

    Example: `DistillationTrainer(model, args, teacher=dense, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])`.

    Args:
        teacher: a model of the same task; set to eval mode and never changed. With `distillation.hidden` > 0 its hidden
            states are as wide as the student's, and it has at least as many layers.
        distillation: how much each term weighs; default `DISTILLATION`.
        dropout: the student's while it trains (`set_dropout_`); None: as it comes.
        noise: the share of tokens that are replaced in half of a batch's examples (`replace_tokens`), for which the
            teacher's answer also stands in the label's place; 0.0: none. It needs `processing_class`, which knows the
            special tokens, and one label an example.
        args, kwargs: the Trainer's. Where teacher and student take different inputs (DistilBERT knows no
            `token_type_ids`), set `remove_unused_columns=False`: each then gets what it knows.

    Raises:
        UserError: label smoothing or a loss of one's own is asked for too (the task's term is the model's own loss), or
            noise without what it needs.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation: Distillation = DISTILLATION,
        dropout: float | None = BEST["dropout"],
        noise: float = BEST["noise"],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise UserError(
                "with a teacher the task's loss is the model's own: no label smoothing, no compute_loss_func"
            )
        if noise > 0 and not hasattr(self.processing_class, "all_special_ids"):
            raise UserError(
                f"noise = {noise:g} must leave special tokens alone: give processing_class=tokenizer, or noise=0"
            )
        if dropout is not None:
            set_dropout_(self.model, dropout)
        self.noise = noise
        self.loss_is_scaled_for_ga = False  # it is the mean over a batch
        self.teacher = Teacher(teacher, distillation.hidden > 0)
        self.distillation = distillation
        self.accepted = frozenset(inspect.signature(self.model.forward).parameters)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        own = {name: tensor for name, tensor in inputs.items() if name in self.accepted}
        if not model.training:
            return super().compute_loss(model, own, return_outputs)
        real = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        if self.noise > 0:
            special = torch.tensor(self.processing_class.all_special_ids, device=real.device)
            replaceable = real.bool() & ~torch.isin(inputs["input_ids"], special)
            input_ids, noisy = replace_tokens(inputs["input_ids"], replaceable, self.noise)
            inputs, own = inputs | {"input_ids": input_ids}, own | {"input_ids": input_ids}
        answers = self.teacher(inputs)
        if self.noise > 0:
            own["labels"] = _answered(own["labels"], answers["logits"], noisy)
        outputs = model(**own, output_hidden_states=self.distillation.hidden > 0)
        loss = distillation_loss(outputs, answers, real, self.distillation)
        return (loss, outputs) if return_outputs else loss


def _answered(labels: Tensor, logits: Tensor, noisy: Tensor) -> Tensor:
    """The labels, (batch,), with the teacher's answers for the noisy examples: its score, or its likeliest class."""
    if labels.shape != logits.shape[:1]:
        raise UserError(
            f"noise is for one label an example, not for labels of shape {tuple(labels.shape)}: set noise=0"
        )
    answers = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(dim=1)
    return torch.where(noisy, answers.to(labels.dtype), labels)
