"""The distillation loss is the textbook's, and the Trainer with a teacher uses it."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    TrainingArguments,
)

from nxm import NM, AspCallback, UserError, find_targets, shrink, structure_of
from nxm.distillation.loss import distillation_loss, matching_layers
from nxm.distillation.noise import replace_tokens
from nxm.distillation.settings import DISTILLATION, Distillation
from nxm.distillation.trainer import DistillationTrainer, Teacher
from nxm.models.structure import Structure, mask_
from tiny_training import tiny_config

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def outputs(seed: int, layers: int = 2, classes: int = 3, width: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    hidden = tuple(torch.randn(2, 4, width, generator=generator) for _ in range(layers + 1))
    logits = torch.randn(2, classes, generator=generator)
    return {"logits": logits, "hidden_states": hidden, "loss": logits.square().mean()}


def test_layers_match_evenly_and_the_last_the_last():
    assert matching_layers(3, 6) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert matching_layers(6, 12)[-1] == (6, 12)
    assert matching_layers(2, 2) == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match="cannot guide"):
        matching_layers(4, 2)


def test_logits_term_is_hintons():
    student, teacher = outputs(0), outputs(1)
    T = 2.0
    p, q = F.softmax(teacher["logits"] / T, -1), F.softmax(student["logits"] / T, -1)
    expected = T**2 * (p * (p / q).log()).sum(-1).mean()
    loss = distillation_loss(student, teacher, MASK, Distillation(task=0, logits=1, hidden=0, temperature=T))
    torch.testing.assert_close(loss, expected)


def test_a_single_output_is_matched_by_squared_error():
    student, teacher = outputs(0, classes=1), outputs(1, classes=1)
    loss = distillation_loss(student, teacher, MASK, Distillation(task=0, logits=1, hidden=0, temperature=2))
    torch.testing.assert_close(loss, (student["logits"] - teacher["logits"]).square().mean())


def test_hidden_term_looks_at_real_tokens_of_matching_layers():
    student, teacher = outputs(0, layers=1), outputs(1, layers=2)
    real = MASK.bool()
    pairs = [(0, 0), (1, 2)]
    expected = torch.stack(
        [(student["hidden_states"][i][real] - teacher["hidden_states"][j][real]).square().mean() for i, j in pairs]
    ).mean()
    settings = Distillation(task=0, logits=0, hidden=1, temperature=2)
    torch.testing.assert_close(distillation_loss(student, teacher, MASK, settings), expected)
    student["hidden_states"][1][0, 3] = 1e6  # padding
    torch.testing.assert_close(distillation_loss(student, teacher, MASK, settings), expected)


def test_a_student_without_its_dead_heads_and_rows_has_the_loss_of_the_masked_one():
    """Hidden states are as wide as the teacher's, and no term looks at attention, of which a dead head has none."""
    torch.manual_seed(0)
    dense = BertForSequenceClassification(tiny_config()).eval()
    masked = copy.deepcopy(dense)
    mask_(masked, Structure(((1,), (0, 1)), (tuple(range(5)), tuple(range(3, 30)))))
    small = shrink(masked, structure_of(masked), multiple=8)
    batch = {"input_ids": torch.tensor([[7, 8, 9, 0], [4, 5, 0, 0]]), "attention_mask": MASK}
    batch["labels"] = torch.tensor([1, 0])
    answers = [model(**batch, output_hidden_states=True) for model in (masked, small, dense)]
    losses = [distillation_loss(answer, answers[2], MASK, DISTILLATION, labels=batch["labels"]) for answer in answers]
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[0] > losses[2]


def test_a_student_equal_to_its_teacher_has_only_the_tasks_loss():
    same = outputs(0)
    loss = distillation_loss(same, same, MASK, Distillation(task=0.5, logits=1, hidden=1, temperature=2))
    torch.testing.assert_close(loss, 0.5 * same["loss"])


