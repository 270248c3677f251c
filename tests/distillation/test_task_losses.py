"""Distillation of every kind of task: the right distance to the teacher's answers, or a refusal at the first batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    TrainingArguments,
)

from nxm import Distillation, DistillationTrainer, UserError
from nxm.distillation.loss import distillation_loss
from tiny_training import tiny_config

LOGITS = Distillation(task=0.0, logits=1.0, hidden=0.0, temperature=2.0)
HIDDEN = Distillation(task=0.0, logits=0.0, hidden=1.0, temperature=2.0)
BOTH = Distillation(task=0.0, logits=1.0, hidden=1.0, temperature=2.0)
T = 2.0
STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0, "vocab_size": 60, "init_std": 0.5},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 2},
}


def bert(kind: type[PreTrainedModel], seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return kind(tiny_config(**({"num_labels": 3, "initializer_range": 0.3} | changes)))


def other(name: str, config: str, seed: int = 0, **values: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return getattr(transformers, name)(getattr(transformers, config)(**values))


def gpt2(seed: int = 0) -> PreTrainedModel:
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    return other("GPT2LMHeadModel", "GPT2Config", seed, **sizes, **STILL)


def t5(seed: int = 0) -> PreTrainedModel:
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    values = sizes | {"dropout_rate": 0.0, "decoder_start_token_id": 0, "initializer_factor": 1.0}
    return other("T5ForConditionalGeneration", "T5Config", seed, **values)


def images(name: str, seed: int = 0) -> PreTrainedModel:
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_labels": 3, "initializer_range": 0.3}
    if name == "ViT":
        sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    else:
        sizes |= {"patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
        sizes |= {"drop_path_rate": 0.0}
    return other(f"{name}ForImageClassification", f"{name}Config", seed, **sizes)


def tokens(*shape: int) -> Tensor:
    return torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(0))


def batch(**columns: Tensor) -> dict[str, Tensor]:
    ids = tokens(4, 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **columns}


def padded(inputs: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return a batch with n more tokens of padding."""
    fill = {"labels": -100}
    return {
        name: F.pad(value, (0, n), value=fill.get(name, 0)) if value.shape[-1] == 6 else value
        for name, value in inputs.items()
    }


def trainer_for(
    tmp_path, student: nn.Module, teacher: nn.Module, settings: Distillation = BOTH, **options: Any
) -> DistillationTrainer:
    args = TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True)
    return DistillationTrainer(student.train(), args, teacher=teacher, distillation=settings, **options)


# Task -> the model by seed, a batch, the settings
MULTI = {"problem_type": "multi_label_classification"}
ANSWERS = torch.tensor([1, 2, 0, 3])
TASKS = {
    "token classification": (
        lambda seed: bert(BertForTokenClassification, seed),
        lambda: batch(labels=tokens(4, 6) % 3),
        BOTH,
    ),
    "masked LM": (lambda seed: bert(BertForMaskedLM, seed), lambda: batch(labels=tokens(4, 6)), BOTH),
    "causal LM": (gpt2, lambda: batch(labels=tokens(4, 6)), BOTH),
    "question answering": (
        lambda seed: bert(BertForQuestionAnswering, seed, num_labels=2),
        lambda: batch(start_positions=ANSWERS, end_positions=ANSWERS + 1),
        BOTH,
    ),
    "several labels": (
        lambda seed: bert(BertForSequenceClassification, seed, **MULTI),
        lambda: batch(labels=(tokens(4, 3) % 2).float()),
        BOTH,
    ),
    "several labels, inferred": (
        lambda seed: bert(BertForSequenceClassification, seed),
        lambda: batch(labels=(tokens(4, 3) % 2).float()),
        BOTH,
    ),
    "several scores": (
        lambda seed: bert(BertForSequenceClassification, seed, problem_type="regression"),
        lambda: batch(labels=tokens(4, 3).float()),
        BOTH,
    ),
    "multiple choice": (
        lambda seed: bert(BertForMultipleChoice, seed),
        lambda: {
            "input_ids": tokens(4, 3, 6),
            "attention_mask": torch.ones(4, 3, 6, dtype=int),
            "labels": torch.tensor([0, 1, 2, 0]),
        },
        BOTH,
    ),
    "ViT": (
        lambda seed: images("ViT", seed),
        lambda: {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])},
        BOTH,
    ),
    "Swin": (
        lambda seed: images("Swin", seed),
        lambda: {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])},
        BOTH,
    ),
    "T5": (t5, lambda: batch(labels=tokens(4, 5)), LOGITS),
    "BART": (
        lambda seed: other("BartForSequenceClassification", "BartConfig", seed, **BART),
        lambda: batch(labels=torch.tensor([0, 1, 2, 0])) | {"input_ids": F.pad(tokens(4, 5), (0, 1), value=2)},
        LOGITS,
    ),
}


