"""tools/half_weights.py: weights in half precision."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.training.load import load_model
from tiny_models import MODELS, save_model

PLACE = Path(__file__).parents[1] / "tools" / "half_weights.py"
SPEC = importlib.util.spec_from_file_location("half_weights", PLACE)
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)


def test_weights_become_the_nearest_half_floats_and_integers_stay(tmp_path):
    whole = save_model(tmp_path / "whole", MODELS["mpnet"](), pattern=None)
    tensors = load_file(whole / "model.safetensors") | {"mpnet.ids": torch.tensor([70_000])}
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    TOOL.round_weights(whole, tmp_path / "half")
    rounded = load_file(tmp_path / "half" / "model.safetensors")
    assert rounded.keys() == tensors.keys()
    assert torch.equal(rounded.pop("mpnet.ids"), tensors["mpnet.ids"])
    for name, value in rounded.items():
        assert value.dtype == torch.float16
        half_a_unit = {"rtol": 2**-11, "atol": 2**-25}  # in the last place
        torch.testing.assert_close(value.float(), tensors[name], **half_a_unit)
    assert {path.name for path in whole.iterdir()} == {path.name for path in (tmp_path / "half").iterdir()}


def test_the_folder_trains_in_fp32(tmp_path):
    whole = save_model(tmp_path / "whole", MODELS["mpnet"](), pattern=None)
    TOOL.round_weights(whole, tmp_path / "half")
    model = load_model(tmp_path / "half", get_task("cola"), fresh_head=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_weight_too_large_for_half_precision_is_named_and_nothing_is_left(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    save_file({"fits": torch.ones(2), "large": torch.tensor([7e4])}, whole / "model.safetensors")
    with pytest.raises(UserError, match=r"large reaches 70000, fp16 only 65504"):
        TOOL.round_weights(whole, tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
