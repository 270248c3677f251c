"""Which matrices of which model families are targets, what stays dense, and which families are refused."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from nxm import NM, AdmmCallback, UserError, find_targets
from nxm.models.targets import find_stack, find_stacks, left_dense
from tiny_training import trainer_for

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
    with pytest.raises(UserError, match=rf"blocks of {model_class.__name__} have no nn\.Linear layer.*{made_of}"):
        find_targets(model)


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


@pytest.mark.parametrize("name", ["t5", "albert", "xlm"])
def test_such_a_model_ends_in_the_pattern(name, tiny_data, tmp_path):
    torch.manual_seed(0)
    config = FAMILIES[name][1]
    if name == "t5":
        model = hf.T5ForSequenceClassification(config)
        tiny_data = tiny_data.map(lambda row: {"input_ids": [*row["input_ids"][:-1], config.eos_token_id]})
    else:
        classes = {"albert": hf.AlbertForSequenceClassification, "xlm": hf.XLMForSequenceClassification}
        model = classes[name](config)
    trainer_for(model, tiny_data, tmp_path, [AdmmCallback(NM(2, 4))], max_steps=12).train()
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert all(NM(2, 4).contains(W) for W in find_targets(loaded).values())
    assert len(find_targets(loaded)) == FAMILIES[name][3]
