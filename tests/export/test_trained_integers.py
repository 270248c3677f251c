"""Exports of models that were trained on integers have these integers: codes and scales are not made again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from transformers import BertConfig, BertForSequenceClassification

from nxm import NM, Integers, UserError, find_targets
from nxm.check import check
from nxm.export import onnx as onnx_export
from nxm.export import x86
from nxm.export.codes import Codes, trained_codes
from nxm.export.formats import export
from nxm.export.int8 import Int8Linear
from nxm.export.packed import write_packed
from nxm.export.trained import EXAMPLES, Trained, load_trained, outputs, relative_error
from nxm.models.load import load
from nxm.sets.saved import write_pattern, write_patterns
from tiny_models import MODELS, NO_COMPILER, SIZES, save_model

INT4 = Integers(4, NM(2, 4))


def trained_on(folder: Path, constraint: Integers | NM, kind: str = "bert") -> Trained:
    torch.manual_seed(0)
    return load_trained(save_model(folder / "model", MODELS[kind](), constraint, spread=3.0))


def weights_of(trained: Trained) -> dict[str, np.ndarray]:
    return {name: W.detach().numpy() for name, W in trained.model.named_parameters()}


def assert_trained(found: Mapping[str, tuple[np.ndarray, np.ndarray]], trained: Trained, bits: int) -> None:
    """Assert that codes and scales are in range and give the model's own matrices to the bit."""
    weights = weights_of(trained)
    assert found.keys() == find_targets(trained.model).keys()
    for name, (codes, scales) in found.items():
        assert codes.dtype == np.int8
        assert np.abs(codes).max() <= 2 ** (bits - 1) - 1
        assert scales.shape == (len(codes),)
        assert np.array_equal(codes * scales[:, None], weights[name])


