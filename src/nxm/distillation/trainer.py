"""The Trainer with a teacher: knowledge distillation (the DistilBERT part, section 4.3 of the paper).

It takes the sparsity callbacks like any Trainer: the dense model then teaches its own sparse version.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import find_labels

from nxm.distillation.loss import distillation_loss
from nxm.distillation.noise import replace_tokens
from nxm.distillation.settings import DISTILLATION, Distillation
from nxm.errors import UserError
from nxm.models.student import dropout_at


class Teacher:
    """A fixed model in eval mode that gives the targets of distillation.

    Args:
        model: set to eval mode, without gradients.
        hidden_states: whether its outputs have the hidden states.
    """

    def __init__(self, model: PreTrainedModel, hidden_states: bool) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.hidden_states = hidden_states
        self.labels = frozenset(find_labels(type(_base(model))))

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs for a batch, from which the labels and the columns unknown to the model are left out.

        A sequence-to-sequence model reads the labels as its decoder's inputs, unless the batch has `decoder_input_ids`.
        """
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None and "decoder_input_ids" not in inputs and "labels" in inputs:
            inputs = {**inputs, "decoder_input_ids": shift(labels=inputs["labels"])}
        columns = {name: value for name, value in accepted(self.model, inputs).items() if name not in self.labels}
        self.model.to(next(value.device for value in inputs.values() if isinstance(value, Tensor)))
        return _answer(self.model, columns, self.hidden_states, "teacher")


class DistillationTrainer(Trainer):
    """The Hugging Face Trainer with a teacher: it trains on `distillation_loss` and evaluates on the task's loss.

    Example: `DistillationTrainer(model, args, teacher=dense, train_dataset=data, callbacks=[AdmmCallback(NM(2, 4))])`.

    `distillation_loss` lists the tasks: classification of examples and of tokens, with one label or several,
    regression, language modelling, question answering, multiple choice. The inputs may be images. An encoder-decoder
    has no single stack of hidden states: set `distillation.hidden` to 0.

    Args:
        teacher: a model of the same task, with as many outputs as the student and without shared parameters; set to
            eval mode and never changed. With `distillation.hidden` > 0 its hidden states have the student's width, and
            it has at least as many layers.
        distillation: the weights of the terms; default `DISTILLATION`.
        dropout: the student's dropout during its training steps (`dropout_at`), by default none; None: the model's own.
            A warning says if two passes of a student differ in spite of 0.
        noise: the share of tokens that are replaced in half of a batch's examples (`replace_tokens`), whose labels are
            then the teacher's answers; 0.0: none. It needs `processing_class` for its special tokens, and one label per
            example.
        args, kwargs: the Trainer's. Where teacher and student take different inputs (DistilBERT has no
            `token_type_ids`), set `remove_unused_columns=False`: each then gets the columns that it accepts.

    Raises:
        UserError: the teacher shares parameters with the student; label smoothing or `compute_loss_func` is set too
            (the task's term is the model's own loss); or noise lacks what it needs. At the first batch: the outputs of
            the two are of no task above or do not fit each other.
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
        _check_apart(self.model, teacher)
        self.noise = noise
        self.dropout = dropout
        self.loss_is_scaled_for_ga = False  # the loss is the mean over a batch
        self.teacher = Teacher(teacher, distillation.hidden > 0)
        self.distillation = distillation
        self._first_batch = True

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        # forward and backward pass, since gradient checkpointing repeats the one within the other; with `model_init`
        # self.model is not the model that __init__ saw
        with dropout_at(self.model, self.dropout):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, accepted(self.model, inputs), return_outputs)
        real = inputs.get("attention_mask")
        if real is None and "input_ids" in inputs:
            real = torch.ones_like(inputs["input_ids"])
        if self.noise > 0:
            inputs, noisy = self._with_noise(inputs, real)
        first, self._first_batch = self._first_batch, False
        if first:
            _check_vocabulary(self.teacher.model, inputs)
        answers = self.teacher(inputs)
        if self.noise > 0:
            inputs |= {"labels": _answered(inputs["labels"], answers, noisy)}
        columns, hidden = accepted(self.model, inputs), self.distillation.hidden > 0
        before = _random_state(self.args.device) if first and self.dropout == 0 else None
        outputs = _answer(model, columns, hidden, "student")
        # hooks see a second pass too, so one is made only if the first has drawn random numbers
        if before is not None and not torch.equal(before, _random_state(self.args.device)):
            self._warn_if_random(model, columns, outputs)
        labels = inputs.get("labels")
        loss = distillation_loss(
            outputs,
            answers,
            real,
            self.distillation,
            labels=labels if isinstance(labels, Tensor) else None,
            problem_type=problem_type_of(self.model, self.teacher.model),
            causal=predicts_next_token(self.model),
        )
        return (loss, outputs) if return_outputs else loss

    def _with_noise(self, inputs: dict[str, Any], real: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """Return the batch with other tokens, and the mask of the changed examples, (batch,) bool."""
        ids, labels = inputs.get("input_ids"), inputs.get("labels")
        if ids is None or ids.ndim != 2 or labels is None or labels.shape != ids.shape[:1]:
            shapes = [None if column is None else tuple(column.shape) for column in (ids, labels)]
            raise UserError(
                f"noise needs input_ids (batch, length) and one label per example, not input_ids of shape {shapes[0]} "
                f"and labels of shape {shapes[1]}: set noise=0"
            )
        special = torch.tensor(self.processing_class.all_special_ids, device=ids.device)
        changed, noisy = replace_tokens(ids, real.bool() & ~torch.isin(ids, special), self.noise)
        return inputs | {"input_ids": changed}, noisy

    def _warn_if_random(self, model: nn.Module, columns: dict[str, Any], outputs: Mapping[str, Any]) -> None:
        """Warn if a second training pass gives other outputs than the first."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            again = _answer(model, columns, self.distillation.hidden > 0, "student")
        name = next(name for name in ("logits", "start_logits", "hidden_states", "loss") if name in outputs)
        one, other = (found[name][-1] if name == "hidden_states" else found[name] for found in (outputs, again))
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-5):
            warnings.warn(
                f"dropout = 0, yet two training passes of {type(self.model).__name__} differ by up to "
                f"{(one - other).abs().max().item():.2g}: it draws random numbers that nxm does not know as dropout "
                "(such as masked inputs or the noise of a router), and its teacher does not",
                stacklevel=2,
            )