@pytest.mark.situation("distillation", "token classification", "works")
@pytest.mark.situation("distillation", "masked language model", "works")
@pytest.mark.situation("distillation", "causal language model", "works")
@pytest.mark.situation("distillation", "question answering", "works")
@pytest.mark.situation("distillation", "several labels per example", "works")
@pytest.mark.situation("distillation", "regression with several outputs", "works")
@pytest.mark.situation("distillation", "multiple choice", "works")
@pytest.mark.situation("distillation", "image classification (ViT, Swin)", "works")
@pytest.mark.situation("distillation", "sequence-to-sequence (T5, BART) by the logits alone", "works")
@pytest.mark.parametrize("task", TASKS)
def test_a_student_like_its_teacher_is_at_no_distance_and_another_learns_from_it(tmp_path, task):
    make, inputs, settings = TASKS[task]
    teacher, given = make(1), inputs()
    student = make(1)
    equal = trainer_for(tmp_path, student, teacher, settings).compute_loss(student, given)
    assert equal.item() == pytest.approx(0.0, abs=1e-5)
    student = make(0)
    trainer = trainer_for(tmp_path, student, teacher, settings)
    before = trainer.compute_loss(student, given)
    assert before > 1e-3
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(30):
        loss = trainer.compute_loss(student, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * before


@pytest.mark.situation("distillation", "token classification with padding", "works")
@pytest.mark.situation("distillation", "language models with padding", "works")
@pytest.mark.situation("distillation", "question answering with padding", "works")
@pytest.mark.parametrize("settings", [LOGITS, HIDDEN])
@pytest.mark.parametrize("task", ["token classification", "masked LM", "causal LM", "question answering"])
def test_padding_costs_nothing(tmp_path, task, settings):
    make, inputs, _ = TASKS[task]
    student = make(0)
    trainer = trainer_for(tmp_path, student, make(1), settings)
    with torch.no_grad():
        found = [trainer.compute_loss(student, padded(inputs(), n)).item() for n in (0, 6, 24)]
    assert found[0] > 1e-3
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_tokens_without_labels_count_by_the_attention_mask(tmp_path):
    student, teacher = (bert(BertForTokenClassification, seed) for seed in (0, 1))
    trainer = trainer_for(tmp_path, student, teacher, LOGITS)
    with torch.no_grad():
        found = [trainer.compute_loss(student, padded(batch(), n)).item() for n in (0, 6)]
        labelled = trainer.compute_loss(student, batch(labels=tokens(4, 6) % 3)).item()
    assert found == pytest.approx([labelled] * 2, rel=1e-4)


def random_logits(*shape: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    return {"logits": student}, {"logits": teacher}


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL of each row, by its definition."""
    p, q = F.softmax(teacher / T, -1), F.softmax(student / T, -1)
    return T**2 * (p * (p / q).log()).sum(-1)


def test_the_loss_of_tokens_is_the_mean_over_those_with_a_label():
    student, teacher = random_logits(2, 4, 3)
    labels = torch.tensor([[0, 2, -100, 1], [1, -100, -100, -100]])
    rows = kl(student["logits"], teacher["logits"])
    mask = torch.ones(2, 4)
    found = distillation_loss(student, teacher, mask, LOGITS, labels=labels)
    torch.testing.assert_close(found, rows[labels != -100].mean())
    found = distillation_loss(student, teacher, mask, LOGITS, labels=labels, causal=True)
    torch.testing.assert_close(found, torch.stack([rows[0, 0], rows[0, 2]]).mean())


def test_the_loss_of_several_labels_is_of_each_labels_yes_and_no():
    student, teacher = random_logits(5, 3)
    s, t = (torch.sigmoid(x["logits"].double() / T) for x in (student, teacher))
    expected = T**2 * (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).mean()
    found = distillation_loss(student, teacher, None, LOGITS, problem_type="multi_label_classification")
    torch.testing.assert_close(found, expected.float())


def test_the_loss_of_several_scores_is_the_squared_error():
    student, teacher = random_logits(5, 3)
    found = distillation_loss(student, teacher, None, LOGITS, problem_type="regression")
    torch.testing.assert_close(found, (student["logits"] - teacher["logits"]).square().mean())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_loss_of_positions_is_of_the_real_ones(temperature):
    logits = [random_logits(2, 6), random_logits(2, 6)]
    logits[1][0]["logits"] += 1.0
    student, teacher = (
        {"start_logits": logits[0][i]["logits"], "end_logits": logits[1][i]["logits"].flip(1)} for i in (0, 1)
    )
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    rows = []
    for name in student:
        for i, length in enumerate((4, 2)):
            s, t = (x[name][i, :length] / temperature for x in (student, teacher))
            p, q = F.softmax(t, -1), F.softmax(s, -1)
            rows.append(temperature**2 * (p * (p / q).log()).sum())
    settings = Distillation(task=0.0, logits=1.0, hidden=0.0, temperature=temperature)
    torch.testing.assert_close(distillation_loss(student, teacher, mask, settings), torch.stack(rows).mean())


def test_without_a_mask_hidden_states_count_as_a_whole():
    generator = torch.Generator().manual_seed(0)
    student, teacher = ({"hidden_states": tuple(torch.randn(3, 2, 5, 4, generator=generator))} for _ in range(2))
    expected = torch.stack(
        [F.mse_loss(*pair) for pair in zip(student["hidden_states"], teacher["hidden_states"], strict=True)]
    ).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, None, HIDDEN), expected)


@pytest.mark.situation("distillation", "classification with one class per example", "works")
@pytest.mark.situation("distillation", "regression with one output", "works")
@pytest.mark.parametrize("problem_type", [None, "declared"])
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.3])
def test_one_class_or_score_per_example_costs_what_it_did_in_the_studies(classes, temperature, problem_type):
    """To the bit: the committed results depend on it."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    ours, theirs = (
        {
            "loss": torch.rand((), generator=generator),
            "logits": 3 * torch.randn(3, classes, generator=generator),
            "hidden_states": tuple(torch.randn(layers, 3, 7, 8, generator=generator)),
        }
        for layers in (3, 5)
    )
    for outputs in (ours["logits"], *ours["hidden_states"]):
        outputs.requires_grad_()
    settings = Distillation(task=0.3, logits=0.7, hidden=1.1, temperature=temperature)
    if problem_type:
        problem_type = "regression" if classes == 1 else "single_label_classification"
    found = distillation_loss(ours, theirs, mask, settings, torch.tensor([0, 0, 0]), problem_type)
    expected = as_in_the_studies(ours, theirs, mask, settings)
    assert torch.equal(found, expected)
    leaves = [ours["logits"], *ours["hidden_states"]]
    for new, old in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.equal(new, old)


def as_in_the_studies(student: dict, teacher: dict, mask: Tensor, settings: Distillation) -> Tensor:
    s, t, T = student["logits"], teacher["logits"], settings.temperature
    if s.shape[-1] == 1:
        logits = F.mse_loss(s, t)
    else:
        p, q = F.log_softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)
        logits = T**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
    real = mask.unsqueeze(-1).to(torch.float32)
    entries = real.sum() * 8
    pairs = [(student["hidden_states"][i], teacher["hidden_states"][2 * i]) for i in range(3)]
    hidden = torch.stack([((a - b).square() * real).sum() / entries for a, b in pairs]).mean()
    return settings.task * student["loss"] + settings.logits * logits + settings.hidden * hidden