@pytest.mark.parametrize("constraint", [INT4, Integers(8), Integers(2, NM(1, 4))], ids=str)
def test_codes_times_scales_are_the_model(constraint, tmp_path):
    trained = trained_on(tmp_path, constraint)
    found = trained_codes(trained)
    assert_trained({name: (own.codes, own.scales) for name, own in found.items()}, trained, constraint.bits)
    assert all(np.array_equal(own.W, weights_of(trained)[name]) for name, own in found.items())
    assert all(own.bits == constraint.bits for own in found.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_of_2of4_in_8_bits_the_integers_are_made_again(bits, tmp_path):
    """The exception that docs/export.md and docs/integers.md name."""
    trained = trained_on(tmp_path, Integers(bits, NM(2, 4)))
    export(trained.folder, tmp_path / "half", "torch-2of4", dtype="int8")
    half = load_trained(tmp_path / "half")
    assert [constraint for constraint, _ in half.claims] == [NM(2, 4)]
    differing = []
    for name, own in trained_codes(trained).items():
        layer = Int8Linear(half.model.get_submodule(name.removesuffix(".weight")))
        matrix, W = layer.matrix.numpy(), (layer.matrix * layer.scale.t()).numpy()
        assert np.array_equal(matrix == 0, own.codes == 0)
        assert np.linalg.norm(W - own.W) < 0.01 * np.linalg.norm(own.W)
        differing.append(not np.array_equal(matrix, own.codes))
    assert all(differing)
    for page in ("export.md", "integers.md"):
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        assert re.search(r"except in `torch-2of4`|`torch-2of4` is the exception", text), page


# --- Several sets in one model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Trained:
    """A model whose matrices have 2:4 with 8 and with 4 bits, 4 bits alone, 2:4 alone, and no set, in turn."""
    torch.manual_seed(0)
    model, folder = MODELS["bert"](), tmp_path_factory.mktemp("mixed")
    sets = (Integers(8, NM(2, 4)), INT4, Integers(4), NM(2, 4), None)
    save_model(folder / "model", model, None, spread=3.0)
    claims: dict[Integers | NM, list[str]] = {}
    with torch.no_grad():
        for place, (name, W) in enumerate(find_targets(model).items()):
            if (constraint := sets[place % len(sets)]) is not None:
                W.copy_(constraint.project(W).Z)
                claims.setdefault(constraint, []).append(name)
    write_patterns(model.config, claims.items())
    model.save_pretrained(folder / "model")
    return load_trained(folder / "model")


def claimed_bits(trained: Trained) -> dict[str, int]:
    sets = {name: constraint for constraint, names in trained.claims for name in names}
    return {name: constraint.bits for name, constraint in sets.items() if isinstance(constraint, Integers)}


def assert_codes_are_the_models(found: Mapping[str, tuple[np.ndarray, np.ndarray]], trained: Trained) -> None:
    weights, bits = weights_of(trained), claimed_bits(trained)
    assert bits.keys() <= found.keys()
    for name, width in bits.items():
        codes, scales = found[name]
        assert np.abs(codes).max() <= 2 ** (width - 1) - 1
        assert np.array_equal(codes * scales[:, None], weights[name])


@pytest.mark.situation("export", "a model with another set for each matrix, some dense: packed and checked", "works")
def test_a_model_of_several_sets_is_packed_to_the_bit_and_checked(mixed, tmp_path, capsys):
    write_packed(mixed.folder, tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert all(np.array_equal(W.detach().numpy(), weights_of(mixed)[name]) for name, W in again.named_parameters())
    for folder in (mixed.folder, tmp_path / "packed"):
        assert check(folder)
        printed = capsys.readouterr().out
        for text, count in (("2:4 int8", 3), ("2:4 int4", 3), ("int4", 2), ("2:4", 2)):
            assert f"{count} of {count} matrices obey {text}\n" in printed
        assert "8 matrices of integers take" in printed
        assert "3 other large matrices" in printed  # the two without a set, and the pooler


def test_exports_of_a_model_of_several_sets_have_each_matrixs_own_codes(mixed, tmp_path):
    codes = {name: (own.codes, own.scales) for name, own in trained_codes(mixed).items()}
    assert codes.keys() == claimed_bits(mixed).keys()
    assert_codes_are_the_models(codes, mixed)
    assert 0 < onnx_export.write_int8(mixed, tmp_path / "int8.onnx") <= onnx_export.INT8_TOLERANCE
    found = onnx_export.read_codes(tmp_path / "int8.onnx")
    assert_codes_are_the_models(found, mixed)
    onnx_export.write_weight_only(mixed, tmp_path / "weights.onnx")
    assert_codes_are_the_models(onnx_export.read_codes(tmp_path / "weights.onnx"), mixed)


def test_the_program_and_openvino_have_each_matrixs_own_codes_of_several_sets(mixed, tmp_path):
    expected = {own.codes.tobytes() for own in trained_codes(mixed).values()}
    assert {codes.tobytes() for codes, _ in x86.read_codes(x86._quantised(mixed, EXAMPLES))} == expected
    openvino = pytest.importorskip("nxm.export.openvino")
    assert 0 < openvino.write_int8(mixed, tmp_path / "small") <= openvino.INT8_TOLERANCE
    found = openvino.read_codes(tmp_path / "small")
    assert found.keys() == claimed_bits(mixed).keys()
    assert_codes_are_the_models(found, mixed)


def test_2of4_packs_the_matrices_with_these_zeros_and_names_the_others(mixed, tmp_path):
    export(mixed.folder, tmp_path / "half", "torch-2of4")
    half = load_trained(tmp_path / "half")
    sets = {name: constraint for constraint, names in mixed.claims for name in names}
    sparse = {name for name, own in sets.items() if own.zero_patterns == NM(2, 4)}
    assert set(half.model.config.nxm_2of4["matrices"]) == sparse
    assert {name for _, names in half.claims for name in names} == sparse


def test_a_model_without_integers_has_no_codes(tmp_path):
    assert trained_codes(trained_on(tmp_path, NM(2, 4))) == {}


# --- ONNX, 8-bit products -----------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a model trained on integers to onnx-int8: its own codes and scales", "works")
@pytest.mark.parametrize(
    ("kind", "constraint"),
    [("bert", INT4), ("bert", Integers(8)), ("distilbert", Integers(3, NM(2, 4))), ("mpnet", INT4)],
    ids=str,
)
def test_onnx_in_8_bits_has_the_trained_codes_and_rounds_no_weight(kind, constraint, tmp_path):
    trained = trained_on(tmp_path, constraint, kind)
    path = tmp_path / "model.onnx"
    assert 0 < onnx_export.write_int8(trained, path) <= onnx_export.INT8_TOLERANCE
    assert_trained(onnx_export.read_codes(path), trained, constraint.bits)
    model = onnx.load(path)
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert {node.input[1].removesuffix(".codes") for node in products} == set(find_targets(trained.model))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in products:
        assert not tensors[node.input[3]].any()  # zero points of the weights
    # no other weight was rounded: embeddings and head are those of the model
    words = next(W for name, W in weights_of(trained).items() if name.endswith("word_embeddings.weight"))
    assert any(np.array_equal(tensor, words) for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim == 2} <= {
        np.dtype("float32"),
        np.dtype("int8"),
        np.dtype("int64"),
    }


def test_rounding_anew_would_have_changed_the_codes(tmp_path):
    """Guards the test above: ONNX Runtime's own scale is another one, since few rows reach the code 127."""
    trained = trained_on(tmp_path, Integers(8))
    differ = 0
    for own in trained_codes(trained).values():
        scales = np.abs(own.W).max(axis=1, keepdims=True) / 127
        differ += not np.array_equal(np.rint(own.W / scales), own.codes)
    assert differ > 0


# --- ONNX, weights alone ------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a model trained on integers to onnx-weight-only, in 4 bits or in 8", "works")
@pytest.mark.parametrize(
    ("kind", "constraint", "stored"),
    [
        ("bert", INT4, TensorProto.INT4),
        ("bert", Integers(2), TensorProto.INT4),
        ("roberta", Integers(5, NM(2, 4)), TensorProto.INT8),
    ],
    ids=str,
)
def test_onnx_of_weights_alone_answers_as_the_model_does(kind, constraint, stored, tmp_path):
    trained = trained_on(tmp_path, constraint, kind)
    path = tmp_path / "model.onnx"
    assert onnx_export.write_weight_only(trained, path) <= onnx_export.ONNX_TOLERANCE
    assert_trained(onnx_export.read_codes(path), trained, constraint.bits)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    codes = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".codes")]
    assert {tensor.data_type for tensor in codes} == {stored}
    if stored == TensorProto.INT4:
        assert all(len(tensor.raw_data or tensor.int32_data) > 0 for tensor in codes)
        targets = find_targets(trained.model).values()
        others = sum(W.numel() for W in trained.model.parameters()) - sum(W.numel() for W in targets)
        graph = 60_000  # the rest of the file
        assert path.stat().st_size < sum(W.numel() for W in targets) / 2 + 4 * others + graph
    for examples in (EXAMPLES[:1], EXAMPLES[2:5], ["a", "one sentence alone"]):
        inputs = trained.encode(examples)
        assert relative_error(onnx_export.run_onnx(path, inputs), outputs(trained.model, inputs)) < 1e-4