def accepted(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a batch that a model's forward pass names; all if it names none (`**batch`)."""
    parameters = inspect.signature(_base(model).forward).parameters.values()
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    return {name: value for name, value in inputs.items() if not named or name in named}


def _base(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT's adapters, whose own forward pass does not name every column."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher whose parameters are also the student's: training would change it, or freezing it the student.

    Raises:
        UserError: they share one.
    """
    own = {parameter.data_ptr() for parameter in student.parameters()}
    shared = [name for name, parameter in teacher.named_parameters() if parameter.data_ptr() in own - {0}]
    if shared:
        raise UserError(
            f"the teacher shares {len(shared)} parameters with the student, such as {shared[0]}, but must not change "
            "while the student trains: give copy.deepcopy(teacher)"
        )


def _check_vocabulary(teacher: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a batch with a token that the teacher does not know; on a GPU torch's own error stops the process.

    Raises:
        UserError: there is one.
    """
    known = getattr(getattr(teacher, "config", None), "vocab_size", None)
    if known is not None and "input_ids" in inputs and (highest := inputs["input_ids"].max().item()) >= known:
        raise UserError(
            f"the batch has a token {highest}, but the teacher's vocabulary has {known}: teacher and student must "
            "share a tokenizer"
        )


def _answer(model: nn.Module, columns: dict[str, Any], hidden_states: bool, whose: str) -> Mapping[str, Any]:
    outputs = model(**columns, **({"output_hidden_states": True} if hidden_states else {}))
    if not isinstance(outputs, Mapping):
        raise UserError(
            f"the {whose} returns a {type(outputs).__name__}, but distillation needs named outputs: return a dict or a "
            "transformers ModelOutput (config.return_dict = True)"
        )
    return outputs


def problem_type_of(student: nn.Module, teacher: nn.Module) -> str | None:
    """Return the config's problem_type. Transformers infers one that is missing at the first batch with labels."""
    own, other = (getattr(getattr(model, "config", None), "problem_type", None) for model in (student, teacher))
    if own and other and own != other:
        raise UserError(f"the student's config has problem_type '{own}', the teacher's '{other}': they must be equal")
    return own or other


def predicts_next_token(model: nn.Module) -> bool:
    """Return True for a causal language model, whose logits at a token belong to the next label."""
    names = {kind.__name__ for kind in type(_base(model)).__mro__}
    causal = {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if isinstance(name, str)}
    return bool(names & (causal - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())))


def _random_state(device: torch.device) -> Tensor:
    """Return the states of the random number generators that a forward pass on the device may use, uint8."""
    cpu = torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else cpu


def _answered(labels: Tensor, teacher: Mapping[str, Any], noisy: Tensor) -> Tensor:
    """Return the labels, (batch,), with the teacher's score or likeliest class for the noisy examples."""
    logits = teacher.get("logits")
    if logits is None or logits.ndim != 2:
        raise UserError(
            "noise needs a teacher with logits of shape (batch, classes), which label the examples: set noise=0"
        )
    answers = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(dim=1)
    return torch.where(noisy, answers.to(labels.dtype), labels)