class Pairs(nn.Module):
    """Returns a tuple."""

    def __init__(self):
        super().__init__()
        self.inner = bert(BertForSequenceClassification)

    def forward(self, **inputs):
        return self.inner(**inputs).to_tuple()


class Wrapped(Pairs):
    def forward(self, **inputs):
        return self.inner(**inputs)


@pytest.mark.situation("distillation", "model that is no transformers class", "works")
def test_a_model_that_names_no_columns_gets_them_all(tmp_path):
    student, given = Wrapped(), batch(labels=torch.tensor([0, 1, 2, 0]))
    trainer = trainer_for(tmp_path, student, bert(BertForSequenceClassification, 1))
    inner = trainer_for(tmp_path, student.inner, bert(BertForSequenceClassification, 1))
    with torch.no_grad():
        assert trainer.compute_loss(student, given) == inner.compute_loss(student.inner, given)


CLASSES = torch.tensor([0, 1, 1, 0])
REFUSED = {
    "one output under three classes": (
        lambda: (bert(BertForSequenceClassification, num_labels=1), bert(BertForSequenceClassification)),
        lambda: batch(labels=CLASSES.float()),
        BOTH,
        r"logits of shapes \(4, 1\) \(student\) and \(4, 3\) \(teacher\) cannot be compared",
    ),
    "two classes under three": (
        lambda: (bert(BertForSequenceClassification, num_labels=2), bert(BertForSequenceClassification)),
        lambda: batch(labels=CLASSES),
        BOTH,
        r"logits of shapes \(4, 2\) \(student\) and \(4, 3\) \(teacher\)",
    ),
    "larger vocabulary": (
        lambda: (bert(BertForMaskedLM), bert(BertForMaskedLM, vocab_size=70)),
        lambda: batch(labels=tokens(4, 6)),
        LOGITS,
        r"logits of shapes \(4, 6, 60\) \(student\) and \(4, 6, 70\) \(teacher\)",
    ),
    "smaller vocabulary": (
        lambda: (bert(BertForSequenceClassification), bert(BertForSequenceClassification, vocab_size=40)),
        lambda: batch(labels=CLASSES),
        BOTH,
        r"the batch has a token 5\d, but the teacher's vocabulary has 40",
    ),
    "another head": (
        lambda: (bert(BertForQuestionAnswering, num_labels=2), bert(BertForSequenceClassification)),
        lambda: batch(start_positions=ANSWERS, end_positions=ANSWERS),
        BOTH,
        "the teacher's outputs have no 'start_logits'",
    ),
    "no head": (
        lambda: (bert(BertForSequenceClassification), bert(transformers.BertModel)),
        lambda: batch(labels=CLASSES),
        BOTH,
        "the teacher's outputs have no 'logits', only .*: distillation.logits needs",
    ),
    "several labels under one class": (
        lambda: (
            bert(BertForSequenceClassification, **MULTI),
            bert(BertForSequenceClassification, problem_type="single_label_classification"),
        ),
        lambda: batch(labels=(tokens(4, 3) % 2).float()),
        BOTH,
        "student's config has problem_type 'multi_label_classification', the teacher's 'single_label_classification'",
    ),
    "ELECTRA's replaced tokens": (
        lambda: tuple(
            other("ElectraForPreTraining", "ElectraConfig", embedding_size=16, **tiny_config().to_diff_dict())
            for _ in range(2)
        ),
        lambda: batch(labels=tokens(4, 6) % 2),
        LOGITS,
        r"labels of shape \(4, 6\) for logits of shape \(4, 6\) are not one class per example",
    ),
    "hidden states of an encoder-decoder": (
        lambda: (t5(), t5(1)),
        lambda: batch(labels=tokens(4, 5)),
        BOTH,
        "the student's outputs have no 'hidden_states', only .*: set distillation.hidden to 0",
    ),
    "another width": (
        lambda: (bert(BertForSequenceClassification), bert(BertForSequenceClassification, hidden_size=32)),
        lambda: batch(labels=CLASSES),
        BOTH,
        r"hidden states of shapes \(4, 6, 16\) \(student\) and \(4, 6, 32\) \(teacher\) cannot .*\.hidden to 0",
    ),
    "fewer layers": (
        lambda: (bert(BertForSequenceClassification), bert(BertForSequenceClassification, num_hidden_layers=1)),
        lambda: batch(labels=CLASSES),
        BOTH,
        "a teacher of 1 layers cannot guide a student of 2",
    ),
    "no labels": (
        lambda: (bert(BertForSequenceClassification), bert(BertForSequenceClassification, 1)),
        batch,
        Distillation(task=0.5, logits=1.0, hidden=0.0, temperature=2.0),
        "the student's outputs have no 'loss', only .*: batches need labels",
    ),
    "a tuple": (
        lambda: (Pairs(), bert(BertForSequenceClassification)),
        lambda: batch(labels=CLASSES),
        LOGITS,
        "the student returns a tuple, but distillation needs named outputs",
    ),
}


