"""Under a teacher a student trains without dropout, wherever its family has it, and keeps its own rates otherwise."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedModel, TrainingArguments

from nxm import DistillationTrainer
from nxm.models.student import dropout_at
from tiny_models import MODELS
from tiny_training import tiny_config

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
XLM = {"vocab_size": 64, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64, "pad_index": 0}
BART = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
PROPHETNET = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
ROPE = {"dropout": 0.4, "attention_dropout": 0.4}
HALF = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}

# Family -> class, values of its config
FAMILIES = {
    "Bart": ("ForSequenceClassification", BART | ROPE | {"activation_dropout": 0.4, "encoder_layerdrop": 0.4}),
    "OPT": ("ForSequenceClassification", SIZES | ROPE | {"ffn_dim": 32, "word_embed_proj_dim": 16, "layerdrop": 0.4}),
    "XLM": ("ForSequenceClassification", XLM | ROPE),
    "Flaubert": ("ForSequenceClassification", XLM | ROPE | {"layerdrop": 0.4}),
    "Longformer": ("ForSequenceClassification", SIZES | HALF | {"attention_window": [4, 4]}),
    "Llama": ("ForSequenceClassification", SIZES | {"attention_dropout": 0.4}),
    "ModernBert": ("ForSequenceClassification", SIZES | {"attention_dropout": 0.4, "mlp_dropout": 0.4}),
    "GPTNeoX": ("ForSequenceClassification", SIZES | {"attention_dropout": 0.4, "hidden_dropout": 0.4}),
    "DebertaV2": ("ForSequenceClassification", SIZES | HALF),
    "ProphetNet": ("ForConditionalGeneration", PROPHETNET | ROPE),  # reads config.dropout in its forward pass
}


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family in MODELS:
        return MODELS[family]()
    kind, values = FAMILIES[family]
    special = {"cls_token_id": 1, "sep_token_id": 2} if family == "ModernBert" else {}
    config = getattr(transformers, f"{family}Config")(**values, **special)
    return getattr(transformers, family + kind)(config)


def answer(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    more = {"decoder_input_ids": ids} if isinstance(model, transformers.ProphetNetForConditionalGeneration) else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)[0]


def rates(model: PreTrainedModel) -> list:
    return [
        (name, key, value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key == "p" or "drop" in key
    ]


@pytest.mark.situation("distillation", "student without dropout, a BERT or one of its relatives", "works")
@pytest.mark.situation("distillation", "student without dropout, of another family (BART, OPT, Llama, ...)", "works")
@pytest.mark.parametrize("family", [*FAMILIES, *MODELS])
def test_without_dropout_a_model_in_training_answers_as_in_evaluation(family):
    model = model_of(family)
    before, config = rates(model), model.config.to_dict()
    assert not torch.equal(answer(model.train()), answer(model))
    with dropout_at(model, 0.0):
        first, second = answer(model), answer(model)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, answer(model.eval()))
    assert rates(model) == before
    assert model.config.to_dict() == config
    assert not torch.equal(answer(model.train()), answer(model))


def test_another_rate_is_set_everywhere_but_for_layers_left_out_as_a_whole():
    model = model_of("Bart")
    with dropout_at(model, 0.25):
        found = {key: value for _, key, value in rates(model)}
        assert found["dropout"] == found["activation_dropout"] == 0.25
        assert model.model.encoder.layerdrop == 0.4


def test_rates_come_back_after_an_error():
    model = model_of("bert")
    before = rates(model)
    with pytest.raises(KeyboardInterrupt), dropout_at(model, 0.0):
        raise KeyboardInterrupt
    assert rates(model) == before


def test_none_changes_no_rate():
    model = model_of("bert")
    before = rates(model)
    with dropout_at(model, None):
        assert rates(model) == before


def arguments(folder, **others) -> TrainingArguments:
    return TrainingArguments(str(folder), max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True, **others)


def data() -> Dataset:
    ids = torch.randint(5, 60, (16, 6), generator=torch.Generator().manual_seed(0))
    return Dataset.from_list([{"input_ids": row.tolist(), "labels": i % 2} for i, row in enumerate(ids)])


class Watching(DistillationTrainer):
    """Collects the rates in the model that is trained, at each step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen = {*getattr(self, "seen", ()), *(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))}
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.situation("distillation", "student without dropout, made by model_init", "works")
@pytest.mark.parametrize("with_model_init", [True, False])
@pytest.mark.parametrize(("given", "expected"), [({}, 0.0), ({"dropout": None}, 0.3), ({"dropout": 0.1}, 0.1)])
def test_the_model_that_is_trained_has_the_rate_and_the_saved_config_its_own(
    tmp_path, with_model_init, given, expected
):
    def student():
        return BertForSequenceClassification(tiny_config(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3))

    options = {"model_init": student} if with_model_init else {"model": student()}
    trainer = Watching(
        **options, **given, args=arguments(tmp_path, save_steps=1), teacher=student(), train_dataset=data()
    )
    trainer.train()
    assert trainer.seen == {expected}
    for folder in ("checkpoint-1", "checkpoint-2"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["hidden_dropout_prob"] == 0.3
    assert {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


class NoisyBert(BertForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        if self.training:
            outputs.logits = outputs.logits + torch.randn_like(outputs.logits)
        return outputs


@pytest.mark.situation("distillation", "student that draws random numbers of its own: a warning says so", "works")
def test_a_student_that_is_random_without_dropout_is_named(tmp_path):
    trainer = DistillationTrainer(
        NoisyBert(tiny_config()),
        arguments(tmp_path),
        teacher=BertForSequenceClassification(tiny_config()),
        train_dataset=data(),
    )
    with pytest.warns(UserWarning, match="dropout = 0, yet two training passes of NoisyBert differ"):
        trainer.train()


def test_a_student_that_draws_numbers_without_effect_is_not_named(tmp_path):
    model, teacher = model_of("OPT"), model_of("OPT")  # with layerdrop 0 it draws a number per layer all the same
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="dropout = 0, yet")
        DistillationTrainer(model, arguments(tmp_path), teacher=teacher, train_dataset=data()).train()


def test_a_step_of_bert_is_one_pass(tmp_path):
    model, passes = model_of("bert"), []
    model.register_forward_hook(lambda *_: passes.append(1))
    DistillationTrainer(model, arguments(tmp_path), teacher=model_of("bert"), train_dataset=data()).train()
    assert len(passes) == 2