def test_large_matrices_are_found_as_well(tmp_path):
    """The exporter folds only small transposed matrices itself."""
    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 256, "num_hidden_layers": 1, "intermediate_size": 512}
    folder = save_model(tmp_path / "model", BertForSequenceClassification(BertConfig(**sizes)), INT4, spread=2.0)
    trained = load_trained(folder)
    for write in (onnx_export.write_int8, onnx_export.write_weight_only):
        path = tmp_path / f"{write.__name__}.onnx"
        write(trained, path)
        assert_trained(onnx_export.read_codes(path), trained, 4)


@pytest.mark.situation("export", "a model without trained integers to onnx-weight-only or packed", "refused")
@pytest.mark.parametrize(("constraint", "named"), [(NM(2, 4), "2:4"), (None, "no set")])
def test_what_has_no_integers_is_refused(constraint, named, tmp_path):
    folder = save_model(tmp_path / "model", MODELS["bert"](), constraint)
    with pytest.raises(UserError, match=f"config.json names {named}; this export takes over trained integers"):
        export(folder, tmp_path / "model.onnx", "onnx-weight-only")
    with pytest.raises(UserError, match=r"config.json names .*; a packed checkpoint stores integers"):
        export(folder, tmp_path / "packed", "packed")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_equal_matrices_and_rows_of_zeros_are_taken_over(tmp_path):
    torch.manual_seed(0)
    model = MODELS["bert"]()
    targets = find_targets(model)
    first, second, third = list(targets)[:3]
    with torch.no_grad():
        targets[second].copy_(targets[first])
        targets[third][5] = 0.0
    trained = load_trained(save_model(tmp_path / "model", model, INT4, spread=3.0))
    for write in (onnx_export.write_int8, onnx_export.write_weight_only):
        path = tmp_path / f"{write.__name__}.onnx"
        write(trained, path)
        found = onnx_export.read_codes(path)
        assert {first, second} & found.keys()
        assert not found[third][0][5].any()
        for name, (codes, scales) in found.items():
            assert np.array_equal(codes * scales[:, None], weights_of(trained)[name])
    program = x86._quantised(trained, EXAMPLES)
    assert any(not codes[5].any() and scales[5] == 1.0 for codes, scales in x86.read_codes(program))


