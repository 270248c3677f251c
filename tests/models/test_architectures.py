"""Which matrices of which model families are targets, what stays dense, and which families are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

from nxm import NM, AdmmCallback, AspCallback, UserError, find_targets
from nxm.models.targets import find_stack, find_stacks, left_dense
from nxm.sets.saved import load_config, load_matrices, read_pattern, report, restore_renamed
from tiny_training import Pad, assert_equal, trainer_for, weights_of

WORDS = {"vocab_size": 60, "pad_token_id": 0}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = WORDS | BLOCKS | {"max_position_embeddings": 64}
LANGUAGE_AND_VISION = {**WORDS, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = BLOCKS | {"image_size": 32, "patch_size": 16}
PAIR = {
    **{"vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 3, "pad_token_id": 0},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}
XLM = {"vocab_size": 60, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64, "pad_index": 0}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "decoder_start_token_id": 0}
SPEECH = {"conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_conv_pos_embedding_groups": 2}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
PERMUTED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

FAMILIES = {  # name: (a model, its stacks, its targets)
    "roberta": (hf.RobertaModel, hf.RobertaConfig(**TEXT), ["encoder.layer"], 12),
    "xlm-roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig(**TEXT), ["encoder.layer"], 12),
    "deberta-v2": (hf.DebertaV2Model, hf.DebertaV2Config(**TEXT, **PERMUTED), ["encoder.layer"], 16),
    "modernbert": (hf.ModernBertModel, hf.ModernBertConfig(**TEXT), ["layers"], 8),
    "longformer": (hf.LongformerModel, hf.LongformerConfig(**TEXT, attention_window=[4, 4]), ["encoder.layer"], 18),
    "convbert": (hf.ConvBertModel, hf.ConvBertConfig(**TEXT, embedding_size=16, head_ratio=1), ["encoder.layer"], 16),
    "xmod": (hf.XmodModel, hf.XmodConfig(**TEXT, languages=["en_XX", "de_DE"]), ["encoder.layer"], 20),
    "xlm": (hf.XLMModel, hf.XLMConfig(**XLM), ["attentions", "ffns"], 12),
    "flaubert": (hf.FlaubertModel, hf.FlaubertConfig(**XLM), ["attentions", "ffns"], 12),
    "fnet": (hf.FNetModel, hf.FNetConfig(**TEXT), ["encoder.layer"], 4),
    "llama": (hf.LlamaModel, hf.LlamaConfig(**(TEXT | GROUPED)), ["layers"], 14),
    "gpt-neox": (hf.GPTNeoXModel, hf.GPTNeoXConfig(**BLOCKS, vocab_size=60), ["layers"], 8),
    "albert": (hf.AlbertModel, hf.AlbertConfig(**TEXT, embedding_size=16), ["encoder.albert_layer_groups"], 6),
    "t5": (hf.T5Model, hf.T5Config(**T5, num_layers=2, num_decoder_layers=3), ["encoder.block", "decoder.block"], 42),
    "bart": (hf.BartModel, hf.BartConfig(**PAIR), ["encoder.layers", "decoder.layers"], 36),
    "whisper": (
        hf.WhisperModel,
        hf.WhisperConfig(**PAIR, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
        ["encoder.layers", "decoder.layers"],
        36,
    ),
    "clip": (
        hf.CLIPModel,
        hf.CLIPConfig(text_config=TEXT, vision_config=IMAGE),
        ["text_model.encoder.layers", "vision_model.encoder.layers"],
        24,
    ),
    "siglip": (
        hf.SiglipModel,
        hf.SiglipConfig(text_config=TEXT | {"num_hidden_layers": 3}, vision_config=IMAGE),
        ["text_model.encoder.layers", "vision_model.encoder.layers"],
        30,
    ),
    "vit": (hf.ViTModel, hf.ViTConfig(**IMAGE), ["layers"], 12),
    "swin": (hf.SwinModel, hf.SwinConfig(**SWIN), ["encoder.layers"], 19),
    "wav2vec2": (hf.Wav2Vec2Model, hf.Wav2Vec2Config(**BLOCKS, **SPEECH), ["encoder.layers"], 12),
    "lxmert": (
        hf.LxmertModel,
        hf.LxmertConfig(**LANGUAGE_AND_VISION, l_layers=2, x_layers=1, r_layers=1),
        ["encoder.layer", "encoder.x_layers", "encoder.r_layers"],
        34,
    ),
}
PARTLY_DENSE = {  # name: (a model, targets, matrices in the blocks that are no Linear layers' weights)
    "mixtral": (hf.MixtralModel, hf.MixtralConfig(**(TEXT | GROUPED), num_local_experts=4), 8, 6),
    "xlnet": (hf.XLNetModel, hf.XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=2, d_inner=32), 4, 12),
}
REFUSED = {
    "gpt2": (hf.GPT2Model, hf.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2), "Conv1D"),
    "squeezebert": (hf.SqueezeBertModel, hf.SqueezeBertConfig(**TEXT, embedding_size=16), "Conv1d"),
    "ibert": (hf.IBertModel, hf.IBertConfig(**TEXT), "QuantLinear"),
}


@pytest.mark.situation(
    "models", "encoders: BERT, RoBERTa, DeBERTa, ELECTRA, MPNet, DistilBERT, ModernBERT, Longformer, ...", "works"
)
@pytest.mark.situation("models", "encoder-decoders, both halves: T5, BART, Whisper", "works")
@pytest.mark.situation("models", "two towers, both of them: CLIP, SigLIP", "works")
@pytest.mark.situation("models", "decoders: Llama, GPT-NeoX, OPT", "works")
@pytest.mark.situation("models", "images and speech: ViT, Swin, wav2vec 2.0", "works")
@pytest.mark.situation("models", "ALBERT, whose layers share one block", "works")
@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_layers_of_all_blocks_are_targets(name):
    model_class, config, stacks, count = FAMILIES[name]
    with torch.device("meta"):
        model = model_class(config)
    targets = find_targets(model)
    assert [prefix for prefix, _ in find_stacks(model)] == stacks
    assert len(targets) == count
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {f"{name}.weight" for name in layers if any(name.startswith(f"{stack}.") for stack in stacks)}
    assert set(targets) == inside
    assert not left_dense(model)


@pytest.mark.situation(
    "models",
    "matrices in no Linear layer stay dense, as a warning says: Mixtral, XLNet",
    "works",
)
@pytest.mark.parametrize("name", PARTLY_DENSE)
def test_what_stays_dense_in_the_blocks_is_known(name):
    model_class, config, targets, dense = PARTLY_DENSE[name]
    with torch.device("meta"):
        model = model_class(config)
    assert len(find_targets(model)) == targets
    assert len(left_dense(model)) == dense


def test_a_training_says_what_stays_dense(tiny_data, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.Embedding(64, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, input_ids, attention_mask, labels):
            logits = self.encoder(self.embeddings(input_ids))[:, 0, :2]
            return {"loss": nn.functional.cross_entropy(logits, labels.long()), "logits": logits}

    trainer = trainer_for(Model(), tiny_data, tmp_path, [AdmmCallback(NM(2, 4), importance="none")], max_steps=16)
    with pytest.warns(UserWarning, match=r"2 matrices of Model stay dense.*layers\.0\.self_attn\.in_proj_weight"):
        trainer.train()


@pytest.mark.situation("models", "blocks without any Linear layer: GPT-2, SqueezeBERT, I-BERT", "refused")
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_without_linear_layers_is_refused_by_what_it_has(name):
    model_class, config, made_of = REFUSED[name]
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(
        UserError, match=rf"blocks of {model_class.__name__} have no nn\.Linear layer.*{made_of}"
    ) as said:
        find_targets(model)
    assert ("(in_features, out_features)" in str(said.value)) == (made_of == "Conv1D")
    listed = str(said.value).rpartition("for example, ")[2].replace("XLM-R", "XLM-RoBERTa").lower().split(", ")
    assert set(listed) <= TRAINED.keys()


def test_a_wrapped_model_is_found_inside():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2)) for _ in range(5))
            self.encoder = hf.RobertaModel(hf.RobertaConfig(**TEXT))

    assert [name for name, _ in find_stacks(Mine())] == ["encoder.encoder.layer"]
    assert list(left_dense(Mine())) == [f"heads.{head}.{layer}.weight" for head in range(5) for layer in range(2)]


def test_what_needs_one_stack_names_the_several():
    with torch.device("meta"):
        model = hf.BartModel(FAMILIES["bart"][1])
    with pytest.raises(UserError, match=r"2 stacks of blocks, where one is wanted: encoder\.layers, decoder\.layers"):
        find_stack(model)


def test_a_weight_that_two_layers_share_is_one_target():
    model = hf.RobertaModel(hf.RobertaConfig(**TEXT))
    first, second = model.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight
    targets = find_targets(model)
    assert len(targets) == 11
    assert len({id(W) for W in targets.values()}) == 11


@pytest.mark.situation("models", "a model with a LoRA adapter", "refused")
def test_a_peft_model_is_refused():
    class Adapter(nn.Linear):
        pass

    Adapter.__module__ = "peft.tuners.lora.layer"
    model = hf.RobertaModel(hf.RobertaConfig(**TEXT))
    model.encoder.layer[0].attention.self.query = Adapter(16, 16)
    with pytest.raises(UserError, match=r"PEFT adapter.*merge_and_unload"):
        find_targets(model)


@pytest.mark.situation("models", "some of the matrices frozen (requires_grad=False)", "refused")
def test_frozen_matrices_are_refused_unless_excluded(tiny_bert, tiny_data, tmp_path):
    for W in tiny_bert.bert.encoder.layer[0].parameters():
        W.requires_grad_(False)
    with pytest.raises(UserError, match=r"6 of 12 matrices are frozen.*layer\.0\.attention\.self\.query.*`exclude`"):
        trainer_for(tiny_bert, tiny_data, tmp_path, [AdmmCallback(NM(2, 4))]).train()
    before = tiny_bert.bert.encoder.layer[0].intermediate.dense.weight.clone()
    trainer_for(tiny_bert, tiny_data, tmp_path, [AdmmCallback(NM(2, 4), exclude=(r"layer\.0\.",))]).train()
    assert torch.equal(tiny_bert.bert.encoder.layer[0].intermediate.dense.weight, before)
    assert all(NM(2, 4).contains(W) for W in find_targets(tiny_bert, exclude=[r"layer\.0\."]).values())


# --- Trainings: the weights obey, the score that was reported is the saved model's, a resumed run ends the same -------

ENCODER = TEXT | {"num_labels": 2}
NARROW = {"n_layers": 2, "n_heads": 2, "num_labels": 2}
SMALL_IMAGE = BLOCKS | {"image_size": 8, "patch_size": 4}
SPOKEN = {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
TRAINED = {  # name: (a model with a head, its inputs)
    "bert": (hf.BertForSequenceClassification, hf.BertConfig(**ENCODER), "text"),
    "distilbert": (
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig(**WORDS, **NARROW, dim=16, hidden_dim=32, max_position_embeddings=64),
        "text",
    ),
    "roberta": (hf.RobertaForSequenceClassification, hf.RobertaConfig(**ENCODER), "text"),
    "mpnet": (hf.MPNetForSequenceClassification, hf.MPNetConfig(**ENCODER), "text"),
    "electra": (hf.ElectraForSequenceClassification, hf.ElectraConfig(**ENCODER, embedding_size=16), "text"),
    "deberta-v2": (hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config(**ENCODER, **PERMUTED), "text"),
    "albert": (hf.AlbertForSequenceClassification, hf.AlbertConfig(**ENCODER, embedding_size=16), "text"),
    "modernbert": (hf.ModernBertForSequenceClassification, hf.ModernBertConfig(**ENCODER), "text"),
    "xlm-roberta": (hf.XLMRobertaForSequenceClassification, hf.XLMRobertaConfig(**ENCODER), "text"),
    "longformer": (
        hf.LongformerForSequenceClassification,
        hf.LongformerConfig(**ENCODER, attention_window=[4, 4]),
        "text",
    ),
    "xlm": (hf.XLMForSequenceClassification, hf.XLMConfig(**XLM), "text"),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**SMALL_IMAGE), "image"),
    "deit": (hf.DeiTForImageClassification, hf.DeiTConfig(**SMALL_IMAGE), "image"),
    "clip": (hf.CLIPModel, hf.CLIPConfig(text_config=TEXT, vision_config=SMALL_IMAGE), "text and image"),
    "whisper": (hf.WhisperForConditionalGeneration, hf.WhisperConfig(**PAIR, **SPECIAL, **SPOKEN), "sound to text"),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5, num_layers=2, num_decoder_layers=3), "text to text"),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig(**PAIR), "text to text"),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**(TEXT | GROUPED)), "text to text"),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**(TEXT | GROUPED), head_dim=4), "text to text"),
}


class Inputs(Pad):
    """Batches of the parity data for a kind of model; images and sound are drawn from the first token."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, rows):
        batch = super().__call__(rows)
        seeds = [torch.Generator().manual_seed(row["input_ids"][0]) for row in rows]
        pixels = torch.stack([torch.randn(3, 8, 8, generator=seed) for seed in seeds])
        sound = torch.stack([torch.randn(8, 16, generator=seed) for seed in seeds])
        words = {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        return {
            "text": batch,
            "image": {"pixel_values": pixels, "labels": batch["labels"]},
            "text and image": {
                **{"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
                **{"pixel_values": pixels, "return_loss": True},
            },
            "sound to text": {"input_features": sound} | words,
            "text to text": batch | words,
        }[self.kind]


def trainer_of(model, kind, data, folder, callback=None):
    changes = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    changes |= {"prediction_loss_only": True, "remove_unused_columns": False}
    trainer = trainer_for(model, data, folder, [callback or AdmmCallback(NM(2, 4))], **changes)
    trainer.data_collator = Inputs(kind)
    return trainer


@pytest.mark.situation("models", "the score that a training reports is the saved model's, of every family", "works")
@pytest.mark.situation("training", "resumed: ViT and others that are saved under other names than in memory", "works")
@pytest.mark.parametrize("name", TRAINED)
def test_a_training_obeys_reports_and_resumes(name, tiny_data, tmp_path):
    model_class, config, kind = TRAINED[name]

    def new():
        torch.manual_seed(0)
        return model_class(copy.deepcopy(config))

    model = new()
    count = len(find_targets(model))
    trainer = trainer_of(model, kind, tiny_data, tmp_path / "run")
    trainer.train()
    reported = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    trainer.save_model(tmp_path / "saved")
    (constraint, names) = read_pattern(load_config(tmp_path / "saved"))
    assert (str(constraint), len(names)) == ("2:4", count)
    assert all(matrix.holds for matrix in report(load_matrices(tmp_path / "saved", names), constraint))

    loaded = model_class.from_pretrained(tmp_path / "saved")
    assert_equal(loaded.state_dict(), model.state_dict())
    assert trainer_of(loaded, kind, tiny_data, tmp_path / "other").evaluate()["eval_loss"] == reported

    resumed = new()
    again = trainer_of(resumed, kind, tiny_data, tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert_equal(resumed.state_dict(), model.state_dict())


def test_another_method_resumes_under_other_names_too(tiny_data, tmp_path):
    ends = []
    for checkpoint in (None, str(tmp_path / "checkpoint-8")):  # the second is the first one's
        torch.manual_seed(0)
        model = hf.ViTForImageClassification(TRAINED["vit"][1])
        trainer = trainer_of(model, "image", tiny_data, tmp_path, AspCallback(NM(2, 4)))
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(weights_of(model))
    assert_equal(ends[1], ends[0])


@pytest.mark.situation("training", "load_best_model_at_end: ViT and others under other names than in memory", "works")
def test_the_best_weights_are_loaded_back_under_other_names(tiny_data, tmp_path):
    torch.manual_seed(0)
    model = hf.ViTForImageClassification(TRAINED["vit"][1])
    trainer = trainer_of(model, "image", tiny_data, tmp_path)
    trainer.args.load_best_model_at_end = True
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = "eval_loss", True  # the first is the largest
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert best.name == "checkpoint-4"
    assert trainer.evaluate()["eval_loss"] == losses[0] != losses[-1]


def test_what_is_in_the_file_is_left_alone_and_what_is_not_is_named(tmp_path):
    """Weights are compared by name: training values, other types and shared weights are no fault."""
    torch.manual_seed(0)
    bart = hf.BartForConditionalGeneration(TRAINED["bart"][1])  # its embeddings have several names
    bart.to(torch.bfloat16).save_pretrained(tmp_path / "bart", max_shard_size="20kB")
    bart.float()
    with torch.no_grad():
        bart.model.encoder.layers[0].fc1.weight.add_(1.0)
    before = weights_of(bart)
    restore_renamed(bart, tmp_path / "bart")
    assert_equal(bart.state_dict(), before)
    restore_renamed(bart, tmp_path / "nowhere")  # a checkpoint of another format

    class Grown(hf.ViTForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            self.added = nn.Linear(4, 4)

    class Own(hf.ViTForImageClassification):
        def __init__(self, config, number):
            super().__init__(config)

    vit = hf.ViTForImageClassification(TRAINED["vit"][1])
    vit.save_pretrained(tmp_path / "vit", max_shard_size="20kB")
    grown = Grown(vit.config)
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"2 weights of Grown are not in this checkpoint, first added\.weight"):
        restore_renamed(grown, tmp_path / "vit")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(grown.state_dict()[name], W) for name, W in vit.state_dict().items())
    with pytest.raises(UserError, match=r"have other names in this checkpoint.*Own\.from_pretrained cannot"):
        restore_renamed(Own(vit.config, 3), tmp_path / "vit")