@pytest.mark.situation("distillation", "teacher with other outputs than the student's", "refused")
@pytest.mark.situation("distillation", "teacher of another task", "refused")
@pytest.mark.situation("distillation", "teacher with another tokenizer", "refused")
@pytest.mark.situation("distillation", "hidden states of an encoder-decoder", "refused")
@pytest.mark.situation("distillation", "teacher of another width, by its hidden states", "refused")
@pytest.mark.situation("distillation", "teacher with fewer layers, by its hidden states", "refused")
@pytest.mark.situation("distillation", "batches without labels, with a weight on the labels", "refused")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_distilled_is_refused_at_the_first_batch(tmp_path, case):
    make, inputs, settings, message = REFUSED[case]
    student, teacher = make()
    with pytest.raises(UserError, match=message):
        trainer_for(tmp_path, student, teacher, settings).compute_loss(student, inputs())


@pytest.mark.situation("distillation", "segmentation of images", "refused")
def test_logits_of_another_kind_are_refused():
    student, teacher = random_logits(2, 3, 8, 8)
    with pytest.raises(UserError, match=r"logits of shape \(2, 3, 8, 8\) are of no task that can be distilled"):
        distillation_loss(student, teacher, None, LOGITS)
    student, teacher = random_logits(2, 5, 3)  # as of an object detector
    with pytest.raises(UserError, match=r"neither labels nor an attention_mask of shape \(2, 5\)"):
        distillation_loss(student, teacher, None, LOGITS)


