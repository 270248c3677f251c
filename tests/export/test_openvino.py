"""Models in OpenVINO's format answer as the model does, keep trained integers, and run in kernels of 8-bit integers."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from nxm import NM, Integers, UserError, find_targets
from nxm.export.codes import Codes, trained_codes
from nxm.export.trained import EXAMPLES, Trained, load_trained, outputs, relative_error
from nxm.models.shrink import shrink
from nxm.models.structure import Structure, full_structure
from tiny_models import MODELS, SIZES, TWO_OF_FOUR, save_model

openvino = pytest.importorskip("nxm.export.openvino")

INT4 = Integers(4, NM(2, 4))
OTHERS = (EXAMPLES[:1], EXAMPLES[2:5], ["a", "one sentence alone"])  # other batches and lengths than the exporter sees
# by names that the plugin for x86 gives them
INTEGER_KERNELS = platform.machine() == "x86_64" and "INT8" in openvino.ov.Core().get_property(
    "CPU", "OPTIMIZATION_CAPABILITIES"
)


def saved(folder: Path, kind: str = "bert", constraint: NM | Integers | None = TWO_OF_FOUR) -> Trained:
    torch.manual_seed(0)
    return load_trained(save_model(folder / "model", MODELS[kind](), constraint, spread=3.0))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that was trained on integers, with its exports in the folders `full` and `small` beside it."""
    folder = tmp_path_factory.mktemp("integers")
    source = saved(folder, "bert", INT4)
    assert openvino.write_openvino(source, folder / "full") <= openvino.FP32_TOLERANCE
    assert 0 < openvino.write_int8(source, folder / "small") <= openvino.INT8_TOLERANCE
    return source


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- fp32 ---------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "BERT, DistilBERT and RoBERTa to openvino", "works")
@pytest.mark.parametrize("kind", ["bert-qa", "distilbert", "roberta"])
def test_a_folder_answers_as_the_model_does_at_any_batch_and_length(kind, tmp_path):
    source, folder = saved(tmp_path, kind), tmp_path / "out" / "model"
    assert openvino.write_openvino(source, folder) <= openvino.FP32_TOLERANCE
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing temporary is left
    assert {path.name for path in folder.iterdir()} == {openvino.XML, openvino.BIN}
    assert openvino.is_own(folder)
    program = openvino.open_openvino(folder, threads=1)
    assert program.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    names = ["start_logits", "end_logits"] if kind == "bert-qa" else ["logits"]
    for examples in OTHERS:
        inputs = source.encode(examples)
        found, expected = program(inputs), outputs(source.model, inputs)
        assert list(found) == names
        for name in names:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4, rtol=1e-4)
    assert program.integer_products() == program.integer_matrices == 0


@pytest.mark.situation("export", "a shrunk model to openvino and openvino-int8", "works")
@pytest.mark.parametrize("constraint", [None, INT4], ids=str)
def test_a_shrunk_model_is_exported(constraint, tmp_path):
    torch.manual_seed(0)
    dense = MODELS["bert"]()
    whole = full_structure(dense)
    structure = Structure(*(tuple(layer[:1] for layer in layers) for layers in (whole.heads, whole.rows)))
    small = shrink(dense, structure, multiple=8)
    source = load_trained(save_model(tmp_path / "model", small, constraint, spread=3.0))
    for write, bound in ((openvino.write_openvino, 1e-4), (openvino.write_int8, openvino.INT8_TOLERANCE)):
        folder = tmp_path / write.__name__
        assert write(source, folder) <= bound
        inputs = source.encode(OTHERS[1])
        assert relative_error(openvino.open_openvino(folder, 1)(inputs), outputs(source.model, inputs)) <= bound


# --- 8-bit integers -----------------------------------------------------------------------------------------------


