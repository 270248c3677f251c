"""Exports of models that were trained with integer activations use their ranges, in place of measured ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nxm import NM, Integers, UserError, find_targets
from nxm.export import onnx as onnx_export
from nxm.export import openvino, x86
from nxm.export.trained import EXAMPLES, Trained, load_trained, outputs, relative_error
from nxm.models.activations import Claimed, quantise_inputs, write_ranges
from tiny_models import MODELS, NO_COMPILER, save_model

INT4 = Integers(4, NM(2, 4))


def trained_with(folder: Path, bits: int, high: float = 3.0) -> Trained:
    """A tiny BERT of 4-bit weights whose inputs have narrow ranges, so that other ranges would show."""
    torch.manual_seed(0)
    saved = save_model(folder / "model", MODELS["bert"](), INT4, spread=3.0)
    trained = load_trained(saved)
    names = find_targets(trained.model)
    write_ranges(trained.model.config, bits, dict.fromkeys(names, (-1.0, high)))
    trained.model.save_pretrained(saved)
    return load_trained(saved)


def expected(trained: Trained) -> dict[str, np.ndarray]:
    inputs = quantise_inputs(trained.model)
    found = outputs(trained.model, trained.encode(EXAMPLES))
    inputs.remove()
    return found


@pytest.mark.parametrize("bits", [8, 5])
def test_onnx_computes_what_was_trained(bits: int, tmp_path: Path) -> None:
    trained = trained_with(tmp_path, bits)
    path = tmp_path / "model.onnx"
    onnx_export.write_int8(trained, path)
    found = onnx_export.run_onnx(path, trained.encode(EXAMPLES))
    assert relative_error(found, expected(trained)) < 0.01
    real = outputs(trained.model, trained.encode(EXAMPLES))
    assert relative_error(real, expected(trained)) > 0.02  # so that the ranges are what the file has
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["QuantizeLinear"] == 2 * 4  # of a layer: one for Q, K and V, the output's, and FFN1's and FFN2's
    assert kinds["DequantizeLinear"] == kinds["QuantizeLinear"] + len(find_targets(trained.model))
    assert ("Clip" in kinds) == (bits < 8)


def test_onnx_runtime_multiplies_these_in_integers(tmp_path: Path) -> None:
    trained = trained_with(tmp_path, 8)
    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    onnx_export.write_int8(trained, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert kinds["MatMulIntegerToFloat"] == len(find_targets(trained.model))


def test_openvino_computes_what_was_trained(tmp_path: Path) -> None:
    trained = trained_with(tmp_path, 8)
    openvino.write_int8(trained, tmp_path / "ov")
    found = openvino.open_openvino(tmp_path / "ov")(trained.encode(EXAMPLES))
    assert relative_error(found, expected(trained)) < 0.01


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_pytorch_computes_what_was_trained(tmp_path: Path) -> None:
    trained = trained_with(tmp_path, 8)
    x86.write_x86(trained, tmp_path / "model.pt2")
    found = x86.open_x86(tmp_path / "model.pt2")(trained.encode(EXAMPLES))
    assert relative_error(found, expected(trained)) < 0.01


def test_ranges_of_other_matrices_are_refused(tmp_path: Path) -> None:
    trained = trained_with(tmp_path, 8)
    write_ranges(trained.model.config, 8, {"no.weight": (-1.0, 1.0)})
    trained.model.save_pretrained(trained.folder)
    with pytest.raises(UserError, match=r"range of the input of 'no\.weight', which the model does not have"):
        load_trained(trained.folder)


def test_the_grid_is_one_of_fp32_numbers() -> None:
    scale, zero_point = Claimed(8, {"a": (-1.0, 2.0)}).grid("a")
    assert scale == float(np.float32(3.0) / np.float32(255))
    assert zero_point == 85
