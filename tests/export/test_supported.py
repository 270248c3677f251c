"""Each model is exported, or refused with the reason before a file is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import BertConfig, BertTokenizerFast, PreTrainedModel

from nxm import NM, Unstructured, UserError, find_targets
from nxm.export import onnx as onnx_export
from nxm.export import semi_structured, x86
from nxm.export.formats import export, read_examples
from nxm.export.trained import UNLIMITED, load_trained, outputs
from nxm.sets.saved import write_pattern
from tiny_models import MODELS, SIZES, save_model

LONG = ["a b c d e f g h " * 60, "short ."]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(name: str, **changes: object) -> PreTrainedModel:
    """Return a tiny model of a class of transformers; its config takes BERT's names of sizes, or only the changes."""
    cls = getattr(hf, name)
    own = {"pad_token_id": 0} | changes
    return cls(cls.config_class(**(own if "d_model" in own else SIZES | own)))


def saved(tmp_path: Path, model: PreTrainedModel, *, limited: bool = True) -> Path:
    folder = save_model(tmp_path / "model", model)
    if not limited:
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)  # without model_max_length
    return folder


def refused(folder: Path, to: str, said: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=said):
        export(folder, folder.parent / "deep" / "out", to)
    assert sorted(folder.parent.rglob("*")) == before


# --- works --------------------------------------------------------------------------------------------------------

T5 = {"vocab_size": 64, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}


@pytest.mark.situation("export", "a causal language model (Llama, OPT), whose cache is switched off", "works")
def test_a_causal_model_is_exported_without_its_cache(tmp_path):
    source = load_trained(saved(tmp_path, make("LlamaForCausalLM")))
    assert source.model.config.use_cache
    path = tmp_path / "model.onnx"
    onnx_export.write_onnx(source, path)
    assert [output.name for output in onnx_export.open_session(path).get_outputs()] == ["logits"]
    assert source.model.config.use_cache  # as it was
    semi_structured.write_2of4(source, tmp_path / "packed")
    assert load_trained(tmp_path / "packed").model.config.use_cache


def test_a_cache_stays_out_of_programs_in_integers(tmp_path):
    source = load_trained(saved(tmp_path, make("LlamaForCausalLM")))
    program = x86._quantised(source, LONG)
    assert len(program.graph_signature.user_outputs) == 1


@pytest.mark.situation("export", "RoBERTa and a text as long as it reads: 514 positions are 512 tokens", "works")
@pytest.mark.parametrize("padding", [0, 1])
def test_positions_that_start_behind_the_padding_are_counted(tmp_path, padding):
    model = make("RobertaForSequenceClassification", pad_token_id=padding)
    source = load_trained(saved(tmp_path, model, limited=False))
    assert source.max_length == SIZES["max_position_embeddings"] - padding - 1
    inputs = source.encode(LONG)
    assert inputs["input_ids"].shape[1] == source.max_length
    outputs(source.model, inputs)  # a position more would be an IndexError


@pytest.mark.situation("export", "no model_max_length in the tokenizer's config", "works")
def test_without_the_tokenizers_limit_the_models_counts(tmp_path):
    source = load_trained(saved(tmp_path, MODELS["bert"](), limited=False))
    assert source.max_length == SIZES["max_position_embeddings"]


@pytest.mark.situation("export", "a model without a limit on its length (T5's encoder) to torch-2of4", "works")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("T5ForTokenClassification", T5),
        (
            "XLNetForSequenceClassification",
            {"vocab_size": 64, "d_model": 64, "n_layer": 2, "n_head": 2, "d_inner": 128},
        ),
    ],
)
def test_models_without_any_limit_read_texts_of_any_length(tmp_path, name, sizes):
    source = load_trained(saved(tmp_path, make(name, **sizes), limited=False))
    assert source.max_length == UNLIMITED
    assert source.encode(LONG)["input_ids"].shape[1] > 400
    semi_structured.write_2of4(source, tmp_path / "packed", examples=LONG)


@pytest.mark.situation("export", "a model saved in shards", "works")
def test_shards_are_exported(tmp_path, capsys):
    model = MODELS["bert"]()
    folder = save_model(tmp_path / "model", model)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    export(folder, tmp_path / "model.onnx", "onnx")
    export(folder, tmp_path / "packed", "torch-2of4")
    assert "% of the source" in capsys.readouterr().out


@pytest.mark.situation("export", "two patterns in one model: those that are 2:4 are packed", "works")
def test_of_several_patterns_those_that_are_2of4_are_packed(tmp_path):
    model = MODELS["bert"]()
    targets = find_targets(model)
    parts = {NM(2, 4): "attention.self", NM(1, 4): "intermediate", Unstructured(0.5): "output"}
    claimed: dict = {}
    for constraint, part in parts.items():
        claimed[constraint] = [name for name in targets if part in name]
        with torch.no_grad():
            for name in claimed[constraint]:
                targets[name].copy_(constraint.project(targets[name]).Z)
    folder = save_model(tmp_path / "model", model, pattern=None)
    for constraint, names in claimed.items():
        write_pattern(model.config, constraint, names)
    model.save_pretrained(folder)
    source = load_trained(folder)
    dense = semi_structured.write_2of4(source, tmp_path / "packed")
    assert dense == dict.fromkeys(claimed[Unstructured(0.5)], f"it is {Unstructured(0.5)}, not 2:4")
    plan = load_trained(tmp_path / "packed").model.config.nxm_2of4
    assert plan["matrices"] == claimed[NM(2, 4)] + claimed[NM(1, 4)]


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a tokenizer without a padding token (many Llama and GPT models)", "refused")
def test_a_tokenizer_that_cannot_pad_is_refused_with_the_remedy(tmp_path):
    folder = saved(tmp_path, MODELS["bert"]())
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    refused(folder, "onnx", r"the tokenizer has no padding token, .* set tokenizer\.pad_token and model\.config")