def test_unequal_widths_are_refused():
    with pytest.raises(ValueError, match=r"set distillation\.hidden to 0"):
        distillation_loss(
            outputs(0, width=4), outputs(1, width=8), MASK, Distillation(task=0.5, logits=0.5, hidden=1, temperature=2)
        )


def test_a_teacher_answers_without_gradients_or_dropout():
    model = BertForSequenceClassification(tiny_config(hidden_dropout_prob=0.5))
    teacher = Teacher(model.train(), hidden_states=True)
    inputs = {
        "input_ids": torch.tensor([[2, 3, 4]]),
        "attention_mask": torch.ones(1, 3, dtype=int),
        "length": torch.tensor([3]),
    }
    first, second = teacher(inputs), teacher(inputs)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert len(first.hidden_states) == 3


def arguments(folder, **others) -> TrainingArguments:
    return TrainingArguments(
        str(folder), max_steps=3, learning_rate=1e-2, report_to="none", disable_tqdm=True, use_cpu=True, **others
    )


@pytest.fixture
def tokenizer(tmp_path) -> BertTokenizerFast:
    """A tokenizer whose special tokens are 0 to 4; the tokens of `batch` are 3 to 19."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(ord("a") + i) for i in range(15))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast(str(tmp_path / "vocab.txt"))


def batch(*columns: str, rows: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (rows, 6), generator=generator)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}
    return given | dict.fromkeys(columns, ids % 2)


def test_a_dense_model_teaches_its_sparse_version_and_stays_unchanged(tmp_path):
    teacher, model = (BertForSequenceClassification(tiny_config()) for _ in range(2))
    model.load_state_dict(teacher.state_dict())
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    rows = [{name: column[i].tolist() for name, column in batch(rows=16).items()} for i in range(16)]
    trainer = DistillationTrainer(
        model,
        arguments(tmp_path),
        teacher=teacher,
        train_dataset=Dataset.from_list(rows),
        callbacks=[AspCallback(NM(2, 4))],
    )
    trainer.train()
    assert all(NM(2, 4).contains(W) for W in find_targets(model).values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not torch.equal(model.classifier.weight, teacher.classifier.weight)
    assert not teacher.training


def test_training_has_the_loss_of_distillation_and_evaluation_the_tasks(tmp_path):
    teacher, model = (BertForSequenceClassification(tiny_config(initializer_range=1.0)) for _ in range(2))
    trainer = DistillationTrainer(model, arguments(tmp_path), teacher=teacher)
    inputs = batch()
    with torch.no_grad():
        model.train()
        ours = model(**inputs, output_hidden_states=True)
        theirs = teacher(**inputs, output_hidden_states=True)
        expected = distillation_loss(ours, theirs, inputs["attention_mask"], DISTILLATION)
        torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)
        model.eval()
        torch.testing.assert_close(trainer.compute_loss(model, inputs), model(**inputs).loss)
        model.train()
        del inputs["attention_mask"]  # no padding
        torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)


def test_student_and_teacher_each_get_the_inputs_that_they_accept(tmp_path):
    teacher = BertForSequenceClassification(tiny_config(initializer_range=1.0))  # answers far from 50 : 50
    small = {"vocab_size": 30, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "initializer_range": 1.0}
    still = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
    student = DistilBertForSequenceClassification(DistilBertConfig(**small, **still))
    settings = Distillation(task=0.0, logits=1.0, hidden=0.0, temperature=1.0)
    args = arguments(tmp_path, remove_unused_columns=False)
    trainer = DistillationTrainer(student, args, teacher=teacher, distillation=settings)
    inputs = batch("token_type_ids")
    student.train()
    with torch.no_grad():
        target = F.softmax(teacher(**inputs).logits, dim=-1)
        blind = F.softmax(teacher(**batch()).logits, dim=-1)
    assert not torch.allclose(target, blind, atol=0.05)
    ours = student(**batch()).logits
    expected = (target * (target.log() - F.log_softmax(ours, dim=-1))).sum() / len(ours)
    assert expected > 0.1
    torch.testing.assert_close(trainer.compute_loss(student, inputs), expected)
    assert torch.isfinite(trainer.compute_loss(student.eval(), inputs))


def test_another_loss_with_a_teacher_is_refused(tmp_path):
    model = BertForSequenceClassification(tiny_config())
    with pytest.raises(UserError, match="no label smoothing"):
        DistillationTrainer(model, arguments(tmp_path, label_smoothing_factor=0.1), teacher=copy.deepcopy(model))


def test_noise_replaces_a_share_of_the_tokens_of_half_of_the_examples_by_others_of_the_batch():
    torch.manual_seed(0)
    ids = torch.randint(100, 200, (400, 50))
    ids[:, 0] = 2
    replaceable = torch.ones_like(ids, dtype=torch.bool)
    replaceable[:, 0] = False
    ids[:, 40:] = 0
    replaceable[:, 40:] = False
    changed, noisy = replace_tokens(ids, replaceable, 0.3)
    differs = changed != ids
    assert not differs[~replaceable].any()
    assert not differs[~noisy].any()
    assert noisy.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert differs[noisy][:, 1:40].float().mean().item() == pytest.approx(0.3 * 0.99, abs=0.02)  # 1 of 100 is itself
    assert set(changed[differs].tolist()) <= set(range(100, 200))


def test_a_batch_of_special_tokens_stays_unchanged():
    ids = torch.full((3, 4), 2)
    changed, _ = replace_tokens(ids, torch.zeros_like(ids, dtype=torch.bool), 0.5)
    assert torch.equal(changed, ids)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_teacher_labels_the_examples_with_noise(tmp_path, tokenizer, classes):
    sizes = {"num_labels": classes, "initializer_range": 1.0, "hidden_dropout_prob": 0.0}
    config = tiny_config(**sizes, attention_probs_dropout_prob=0.0)
    teacher, model = (BertForSequenceClassification(config).eval() for _ in range(2))
    settings = Distillation(task=1.0, logits=0.0, hidden=0.5, temperature=1.0)
    args = arguments(tmp_path)
    trainer = DistillationTrainer(
        model, args, teacher=teacher, distillation=settings, noise=0.5, processing_class=tokenizer
    )
    inputs = batch(rows=16)
    if classes == 1:
        inputs["labels"] = inputs["labels"].float()
    replaceable = ~torch.isin(inputs["input_ids"], torch.tensor(tokenizer.all_special_ids))
    torch.manual_seed(5)
    changed, noisy = replace_tokens(inputs["input_ids"], replaceable, 0.5)
    assert 0 < noisy.sum() < 16
    with torch.no_grad():
        theirs = teacher(changed, output_hidden_states=True)
        answers = theirs.logits[:, 0] if classes == 1 else theirs.logits.argmax(dim=1)
        labels = torch.where(noisy, answers.to(inputs["labels"].dtype), inputs["labels"])
        ours = model.train()(changed, labels=labels, output_hidden_states=True)
        expected = distillation_loss(ours, theirs, inputs["attention_mask"], settings)
        torch.manual_seed(5)
        torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)
    assert not torch.equal(labels, inputs["labels"])


def test_noise_without_a_tokenizer_or_with_several_labels_is_refused(tmp_path, tokenizer):
    model = BertForSequenceClassification(tiny_config())
    with pytest.raises(UserError, match=r"noise = 0\.3 .* give processing_class=tokenizer, or noise=0"):
        DistillationTrainer(model, arguments(tmp_path), teacher=copy.deepcopy(model), noise=0.3)
    trainer = DistillationTrainer(
        model, arguments(tmp_path), teacher=copy.deepcopy(model), processing_class=tokenizer, noise=0.3
    )
    with pytest.raises(UserError, match=r"one label per example.* labels of shape \(4, 6\): set noise=0"):
        trainer.compute_loss(model.train(), batch() | {"labels": torch.zeros(4, 6, dtype=int)})
    with pytest.raises(UserError, match=r"needs input_ids .* not input_ids of shape None .*: set noise=0"):
        trainer.compute_loss(
            model.train(), {"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.zeros(4, dtype=int)}
        )