def used_codes(folder: Path, shapes: set[tuple[int, ...]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(codes, scales) for codes, scales in openvino.read_codes(folder).values() if codes.shape in shapes]


@pytest.mark.situation("export", "a dense or 2:4 model to openvino-int8", "works")
@pytest.mark.parametrize(("kind", "constraint"), [("bert", None), ("roberta", NM(2, 4))], ids=str)
def test_matrices_and_embeddings_are_rounded_by_row_and_zeros_stay(kind, constraint, tmp_path):
    source, folder = saved(tmp_path, kind, constraint), tmp_path / "small"
    assert 0 < openvino.write_int8(source, folder) <= openvino.INT8_TOLERANCE
    layers = [module for module in source.model.modules() if isinstance(module, nn.Linear)]
    wanted = [module.weight for module in source.model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    found = {codes.tobytes(): (codes, scales) for codes, scales in openvino.read_codes(folder).values()}
    for W in wanted:
        largest = W.detach().abs().amax(dim=1, keepdim=True)
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        expected = (W.detach() / scale).round().to(torch.int8).numpy()
        codes, scales = found[expected.tobytes()]
        np.testing.assert_allclose(scales * np.abs(codes).max(axis=1), largest[:, 0].numpy(), rtol=1e-6)
        assert not codes[W.detach().numpy() == 0].any()
    assert (folder / openvino.BIN).stat().st_size < 0.4 * source.fp32_bytes
    program = openvino.open_openvino(folder, 1)
    for examples in OTHERS:
        inputs = source.encode(examples)
        assert relative_error(program(inputs), outputs(source.model, inputs)) <= openvino.INT8_TOLERANCE
    assert program.integer_matrices == len(layers)
    if INTEGER_KERNELS:
        assert program.integer_products() == len(layers)


@pytest.mark.situation("export", "a model trained on integers to openvino-int8: its own codes and scales", "works")
def test_trained_integers_are_taken_over_and_nothing_else_is_rounded(integers):
    folder = integers.folder.parent / "small"
    found, targets = openvino.read_codes(folder), find_targets(integers.model)
    assert found.keys() == targets.keys()
    for name, (codes, scales) in found.items():
        assert codes.dtype == np.int8
        assert np.abs(codes).max() <= 7
        assert np.array_equal(codes * scales[:, None], targets[name].detach().numpy())
    program = openvino.open_openvino(folder, 1)
    for examples in (*OTHERS, EXAMPLES):
        inputs = integers.encode(examples)
        assert relative_error(program(inputs), outputs(integers.model, inputs)) <= openvino.INT8_TOLERANCE
    assert program.integer_matrices == len(targets)
    if INTEGER_KERNELS:  # of all Linear layers those in fp32 are the ones without integers
        assert program.integer_products() == len(targets)
        layers = sum(isinstance(module, nn.Linear) for module in integers.model.modules())
        assert program.kernels().total() == layers
    constants = [node for node in openvino._read(folder).get_ops() if node.get_type_name() == "Constant"]
    words = integers.model.get_input_embeddings().weight.detach().numpy()
    assert any(np.array_equal(node.data, words) for node in constants if list(node.shape) == list(words.shape))


def test_equal_matrices_and_rows_of_zeros_are_taken_over(tmp_path):
    torch.manual_seed(0)
    model = MODELS["bert"]()
    targets = find_targets(model)
    # of other layers: two equal products of the same input would become one
    first, second = [name for name in targets if name.endswith("query.weight")]
    third = next(name for name in targets if name.endswith("output.dense.weight"))
    with torch.no_grad():
        targets[second].copy_(targets[first])
        targets[third][5] = 0.0
    source, folder = load_trained(save_model(tmp_path / "model", model, INT4, spread=3.0)), tmp_path / "small"
    openvino.write_int8(source, folder)
    found = openvino.read_codes(folder)
    assert {first, second} & found.keys()
    assert not found[third][0][5].any()
    weights = dict(source.model.named_parameters())
    for name, (codes, scales) in found.items():
        assert np.array_equal(codes * scales[:, None], weights[name].detach().numpy())
    assert openvino.open_openvino(folder, 1).integer_matrices == len(targets)


def test_a_matrix_of_integers_that_the_graph_lacks_is_named(integers):
    own = trained_codes(integers)
    name, codes = next(iter(own.items()))
    own[name] = Codes(codes.bits, codes.codes, codes.scales * np.float32(1.5))
    model = openvino._read(integers.folder.parent / "full")
    with pytest.raises(UserError, match=f"the OpenVINO model has no product with the integers of {name}"):
        openvino._quantise(integers, model, own, EXAMPLES)


def test_codes_that_changed_in_the_file_would_be_noticed(integers):
    folder, own = integers.folder.parent / "small", trained_codes(integers)
    openvino._assert_codes(folder, own, list(own))
    name, codes = next(iter(own.items()))
    own[name] = Codes(codes.bits, -codes.codes, codes.scales)
    with pytest.raises(AssertionError, match=f"the codes of {name} changed"):
        openvino._assert_codes(folder, own, list(own))


def test_a_matrix_that_is_tied_to_the_embedding_is_rounded_in_both_places(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES))
    source = load_trained(save_model(tmp_path / "model", model, None, spread=3.0))
    assert 0 < openvino.write_int8(source, tmp_path / "small") <= openvino.INT8_TOLERANCE
    words = source.model.get_input_embeddings().weight.detach().numpy()
    found = used_codes(tmp_path / "small", {words.shape})
    step = np.abs(words).max(axis=1, keepdims=True) / 127
    assert any((np.abs(codes * scales[:, None] - words) <= 0.501 * step).all() for codes, scales in found)


# --- activations --------------------------------------------------------------------------------------------------


def test_a_grid_has_256_steps_covers_the_range_and_holds_0():
    draw = np.random.default_rng(0)
    ends = np.sort(draw.normal(scale=[[1e-3], [1.0], [1e3]], size=(200, 3, 1)) + draw.normal(size=(200, 1, 2)), axis=-1)
    for low, high in [*ends.reshape(-1, 2).tolist(), (0.0, 0.0), (-1.0, 0.0), (2.0, 3.0)]:
        first, last = openvino._grid(low, high)
        step = (last - first) / 255
        assert step > 0
        assert first - step <= min(low, 0.0)
        assert last + step >= max(high, 0.0)
        assert step <= (max(high, 0.0) - min(low, 0.0)) / 255 * 1.0001 + 1e-38
        assert first / step == pytest.approx(round(first / step), abs=1e-6)
        assert first <= 0.0 <= last


def simulated(source: Trained, examples: list, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Run the model in PyTorch with the inputs of its Linear layers of integers rounded to 256 steps, by `torch`."""
    layers = [source.model.get_submodule(name.removesuffix(".weight")) for name in trained_codes(source)]
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        ranges[layer] = (min(float(given[0].min()), 0.0), max(float(given[0].max()), 0.0))

    def rounded(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        low, high = ranges[layer]
        scale = (high - low) / 255
        return (torch.fake_quantize_per_tensor_affine(given[0], scale, round(-low / scale), 0, 255),)

    for hook, given in ((observe, source.encode(examples)), (rounded, inputs)):
        hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
        found = outputs(source.model, given)
        for each in hooks:
            each.remove()
    return found


def test_activations_are_rounded_as_a_simulation_in_pytorch_rounds_them(integers):
    inputs = integers.encode(OTHERS[1])
    found = openvino.open_openvino(integers.folder.parent / "small", 1)(inputs)
    exact, expected = outputs(integers.model, inputs), simulated(integers, list(EXAMPLES), inputs)
    # a sum in another order moves some activation to the next step now and then
    assert relative_error(found, expected) < 0.3 * relative_error(expected, exact)


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_what_differs_is_not_written(integers, tmp_path, monkeypatch):
    source, model = saved(tmp_path), openvino._read(integers.folder.parent / "full")
    monkeypatch.setattr(openvino, "_converted", lambda *arguments: model)  # another model's
    before = tree(tmp_path)
    with pytest.raises(
        UserError, match=r"deep/out: not written: outputs of the OpenVINO model differ .* more than the 1e-04"
    ):
        openvino.write_openvino(source, tmp_path / "deep/out")
    assert tree(tmp_path) == before


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_operation_that_openvino_lacks_is_named(tmp_path):
    source = saved(tmp_path)
    source.model.classifier = nn.Sequential(source.model.classifier, Bessel())
    with pytest.raises(UserError, match=r"because OpenVINO cannot convert it: .*special_bessel_j0"):
        openvino.write_openvino(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.situation("export", "a disk that fills while OpenVINO writes", "refused")
def test_of_two_files_both_are_written_or_none(integers, tmp_path, monkeypatch):
    source, model = saved(tmp_path), openvino._read(integers.folder.parent / "full")
    monkeypatch.setattr(openvino, "_converted", lambda *arguments: model)
    before, limit = tree(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # bytes: less than the weights take
    try:
        with pytest.raises(UserError, match="deep/out: cannot be written"):
            openvino.write_openvino(source, tmp_path / "deep/out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert tree(tmp_path) == before


@pytest.mark.situation("export", "a folder of OpenVINO that is damaged or of another kind", "refused")
def test_folders_that_hold_no_model_are_named(integers, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=r"out: no model of OpenVINO: .*No such file"):
        openvino.open_openvino(folder)
    shutil.copytree(integers.folder.parent / "full", folder)
    weights = (folder / openvino.BIN).read_bytes()
    (folder / openvino.BIN).write_bytes(weights[:1000])
    with pytest.raises(UserError, match="out: no model of OpenVINO: Incorrect weights in bin file!"):
        openvino.open_openvino(folder)
    (folder / openvino.XML).write_text("hello")
    assert not openvino.is_own(folder)
    with pytest.raises(UserError, match=r"openvino_model\.xml: no model of OpenVINO"):
        openvino.open_openvino(folder)


def test_a_model_of_another_program_is_not_ours(tmp_path):
    parameter = openvino.ov.opset13.parameter([2], openvino.ov.Type.f32)
    model = openvino.ov.Model([openvino.ov.opset13.relu(parameter)], [parameter])
    (tmp_path / "foreign").mkdir()
    openvino.ov.save_model(model, tmp_path / "foreign" / openvino.XML)
    assert not openvino.is_own(tmp_path / "foreign")
    model.set_rt_info("1", openvino.MARK)
    openvino.ov.save_model(model, tmp_path / "foreign" / openvino.XML)
    assert (tmp_path / "foreign" / openvino.BIN).is_file() == openvino.is_own(tmp_path / "foreign")


def test_importing_openvino_reports_nothing_and_leaves_nothing_at_home(tmp_path):
    """Its own import would start a thread that reports to Google Analytics, and make folders in the user's home."""
    code = "import sys, nxm.export.openvino; sys.exit(any('telemetry' in name.split('.')[0] for name in sys.modules))"
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()