def test_of_several_sets_the_integers_are_taken_over_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    model = MODELS["bert"]()
    targets = find_targets(model)
    folder = save_model(tmp_path / "model", model, pattern=None, spread=3.0)
    parts = {INT4: [name for name in targets if "attention" in name], NM(2, 4): []}
    parts[NM(2, 4)] = [name for name in targets if name not in parts[INT4]]
    for constraint, names in parts.items():
        with torch.no_grad():
            for name in names:
                targets[name].copy_(constraint.project(targets[name]).Z)
        write_pattern(model.config, constraint, names)
    model.save_pretrained(folder)
    trained = load_trained(folder)
    path = tmp_path / "model.onnx"
    onnx_export.write_weight_only(trained, path)
    assert onnx_export.read_codes(path).keys() == set(parts[INT4])
    assert len(x86.read_codes(x86._quantised(trained, EXAMPLES))) == len(parts[INT4])


# --- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a model trained on integers to torch-int8: its own codes and scales", "works")
@pytest.mark.parametrize(("kind", "constraint"), [("bert", INT4), ("distilbert", Integers(8))], ids=str)
def test_a_program_has_the_trained_codes_and_quantises_no_other_layer(kind, constraint, tmp_path):
    trained = trained_on(tmp_path, constraint, kind)
    program = x86._quantised(trained, EXAMPLES)
    found = x86.read_codes(program)
    targets = find_targets(trained.model)
    assert len(found) == len(targets)
    matrices = {W.detach().numpy().tobytes() for W in targets.values()}
    assert {(codes * scales[:, None] + np.float32(0)).tobytes() for codes, scales in found} == matrices
    floats = [W for W in program.state_dict.values() if W.dtype == torch.float32 and W.shape == (2, 64)]
    assert any(torch.equal(W, trained.model.classifier.weight) for W in floats)


def test_a_quantiser_that_changes_codes_is_refused(tmp_path, monkeypatch):
    trained = trained_on(tmp_path, INT4)
    honest = trained_codes(trained)
    spoiled = {name: Codes(own.bits, own.codes, own.scales * np.float32(1.5)) for name, own in honest.items()}
    program = x86._quantised(trained, EXAMPLES)
    with pytest.raises(UserError, match="took over the trained integers of 0 of 12 matrices"):
        x86._assert_codes(trained, program, spoiled)


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_a_program_of_trained_integers_runs(tmp_path):
    trained = trained_on(tmp_path, INT4)
    path = tmp_path / "model.pt2"
    assert 0 < x86.write_x86(trained, path) <= x86.X86_TOLERANCE


# --- packed -------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "a packed checkpoint to any format", "works")
def test_a_packed_checkpoint_is_exported_like_its_source(tmp_path, capsys):
    trained = trained_on(tmp_path, INT4)
    export(trained.folder, tmp_path / "packed", "packed")
    assert "% of the source; the same weights" in capsys.readouterr().out
    for folder, out in ((trained.folder, "from-model.onnx"), (tmp_path / "packed", "from-packed.onnx")):
        export(folder, tmp_path / out, "onnx-weight-only")
    one, other = (onnx_export.read_codes(tmp_path / f"from-{name}.onnx") for name in ("model", "packed"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


def test_the_tokenizer_comes_along(tmp_path):
    trained = trained_on(tmp_path, INT4)
    write_packed(trained.folder, tmp_path / "packed")
    again = load_trained(tmp_path / "packed")
    inputs = trained.encode(EXAMPLES)
    assert all(torch.equal(again.encode(EXAMPLES)[name], tensor) for name, tensor in inputs.items())
    assert np.array_equal(outputs(again.model, inputs)["logits"], outputs(trained.model, inputs)["logits"])
