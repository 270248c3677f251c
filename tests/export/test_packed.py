"""The packed checkpoint: its layout, its size, and that nothing changes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from nxm import NM, Integers, Unstructured, UserError, load, parse_set
from nxm.export.packed import write_packed
from nxm.models.packed import FILE, pack, read_packed, stored_bits, unpack
from nxm.sets import all_sets
from tiny_models import MODELS, save_model

SETS = [parse_set(text) for text in (*Integers.examples, "int2", "2:8 int5", "3:4 int6", "1:4 int7")]
TWO_OF_FOUR_INT4 = Integers(4, mask=NM(2, 4))


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_layout_by_hand():
    """Codes 3, -1 at places 1 and 2, then 7 alone: it comes with the first zero of its group, at place 0."""
    W = torch.tensor([[0.0, 1.5, -0.5, 0.0, 0.0, 0.0, 0.0, 3.5]])
    parts = pack(W, TWO_OF_FOUR_INT4)
    assert parts["scales"].tolist() == [0.5]
    assert parts["codes"].tolist() == [0b1111_0011, 0b0111_0000]  # -1 is 1111 in two's complement
    assert parts["positions"].tolist() == [0b11_00_10_01]
    assert torch.equal(unpack(parts, TWO_OF_FOUR_INT4, (1, 8)), W)


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (5, 24), (16, 64)])
def test_a_matrix_comes_back_to_the_bit_and_takes_the_bits_that_are_counted(constraint, shape):
    W = constraint.project(matrix(*shape)).Z
    parts = pack(W, constraint)
    again = unpack(parts, constraint, shape)
    assert torch.equal(again.view(torch.int32), W.view(torch.int32))
    stored = sum(8 * tensor.numel() * tensor.element_size() for tensor in parts.values())
    assert stored_bits(constraint, shape) <= stored < stored_bits(constraint, shape) + 16  # the last bytes are filled


def test_rows_and_groups_of_zeros_come_back():
    W = TWO_OF_FOUR_INT4.project(matrix(4, 16)).Z
    W[1] = 0.0
    W[2, 4:8] = 0.0
    assert torch.equal(unpack(pack(W, TWO_OF_FOUR_INT4), TWO_OF_FOUR_INT4, (4, 16)), W)


def test_what_is_counted_for_every_kind_of_set():
    shape, rows = (768, 768), 16 * 768
    entries = 768 * 768
    assert stored_bits(None, shape) == 32 * entries
    assert stored_bits(NM(2, 4), shape) == 17 * entries
    assert stored_bits(Unstructured(0.5), shape) == 17 * entries
    assert stored_bits(Integers(8), shape) == 8 * entries + rows
    assert stored_bits(Integers(8, NM(2, 4)), shape) == 5 * entries + rows
    assert stored_bits(TWO_OF_FOUR_INT4, shape) == 3 * entries + rows
    assert stored_bits(Integers(3, NM(2, 4)), shape) == 2.5 * entries + rows
    assert stored_bits(Integers(2, NM(1, 4)), shape) == entries + rows
    for cls in all_sets().values():
        for text in cls.examples:
            assert 0 < stored_bits(parse_set(text), shape) < stored_bits(None, shape)


@pytest.mark.parametrize("constraint", [TWO_OF_FOUR_INT4, Integers(8), Integers(3, NM(1, 4))], ids=str)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_model_loads_to_the_same_logits_to_the_bit(kind, constraint, tmp_path):
    folder = save_model(tmp_path / "model", MODELS[kind](), constraint)
    size = write_packed(folder, tmp_path / "packed")
    assert size == (tmp_path / "packed" / FILE).stat().st_size
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    loaded = load(tmp_path / "packed")
    assert type(loaded) is type(model)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    ids = torch.randint(5, 60, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_file_is_as_small_as_counted_and_has_the_rest_unchanged(tmp_path):
    folder = save_model(tmp_path / "model", MODELS["bert"](), TWO_OF_FOUR_INT4)
    size = write_packed(folder, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    with safe_open(tmp_path / "packed" / FILE, framework="pt") as file:
        described = json.loads(file.metadata()["nxm_packed"])
        header = len(file.keys()) * 160 + len(file.metadata()["nxm_packed"]) * 2
    assert described["set"] == "2:4 int4"
    matrices = {name: tensors.pop(name) for name in described["shapes"]}
    assert len(matrices) == 12
    expected = sum(stored_bits(TWO_OF_FOUR_INT4, W.shape) for W in matrices.values()) // 8
    expected += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert expected < size < expected + header
    packed = read_packed(tmp_path / "packed")
    assert packed.keys() == tensors.keys() | matrices.keys()
    assert all(torch.equal(packed[name], tensor) for name, tensor in tensors.items())
    others = {path.name for path in folder.iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "packed").iterdir()} == others | {FILE}


def test_what_cannot_be_packed_is_refused_and_nothing_is_written(tmp_path):
    for pattern, said in ((NM(2, 4), "the set 2:4"), (None, "no set")):
        folder = save_model(tmp_path / f"{pattern}".replace(":", "of"), MODELS["bert"](), pattern)
        with pytest.raises(UserError, match=f"config.json names {said}; a packed checkpoint stores integers"):
            write_packed(folder, tmp_path / "packed")
    folder = save_model(tmp_path / "left", MODELS["bert"](), TWO_OF_FOUR_INT4)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name][0, 0] += 0.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name}, torch\.float32, is not 2:4 int4"):
        write_packed(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=f"{FILE}: there is no such file"):
        read_packed(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(UserError, match="nxm_packed is version None, this nxm reads version 1"):
        read_packed(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged or truncated"):
        read_packed(tmp_path)
