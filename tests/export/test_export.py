"""Exports give the same outputs as their source, obey its pattern and are not written if they are wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertForSequenceClassification

from nxm.errors import UserError
from nxm.export import int8, semi_structured, x86
from nxm.export import onnx as onnx_export
from nxm.export.formats import read_examples
from nxm.export.trained import EXAMPLES, Example, load_trained, outputs, relative_error
from nxm.models.targets import find_targets
from nxm.sets.integers import Integers
from nxm.sets.nm import NM
from tiny_models import MODELS, NO_COMPILER, SIZES, save_model

NO_GPU = semi_structured.why_no_gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path / "model", MODELS["bert"]())


# --- ONNX --------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "BERT, DistilBERT, ELECTRA, MPNet and RoBERTa to ONNX", "works")
@pytest.mark.parametrize("name", MODELS)
def test_onnx_answers_as_the_model_does_at_any_batch_and_length(name, tmp_path):
    torch.manual_seed(0)
    source = load_trained(save_model(tmp_path / "model", MODELS[name]()))
    path = tmp_path / "out" / "model.onnx"
    assert onnx_export.write_onnx(source, path) <= onnx_export.ONNX_TOLERANCE
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]  # nothing temporary is left
    assert onnx_export.is_own(path)
    names = [output.name for output in onnx_export.open_session(path).get_outputs()]
    assert names == (["start_logits", "end_logits"] if name == "bert-qa" else ["logits"])
    for examples in (EXAMPLES[:1], EXAMPLES[2:5], ["a", "one sentence alone"]):
        inputs = source.encode(examples)
        expected = outputs(source.model, inputs)
        found = onnx_export.run_onnx(path, inputs)
        for output in names:
            np.testing.assert_allclose(found[output], expected[output], atol=1e-4, rtol=1e-4)


def test_int8_weights_keep_the_pattern_and_take_a_fraction_of_the_room(sparse, tmp_path):
    source = load_trained(sparse)
    full, small = tmp_path / "full.onnx", tmp_path / "small.onnx"
    onnx_export.write_onnx(source, full)
    error = onnx_export.write_int8(source, small)
    assert 0 < error <= onnx_export.INT8_TOLERANCE
    assert small.stat().st_size < 0.5 * full.stat().st_size
    assert onnx_export.is_own(small)
    integers = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(small).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    # ONNX has a matrix as (in, out); the targets are those with 2:4 columns, all else is dense.
    shapes = sorted(
        W.shape for W in integers if W.shape[0] % 4 == 0 and NM(2, 4).contains(torch.from_numpy(W.T.copy()))
    )
    assert shapes == sorted(tuple(reversed(W.shape)) for W in find_targets(source.model).values())


def test_what_differs_is_not_written(sparse, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "ONNX_TOLERANCE", 0.0)
    path = tmp_path / "deep" / "model.onnx"
    with pytest.raises(UserError, match=r"model.onnx: not written: outputs of the ONNX model differ .* 0e\+00 allowed"):
        onnx_export.write_onnx(load_trained(sparse), path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


# --- PyTorch's integers for CPUs ----------------------------------------------------------------------------------


@pytest.mark.situation("export", "BERT, DistilBERT, ELECTRA, MPNet and RoBERTa to torch-int8", "works")
@pytest.mark.parametrize("name", MODELS)
def test_any_architecture_becomes_a_program_whose_linear_layers_are_integers(name, tmp_path):
    torch.manual_seed(0)
    source = load_trained(save_model(tmp_path / "model", MODELS[name]()))
    program = x86._quantised(source, EXAMPLES)
    integers = [W for W in program.state_dict.values() if W.dtype == torch.int8]
    layers = [module for module in source.model.modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(W.shape for W in integers) == sorted(layer.weight.shape for layer in layers)


def test_the_ranges_of_activations_are_those_of_the_sentences_given(sparse):
    source = load_trained(sparse)

    def scales(examples: Sequence[Example]) -> list[float]:
        nodes = x86._quantised(source, examples).graph.nodes
        return [node.args[1] for node in nodes if "quantize_per_tensor" in str(node.target)]

    assert scales(EXAMPLES) == scales(EXAMPLES)
    assert scales(EXAMPLES) != scales(["It is cold.", "Nobody knows."])


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_a_program_in_integers_answers_at_any_batch_and_length_and_keeps_the_pattern(sparse, tmp_path):
    source = load_trained(sparse)
    path = tmp_path / "out" / "model.pt2"
    error = x86.write_x86(source, path)
    assert 0 < error <= x86.X86_TOLERANCE
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pt2"]
    assert x86.is_own(path)
    with pytest.raises(UserError, match=r"model\.pt2: exists and was written by an earlier export, which --force"):
        x86.write_x86(source, path)
    program = x86.open_x86(path)
    for examples in (EXAMPLES[:1], EXAMPLES[2:5], ["a", "one sentence alone"]):
        inputs = source.encode(examples)
        assert relative_error(program(inputs), outputs(source.model, inputs)) <= x86.X86_TOLERANCE
    integers = [W for W in torch.export.load(path).state_dict.values() if W.dtype == torch.int8]
    targets = list(find_targets(source.model).values())
    assert sorted(W.shape for W in integers if NM(2, 4).contains(W.float())) == sorted(W.shape for W in targets)
    floats = sum(W.numel() for W in torch.export.load(path).state_dict.values() if W.dtype == torch.float32)
    # fp32 weights that integers replaced are not stored beside them
    assert floats < sum(W.numel() for W in source.model.parameters()) - sum(W.numel() for W in targets) + 100


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_a_file_that_is_no_program_is_named(sparse, tmp_path):
    path = tmp_path / "model.pt2"
    x86.write_x86(load_trained(sparse), path)
    for content in (path.read_bytes()[:500], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.pt2: no exported program"):
            x86.open_x86(path)
    with pytest.raises(UserError, match="absent: no exported program"):
        x86.open_x86(tmp_path / "absent")


# --- the source --------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a model that was trained on and left its pattern", "refused")
def test_a_model_that_left_its_pattern_is_refused_by_name(tmp_path):
    model = MODELS["bert"]()
    folder = save_model(tmp_path / "model", model)
    first, W = next(iter(find_targets(model).items()))
    W.data[0, :4] = 1.0
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=f"1 of 12 matrices are not 2:4, first {first}"):
        load_trained(folder)


@pytest.mark.situation("export", "sparse weights with -0.0", "works")
def test_minus_zero_is_plus_zero_after_loading(tmp_path):
    model = MODELS["bert"]()
    folder = save_model(tmp_path / "model", model)
    name, W = next(iter(find_targets(model).items()))
    W.data[W.data == 0.0] = -0.0
    assert torch.signbit(W.data[W.data == 0.0]).all()
    model.save_pretrained(folder)
    loaded = dict(load_trained(folder).model.named_parameters())[name]
    assert not torch.signbit(loaded[loaded == 0.0]).any()
    assert torch.equal(loaded, W)


@pytest.mark.situation("export", "a dense model to ONNX", "works")
@pytest.mark.situation("export", "a dense model to torch-2of4", "refused")
def test_a_dense_model_can_be_written_as_onnx_but_not_packed(tmp_path):
    source = load_trained(save_model(tmp_path / "model", MODELS["bert"](), pattern=None))
    assert onnx_export.write_onnx(source, tmp_path / "model.onnx") <= onnx_export.ONNX_TOLERANCE
    with pytest.raises(UserError, match="names no sparsity pattern"):
        semi_structured.write_2of4(source, tmp_path / "packed")


@pytest.mark.situation("export", "a folder that is missing, damaged or holds a class of one's own", "refused")
def test_folders_that_are_no_models_are_named(sparse, tmp_path):
    with pytest.raises(UserError, match=r"absent: no model folder here"):
        load_trained(tmp_path / "absent")
    config = (sparse / "config.json").read_text()
    (sparse / "config.json").write_text(config.replace("BertForSequenceClassification", "Path"))
    with pytest.raises(UserError, match="the model class 'Path', which transformers does not have"):
        load_trained(sparse)
    (sparse / "config.json").write_text(config[:50])
    with pytest.raises(UserError, match=r"config\.json: no config of a model"):
        load_trained(sparse)
    (sparse / "config.json").write_text(config)
    (sparse / "model.safetensors").write_bytes((sparse / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or truncated"):
        load_trained(sparse)


def test_relative_error_is_of_the_worst_output_and_nan_is_infinitely_wrong():
    reference = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    assert relative_error({"a": np.array([3.0, 4.5]), "b": np.array([1.01])}, reference) == pytest.approx(0.1)
    assert relative_error({"a": np.array([3.0, np.nan]), "b": np.array([1.0])}, reference) == float("inf")


# --- PyTorch's 2:4 kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", semi_structured.DTYPES)
def test_a_packed_folder_is_a_plain_folder_in_half_precision_that_says_what_to_pack(dtype, sparse, tmp_path):
    source = load_trained(sparse)
    dense = semi_structured.write_2of4(source, tmp_path / "packed", dtype)
    assert dense == {}
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "packed"}
    copy = BertForSequenceClassification.from_pretrained(tmp_path / "packed", dtype="auto")
    assert copy.config.nxm_2of4 == {"dtype": dtype, "matrices": list(find_targets(source.model))}
    for name, W in find_targets(source.model).items():
        half = dict(copy.named_parameters())[name]
        assert half.dtype == semi_structured.STORED[dtype]
        assert torch.equal(half, W.to(half.dtype))
        assert NM(2, 4).contains(half)


def test_only_what_is_worth_it_is_packed(sparse, tmp_path):
    wide = semi_structured.write_2of4(load_trained(sparse), tmp_path / "packed", only=lambda out, inside: out == 128)
    assert len(wide) == 10
    assert set(wide.values()) == {"its dense product is faster"}
    packed = BertForSequenceClassification.from_pretrained(tmp_path / "packed").config.nxm_2of4["matrices"]
    assert packed == [f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(2)]


def test_matrices_that_no_kernel_takes_stay_dense_with_the_reason(tmp_path):
    model = BertForSequenceClassification(BertConfig(**SIZES | {"hidden_size": 40, "intermediate_size": 80}))
    dense = semi_structured.write_2of4(load_trained(save_model(tmp_path / "model", model)), tmp_path / "packed")
    assert len(dense) == 12
    assert dense["bert.encoder.layer.0.output.dense.weight"] == "cuSPARSELt takes multiples of 16 x 16, not 40 x 80"


@pytest.mark.situation("export", "a 4:8 model to torch-2of4", "refused")
@pytest.mark.situation("export", "a 1:4 model to torch-2of4", "works")
def test_another_pattern_is_refused_unless_it_is_2of4_as_well(tmp_path):
    narrow = load_trained(save_model(tmp_path / "narrow", MODELS["bert"](), NM(1, 4)))
    assert semi_structured.write_2of4(narrow, tmp_path / "packed") == {}
    wide = load_trained(save_model(tmp_path / "wide", MODELS["bert"](), NM(4, 8)))
    with pytest.raises(UserError, match="matrices are not 2:4"):
        semi_structured.write_2of4(wide, tmp_path / "wide-packed")


@pytest.mark.situation("export", "a 2:4 model of integers to torch-2of4", "works", since="0.2")
def test_of_integers_the_zeros_alone_are_claimed_in_half_precision(tmp_path):
    """A code times its scale is rounded in half precision, so that the grid no longer holds."""
    constraint = Integers(4, mask=NM(2, 4))
    source = load_trained(save_model(tmp_path / "integers", MODELS["bert"](), constraint))
    assert semi_structured.write_2of4(source, tmp_path / "packed") == {}
    ((claimed, names),) = load_trained(tmp_path / "packed").claims
    assert claimed == NM(2, 4)
    assert set(names) == set(source.sparse)


def test_without_a_gpu_packing_says_why_not(sparse, tmp_path):
    semi_structured.write_2of4(load_trained(sparse), tmp_path / "packed")
    with pytest.raises(UserError, match="no 2:4 kernel in PyTorch for cpu"):
        semi_structured.load_2of4(tmp_path / "packed", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--auto: no 2:4 kernel in PyTorch for cpu"):
            semi_structured.is_faster(64, 64, 128, "bf16")


def test_an_old_gpu_has_no_2of4_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert semi_structured.why_no_gpu(torch.device("cuda")) == (
        "2:4 kernels need compute capability 8.0, this GPU has 7.5"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert semi_structured.why_no_gpu(torch.device("cuda")) == "this PyTorch was built without cuSPARSELt"
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert semi_structured.why_no_gpu(torch.device("cuda")) is None


def test_a_packed_model_must_be_as_exact_as_its_dense_self():
    exact, dense = {"logits": np.array([1.0, 2.0])}, {"logits": np.array([1.01, 2.0])}
    semi_structured.assert_sparse_is_as_exact({"logits": np.array([1.0, 2.015])}, dense, exact, "model")
    with pytest.raises(UserError, match="model: the 2:4 output is wrong"):
        semi_structured.assert_sparse_is_as_exact({"logits": np.array([1.0, 2.1])}, dense, exact, "model")


# --- 8-bit integers ----------------------------------------------------------------------------------------------


def test_integers_are_within_half_a_step_and_zeros_stay_zeros():
    torch.manual_seed(0)
    W = NM(2, 4).project(torch.randn(64, 128)).Z * torch.logspace(-3, 3, 64)[:, None]
    W[7] = 0.0
    integers, scale = int8.quantise(W)
    assert integers.dtype == torch.int8
    assert (integers.abs().amax(dim=1)[W.abs().amax(dim=1) > 0] == 127).all()
    assert ((integers * scale - W).abs() <= 0.5001 * scale).all()
    assert NM(2, 4).contains(integers.float())
    assert (integers[7] == 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_an_integer_layer_is_the_product_of_integers_and_near_its_source(bias):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32, bias=bias), torch.randn(3, 5, 64)
    found = int8.Int8Linear(linear)(x)
    (W, s_W), (X, s_X) = int8.quantise(linear.weight.data), int8.quantise(x.reshape(15, 64))
    exact = (X.double() @ W.double().t()) * (s_X.double() * s_W.double().t())
    exact = exact + linear.bias.data if bias else exact
    torch.testing.assert_close(found, exact.float().reshape(3, 5, 32))
    assert 0 < relative_error({"y": found.detach().numpy()}, {"y": linear(x).detach().numpy()}) < 0.02
    assert int8.Int8Linear(linear.to(torch.bfloat16))(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_integers_that_change_the_answers_too_much_are_not_written(sparse, tmp_path, monkeypatch):
    monkeypatch.setattr(semi_structured, "INT8_TOLERANCE", 0.0)
    with pytest.raises(UserError, match="outputs of the int8 model differ"):
        semi_structured.write_2of4(load_trained(sparse), tmp_path / "packed", "int8")
    assert not (tmp_path / "packed").exists()


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))
def test_a_gpu_answers_in_integers_as_the_model_does(sparse, tmp_path):
    source = load_trained(sparse)
    semi_structured.write_2of4(source, tmp_path / "packed", "int8")
    packed = semi_structured.load_2of4(tmp_path / "packed")
    inputs = source.encode(EXAMPLES)
    assert relative_error(outputs(packed, inputs), outputs(source.model, inputs)) < semi_structured.INT8_TOLERANCE


@pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_gpu_answers_as_the_model_does(dtype, sparse, tmp_path):
    source = load_trained(sparse)
    semi_structured.write_2of4(source, tmp_path / "packed", dtype)
    packed = semi_structured.load_2of4(tmp_path / "packed")
    inputs = source.encode(EXAMPLES)
    assert relative_error(outputs(packed, inputs), outputs(source.model, inputs)) < semi_structured.HALF_TOLERANCE


# --- the command -------------------------------------------------------------------------------------------------


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nxm", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_and_says_what(sparse, tmp_path):
    texts = tmp_path / "texts.tsv"
    texts.write_text("a plane\tan air plane\n\nit is cold\tit rains\n")
    done = export(sparse, tmp_path / "model.onnx", "--to", "onnx", "--texts", texts)
    assert done.returncode == 0, done.stderr
    assert "of the source" in done.stdout
    assert "agree with the model's on 2 examples" in done.stdout
    done = export(sparse, tmp_path / "packed", "--to", "torch-2of4")
    assert done.returncode == 0, done.stderr
    assert "12 of 12 matrices are packed" in done.stdout


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_the_command_writes_a_program_without_its_packages_warnings(sparse, tmp_path):
    texts = tmp_path / "texts.tsv"
    texts.write_text("a plane\tan air plane\nit is cold\tit rains\n")
    done = export(sparse, tmp_path / "model.pt2", "--to", "torch-int8", "--texts", texts)
    assert done.returncode == 0, done.stderr
    assert "agree with the model's on 2 examples" in done.stdout
    assert (tmp_path / "model.pt2").is_file()
    assert "torchao" not in done.stderr


def test_the_command_says_what_is_wrong(sparse, tmp_path):
    assert "error: --auto goes with" in export(sparse, tmp_path / "x", "--to", "onnx", "--auto").stderr
    assert "error: --batch and --length are" in export(sparse, tmp_path / "x", "--to", "onnx", "--batch", 1).stderr
    assert "error: --dtype is for" in export(sparse, tmp_path / "x", "--to", "onnx", "--dtype", "bf16").stderr
    auto = ("--auto", "--batch", 1, "--length", 8)
    if not torch.cuda.is_available():
        done = export(sparse, tmp_path / "x", "--to", "torch-2of4", *auto)
        assert done.returncode == 1
        assert "no 2:4 kernel in PyTorch for cpu" in done.stderr
    assert not (tmp_path / "x").exists()


def test_texts_are_lines_or_pairs_and_never_both(tmp_path):
    path = tmp_path / "texts"
    path.write_text("one\n\ntwo\n")
    assert read_examples(path) == ["one", "two"]
    path.write_text("one\tother\n")
    assert read_examples(path) == [("one", "other")]
    path.write_text("one\tother\ntwo\n")
    with pytest.raises(UserError, match="some lines have a tab"):
        read_examples(path)
    path.write_text(" \n")
    with pytest.raises(UserError, match="has no line with text"):
        read_examples(path)
    with pytest.raises(UserError, match="cannot be read as text"):
        read_examples(tmp_path / "absent")


def test_examples_are_read_by_any_tokenizer_as_pairs(sparse):
    inputs = load_trained(sparse).encode(EXAMPLES)
    assert inputs["input_ids"].shape[0] == len(EXAMPLES)
    assert inputs["input_ids"].shape[1] <= 64
