"""The Trainer with a teacher: knowledge distillation (the DistilBERT part, section 4.3 of the paper).

It takes the sparsity callbacks like any Trainer: the dense model then teaches its own sparse version.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from nxm.distillation.loss import distillation_loss
from nxm.distillation.noise import replace_tokens
from nxm.distillation.settings import DISTILLATION, Distillation
from nxm.errors import UserError
from nxm.models.student import set_dropout_


class Teacher:
    """A fixed model in eval mode that gives the targets of distillation.

    Args:
        model: set to eval mode, without gradients.
        hidden_states: whether its outputs have the hidden states.
    """

    def __init__(self, model: PreTrainedModel, hidden_states: bool) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.hidden_states = hidden_states
        self.accepted = frozenset(inspect.signature(model.forward).parameters) - {"labels"}

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the outputs for a batch, from which the labels and the columns unknown to the model are left out."""
        columns = {name: tensor for name, tensor in inputs.items() if name in self.accepted}
        self.model.to(inputs["input_ids"].device)
        return self.model(**columns, output_hidden_states=self.hidden_states)


class DistillationTrainer(Trainer):
    """The Hugging Face Trainer with a teacher: it trains on `distillation_loss` and evaluates on the task's loss.

    Example: `DistillationTrainer(model, args, teacher=dense, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])`.

    Args:
        teacher: a model of the same task; set to eval mode and never changed. With `distillation.hidden` > 0 its hidden
            states have the student's width, and it has at least as many layers.
        distillation: the weights of the terms; default `DISTILLATION`.
        dropout: the student's dropout in training (`set_dropout_`), by default none; None: the model's own.
        noise: the share of tokens that are replaced in half of a batch's examples (`replace_tokens`), whose labels are
            then the teacher's answers; 0.0: none. It needs `processing_class` for its special tokens, and one label per
            example.
        args, kwargs: the Trainer's. Where teacher and student take different inputs (DistilBERT has no
            `token_type_ids`), set `remove_unused_columns=False`: each then gets the columns that it accepts.

    Raises:
        UserError: label smoothing or `compute_loss_func` is set too (the task's term is the model's own loss), or noise
            lacks what it needs.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation: Distillation = DISTILLATION,
        dropout: float | None = 0.0,
        noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise UserError(
                "with a teacher the task's loss is the model's own: no label smoothing, no compute_loss_func"
            )
        if noise > 0 and not hasattr(self.processing_class, "all_special_ids"):
            raise UserError(
                f"noise = {noise:g} must not replace special tokens: give processing_class=tokenizer, or noise=0"
            )
        if dropout is not None:
            set_dropout_(self.model, dropout)
        self.noise = noise
        self.loss_is_scaled_for_ga = False  # the loss is the mean over a batch
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
        columns = {name: tensor for name, tensor in inputs.items() if name in self.accepted}
        if not model.training:
            return super().compute_loss(model, columns, return_outputs)
        real = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        if self.noise > 0:
            special = torch.tensor(self.processing_class.all_special_ids, device=real.device)
            replaceable = real.bool() & ~torch.isin(inputs["input_ids"], special)
            input_ids, noisy = replace_tokens(inputs["input_ids"], replaceable, self.noise)
            inputs, columns = inputs | {"input_ids": input_ids}, columns | {"input_ids": input_ids}
        answers = self.teacher(inputs)
        if self.noise > 0:
            columns["labels"] = _answered(columns["labels"], answers["logits"], noisy)
        outputs = model(**columns, output_hidden_states=self.distillation.hidden > 0)
        loss = distillation_loss(outputs, answers, real, self.distillation)
        return (loss, outputs) if return_outputs else loss


def _answered(labels: Tensor, logits: Tensor, noisy: Tensor) -> Tensor:
    """Return the labels, (batch,), with the teacher's score or likeliest class for the noisy examples."""
    if labels.shape != logits.shape[:1]:
        raise UserError(f"noise needs one label per example, not labels of shape {tuple(labels.shape)}: set noise=0")
    answers = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(dim=1)
    return torch.where(noisy, answers.to(labels.dtype), labels)