def test_a_mask_that_does_not_fit_is_refused():
    """As of audio, where the mask is of samples and the hidden states are of frames."""
    student, teacher = ({"hidden_states": tuple(torch.randn(3, 2, 5, 4))} for _ in range(2))
    with pytest.raises(UserError, match=r"attention_mask of shape \(2, 40\) does not fit hidden states"):
        distillation_loss(student, teacher, torch.ones(2, 40), HIDDEN)


@pytest.mark.situation("distillation", "teacher that shares weights with the student", "refused")
def test_a_teacher_that_shares_weights_is_refused_and_freezes_nothing(tmp_path):
    student = bert(BertForSequenceClassification)
    embeddings = bert(BertForSequenceClassification)
    embeddings.bert.embeddings = student.bert.embeddings
    memory = bert(BertForSequenceClassification)
    memory.load_state_dict(student.state_dict(), assign=True)
    for teacher in (student, embeddings, memory):
        with pytest.raises(UserError, match=r"teacher shares \d+ parameters .* give copy.deepcopy\(teacher\)"):
            trainer_for(tmp_path, student, teacher)
        assert all(parameter.requires_grad for parameter in student.parameters())
    trainer_for(tmp_path, student, copy.deepcopy(student))


@pytest.mark.situation("distillation", "teacher in bf16", "works")
def test_a_teacher_in_half_precision_teaches(tmp_path):
    student, given = bert(BertForSequenceClassification), batch(labels=CLASSES)
    with torch.no_grad():
        exact = trainer_for(tmp_path, student, bert(BertForSequenceClassification, 1)).compute_loss(student, given)
        teacher = bert(BertForSequenceClassification, 1).to(torch.bfloat16)
        rounded = trainer_for(tmp_path, student, teacher).compute_loss(student, given)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.0)