@pytest.mark.situation("export", "a model of sound (Whisper)", "refused")
def test_a_model_of_sound_is_refused_as_such(tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8, "vocab_size": 60}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    model = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**sizes, **heads, pad_token_id=0))
    model.save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", "onnx", "WhisperFor.* is not supported .*, because it reads input_features")


@pytest.mark.situation("export", "a format whose package is not installed", "refused")
@pytest.mark.parametrize(
    ("to", "module", "package"), [("openvino-int8", "openvino", "openvino"), ("onnx", "onnx", "onnxruntime")]
)
def test_a_package_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch, to, module, package):
    monkeypatch.delitem(sys.modules, f"nxm.export.{module}", raising=False)
    monkeypatch.delattr(f"nxm.export.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"--to {to} needs the package {package}: pip install 'nxm\[export\]'"
    refused(saved(tmp_path, MODELS["bert"]()), to, said)


@pytest.mark.situation("export", "multiple choice", "refused")
def test_multiple_choice_is_refused(tmp_path):
    folder = saved(tmp_path, hf.BertForMultipleChoice(BertConfig(**SIZES)))
    refused(folder, "onnx", "BertForMultipleChoice is not supported .*, because it reads several sentences")


@pytest.mark.situation("export", "a model that generates from another text (T5, BART)", "refused")
def test_a_model_that_needs_more_than_sentences_is_refused(tmp_path):
    folder = saved(tmp_path, make("T5ForConditionalGeneration", **T5))
    refused(folder, "torch-2of4", "T5ForCond.* is not supported .*, because it cannot be run on input_ids")


@pytest.mark.situation("export", "Longformer to ONNX", "refused")
def test_what_the_exporter_cannot_trace_is_refused_in_a_line(tmp_path, capfd):
    folder = saved(tmp_path, make("LongformerForSequenceClassification", attention_window=[4, 4]))
    refused(folder, "onnx", "Longformer.* is not supported .*, because the ONNX model cannot be made or run: Could not")
    assert "torch.ops" not in capfd.readouterr().err  # half of the graph


@pytest.mark.situation("export", "MobileBERT to torch-int8", "refused")
def test_what_cannot_be_quantised_is_refused_in_a_line(tmp_path):
    sizes = {"embedding_size": 64, "intra_bottleneck_size": 32}
    folder = saved(tmp_path, make("MobileBertForSequenceClassification", **sizes))
    refused(folder, "torch-int8", "MobileBert.* is not supported .*, because the INT8 program cannot be made or run: ")


@pytest.mark.situation("export", "a model over 2 GB to ONNX", "refused")
@pytest.mark.parametrize("to", ["onnx", "onnx-int8"])
def test_more_than_an_onnx_file_holds_is_refused_before_work_starts(tmp_path, monkeypatch, to):
    monkeypatch.setattr(onnx_export, "LARGEST", 10_000)
    monkeypatch.setattr(onnx_export, "_to_onnx", lambda *arguments: pytest.fail("work has started"))
    refused(saved(tmp_path, MODELS["bert"]()), to, "because an ONNX file holds at most 2 GiB and the weights take")


@pytest.mark.situation("export", "a model whose outputs are NaN", "refused")
@pytest.mark.parametrize("to", ["onnx", "torch-int8", "torch-2of4"])
def test_outputs_that_are_nan_are_the_models_fault(tmp_path, to):
    model = MODELS["bert"]()
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    refused(saved(tmp_path, model), to, r"the model's own outputs \(logits\) have NaN or infinite entries; did its")


def test_sparse_weights_that_are_nan_are_named(tmp_path):
    model = MODELS["bert"]()
    folder = saved(tmp_path, model)
    name, W = next(iter(find_targets(model).items()))
    W.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    refused(folder, "torch-2of4", f"{name} has NaN or infinite weights; did its training diverge?")


@pytest.mark.situation("export", "a head whose weights are not in the file", "refused")
def test_a_head_without_weights_is_not_made_up(tmp_path):
    model = MODELS["bert"]()
    folder = saved(tmp_path, model)
    model.bert.save_pretrained(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"BertModel"', '"BertForSequenceClassification"'))
    refused(folder, "onnx", "no tensor 'classifier.bias' in its files for BertForSequenceClassification")


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "--texts with lines that hold U+2028 or U+0085, a byte-order mark or CRLF", "works")
def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "texts"
    path.write_bytes("a\u2028b\tc\nd\u0085\u000be\tf\n".encode())
    assert read_examples(path) == [("a\u2028b", "c"), ("d\u0085\u000be", "f")]
    path.write_bytes("\ufeffa b\r\nc d\r\n".encode())
    assert read_examples(path) == ["a b", "c d"]
