"""The packed checkpoint: its layout, its size, and that nothing changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from nxm import NM, Integers, Unstructured, UserError, find_targets, load, parse_set, shrink, structure_of
from nxm.export.packed import write_packed
from nxm.export.trained import load_trained
from nxm.models.packed import FILE, METADATA, checksum, pack, read_packed, stored_bits, unpack
from nxm.sets import all_sets
from nxm.sets.saved import write_pattern
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


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def assert_same(loaded, model) -> None:
    """Assert the same class, the same weights and the same logits, to the bit."""
    assert type(loaded) is type(model)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    ids = torch.randint(5, 60, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.situation("saving", "a packed checkpoint, loaded by nxm.load: the same logits to the bit", "works")
@pytest.mark.parametrize("constraint", [TWO_OF_FOUR_INT4, Integers(8), Integers(3, NM(1, 4))], ids=str)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_a_model_loads_to_the_same_logits_to_the_bit(kind, constraint, tmp_path):
    folder = save_model(tmp_path / "model", MODELS[kind](), constraint)
    size = write_packed(folder, tmp_path / "packed")
    assert size == (tmp_path / "packed" / FILE).stat().st_size
    loaded = load(tmp_path / "packed")
    assert not loaded.training
    assert_same(loaded, AutoModelForSequenceClassification.from_pretrained(folder).eval())


def several_sets(folder: Path):
    """Save a model with a set for attention, another for the first FFN matrices, and 2:4 without integers elsewhere."""
    model = MODELS["bert"]()
    targets = find_targets(model)
    parts = {TWO_OF_FOUR_INT4: "attention", Integers(8): "intermediate", NM(2, 4): ""}
    taken: set[str] = set()
    for constraint, part in parts.items():
        names = [name for name in targets if part in name and name not in taken]
        taken |= set(names)
        with torch.no_grad():
            for name in names:
                targets[name].copy_(constraint.project(targets[name]).Z)
        write_pattern(model.config, constraint, names)
    save_model(folder, model, pattern=None, spread=1.0)
    return model.eval()


@pytest.mark.situation("saving", "a packed checkpoint with other bits by matrix, and some matrices without", "works")
def test_every_matrix_has_the_bits_of_its_own_set(tmp_path):
    model = several_sets(tmp_path / "model")
    write_packed(tmp_path / "model", tmp_path / "packed")
    assert_same(load(tmp_path / "packed"), model)
    with safe_open(tmp_path / "packed" / FILE, framework="pt") as file:
        shapes = json.loads(file.metadata()[METADATA])["shapes"]
    assert {text: len(matrices) for text, matrices in shapes.items()} == {"2:4 int4": 8, "int8": 2}


def test_a_shrunk_model_is_packed_and_loads_shrunk(tmp_path):
    model = MODELS["bert"]()
    with torch.no_grad():  # half of the FFN rows, so that it is shrunk
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[64:] = 0.0
            layer.intermediate.dense.bias[64:] = 0.0
            layer.output.dense.weight[:, 64:] = 0.0
    small = shrink(model, structure_of(model))
    save_model(tmp_path / "small", small, TWO_OF_FOUR_INT4)
    write_packed(tmp_path / "small", tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    assert loaded.bert.encoder.layer[0].intermediate.dense.weight.shape == (64, 64)
    assert_same(loaded, small.eval())


def packed_in_bf16(folder: Path, *, small: bool) -> Path:
    """Return a packed model, shrunk or not, whose weights were saved in bf16: int2 fits into it to the bit."""
    model = MODELS["bert"]()
    if small:
        half = tuple(tuple(range(64)) for _ in model.bert.encoder.layer)
        model = shrink(model, replace(structure_of(model), rows=half))
    plain = save_model(folder / "plain", model, Integers(2), spread=3.0)
    load(plain).to(torch.bfloat16).save_pretrained(plain)
    write_packed(plain, folder / "packed")
    return folder / "packed"


def types(model) -> set[torch.dtype]:
    return {W.dtype for W in model.parameters()}


@pytest.mark.situation("saving", "a packed or shrunk model loaded in another type, or in its own", "works")
@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
def test_a_packed_model_loads_in_the_type_that_is_asked_for(small, tmp_path):
    packed = packed_in_bf16(tmp_path, small=small)
    for dtype in (torch.float32, torch.float16, torch.float64):
        for given in (dtype, str(dtype).removeprefix("torch."), str(dtype)):
            assert types(load(packed, given)) == {dtype}
    own = load(packed)
    assert types(own) == {torch.bfloat16}
    assert_same(own, load(tmp_path / "plain"))
    assert types(load_trained(packed).model) == {torch.float32}
    assert types(load(tmp_path / "plain", "float16")) == {torch.float16}


def test_the_type_is_that_of_the_tensors_though_the_config_names_another(tmp_path):
    folder = save_model(tmp_path / "model", MODELS["bert"](), TWO_OF_FOUR_INT4)
    write_packed(folder, tmp_path / "packed")
    config = tmp_path / "packed/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}))
    assert types(load(tmp_path / "packed")) == {torch.float32}


@pytest.mark.situation("saving", "a model loaded in a type that PyTorch does not have, or in integers", "refused")
@pytest.mark.parametrize("dtype", ["nonsense", "int8", torch.int8, "nn", ""])
def test_a_type_that_is_none_of_weights_is_refused_by_name(dtype, tmp_path):
    for folder in (packed_in_bf16(tmp_path / "a", small=False), packed_in_bf16(tmp_path / "b", small=True)):
        for place in (folder, folder.parent / "plain"):
            with pytest.raises(
                UserError, match=f"dtype = {dtype!r}: no type of floating-point numbers; give 'float32'"
            ):
                load(place, dtype)


def test_a_model_in_shards_is_packed_into_one_file(tmp_path):
    model = MODELS["bert"]()
    folder = save_model(tmp_path / "model", model, TWO_OF_FOUR_INT4)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    write_packed(folder, tmp_path / "packed")
    assert_same(load(tmp_path / "packed"), model.eval())


def test_a_loaded_model_is_saved_as_a_plain_folder_again(tmp_path):
    folder = save_model(tmp_path / "model", MODELS["bert"](), TWO_OF_FOUR_INT4)
    write_packed(folder, tmp_path / "packed")
    load(tmp_path / "packed").save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert load(tmp_path / "again").config.nxm_sparsity == load(folder).config.nxm_sparsity


def test_the_file_is_as_small_as_counted_and_has_the_rest_unchanged(tmp_path):
    folder = save_model(tmp_path / "model", MODELS["bert"](), TWO_OF_FOUR_INT4)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    size = write_packed(folder, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    with safe_open(tmp_path / "packed" / FILE, framework="pt") as file:
        described = json.loads(file.metadata()[METADATA])
        header = len(file.keys()) * 160 + len(file.metadata()[METADATA]) * 2
    matrices = {name: tensors.pop(name) for name in described["shapes"]["2:4 int4"]}
    assert len(matrices) == 12
    expected = sum(stored_bits(TWO_OF_FOUR_INT4, W.shape) for W in matrices.values()) // 8
    expected += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert expected < size < expected + header
    packed = read_packed(tmp_path / "packed")
    assert packed.keys() == tensors.keys() | matrices.keys()
    assert all(torch.equal(packed[name], tensor) for name, tensor in tensors.items())
    others = {path.name for path in folder.iterdir()} - {"model.safetensors", "training_args.bin"}
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
    folder = save_model(tmp_path / "right", MODELS["bert"](), TWO_OF_FOUR_INT4)
    write_packed(folder, tmp_path / "packed")
    with pytest.raises(UserError, match="is a packed checkpoint already"):
        write_packed(tmp_path / "packed", tmp_path / "twice")


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A packed checkpoint, which tests copy and damage."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    write_packed(save_model(folder / "model", MODELS["bert"](), Integers(3, NM(2, 4))), folder / "packed")
    return folder / "packed"


def refused(folder: Path, said: str) -> None:
    for read in (read_packed, load):
        with pytest.raises(UserError, match=said):
            read(folder)


def edit(folder: Path, change: Callable[[dict, dict], None], *, consistent: bool = False) -> None:
    """Change tensors and metadata of a packed file; `consistent`: with the checksum that belongs to them."""
    with safe_open(folder / FILE, framework="pt") as file:
        described = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    change(tensors, described)
    if consistent:
        described["sha256"] = checksum(tensors, described["shapes"])
    save_file(tensors, folder / FILE, {"format": "pt", METADATA: json.dumps(described)})


@pytest.fixture
def packed(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.situation("saving", "a packed checkpoint that is missing, truncated or of another kind", "refused")
def test_a_file_that_is_missing_truncated_or_of_another_kind_is_refused_by_name(packed):
    content = (packed / FILE).read_bytes()
    for length in (0, 5, 1000, len(content) - 1):
        (packed / FILE).write_bytes(content[:length])
        refused(packed, f"{FILE}: damaged or truncated")
    save_file({"a": torch.ones(2)}, packed / FILE)
    refused(packed, f"{FILE}: no packed checkpoint: its metadata has no nxm_packed")
    save_file({"a": torch.ones(2)}, packed / FILE, {METADATA: "{"})
    refused(packed, "its metadata's nxm_packed cannot be read")
    save_file({"a": torch.ones(2)}, packed / FILE, {METADATA: '{"version": 2}'})
    refused(packed, "nxm_packed is version 2, this nxm reads version 1")
    (packed / FILE).unlink()
    with pytest.raises(UserError, match=f"{FILE}: there is no such file"):
        read_packed(packed)


@pytest.mark.situation(
    "saving", "a packed checkpoint in which a single bit of a tensor or the description was changed", "refused"
)
def test_a_changed_bit_of_a_tensor_or_the_description_is_found(packed, whole):
    content = bytearray((whole / FILE).read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    for place in (data, data + 1000, len(content) - 1):
        changed = content.copy()
        changed[place] ^= 1
        (packed / FILE).write_bytes(changed)
        refused(packed, "its content was changed after it was written")
    changes: list[Callable[[dict, dict], object]] = [
        lambda tensors, described: tensors.pop("classifier.bias"),
        lambda tensors, described: tensors.update(more=torch.ones(1)),
        lambda tensors, described: described["shapes"]["2:4 int3"].pop(QUERY),
        lambda tensors, described: described["shapes"]["2:4 int3"].update({QUERY: [32, 128]}),
        lambda tensors, described: described.update(shapes={"2:4 int4": described["shapes"]["2:4 int3"]}),
        lambda tensors, described: described.pop("sha256"),
    ]
    for change in changes:
        shutil.copy(whole / FILE, packed)
        edit(packed, change)
        refused(packed, "its content was changed after it was written")


def test_the_rest_of_the_header_is_not_covered_and_changes_no_weight(packed, whole):
    content = (whole / FILE).read_bytes()
    assert content.count(b'"format":"pt"') == 1
    (packed / FILE).write_bytes(content.replace(b'"format":"pt"', b'"format":"qt"'))
    ours, theirs = read_packed(packed), read_packed(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_file_of_another_writer_must_have_the_layout(packed, whole):
    """Whoever writes the format, with the right checksum, is told the part that is wrong."""

    def put(part: str, value: torch.Tensor):
        return lambda tensors, described: tensors.update({f"{QUERY}.{part}": value})

    changes = {
        f"{QUERY}.codes: is missing": lambda tensors, described: tensors.pop(f"{QUERY}.codes"),
        rf"{QUERY}.scales: is torch.float32 \(64,\)": put("scales", torch.ones(64)),
        rf"{QUERY}.codes: is torch.uint8 \(5,\); 2:4 int3 of 64x64 has torch.uint8 \(768,\)": put(
            "codes", torch.zeros(5, dtype=torch.uint8)
        ),
        f"{QUERY}.scales: has a scale that is negative": put("scales", -torch.ones(64, dtype=torch.bfloat16)),
        f"{QUERY}.scales: has a scale that is negative, infinite": put(
            "scales", torch.full((64,), torch.inf).bfloat16()
        ),
        f"{QUERY}.positions: are not 2 rising places below 4": put("positions", torch.zeros(512, dtype=torch.uint8)),
        f"{QUERY}.codes: has the code -4": put("codes", torch.full((768,), 0b00100100, dtype=torch.uint8)),
        "has 'more', which is unknown": lambda tensors, described: tensors.update(more=torch.ones(1)),
        "lacks 'classifier.bias'": lambda tensors, described: tensors.pop("classifier.bias"),
        "has 'classifier.bias' in another size": lambda tensors, described: tensors.update(
            {"classifier.bias": torch.ones(5)}
        ),
        "names 2:4, which is no set of integers": lambda tensors, described: described["shapes"].update({"2:4": {}}),
        "its metadata's nxm_packed cannot be read": lambda tensors, described: described["shapes"].update({"int": {}}),
    }
    for said, change in changes.items():
        shutil.copy(whole / FILE, packed)
        edit(packed, change, consistent=True)
        with pytest.raises(UserError, match=said):
            load(packed)


def test_bits_behind_the_last_code_are_refused():
    constraint = Integers(3)
    parts = pack(constraint.project(matrix(1, 5)).Z, constraint)
    parts["codes"][-1] |= 0b1000_0000
    with pytest.raises(UserError, match=r"matrix.codes: has further bits behind the 15 of int3"):
        unpack(parts, constraint, (1, 5))


def test_positions_beyond_a_group_that_is_no_power_of_two_are_refused():
    constraint = Integers(3, NM(1, 3))
    parts = pack(constraint.project(matrix(1, 12)).Z, constraint)
    parts["positions"][0] = 0b11  # place 3 of 0, 1 and 2
    with pytest.raises(UserError, match=r"positions: are not 1 rising places below 3"):
        unpack(parts, constraint, (1, 12))


@pytest.mark.situation("saving", "a packed checkpoint with another model's config.json", "refused")
def test_a_config_that_belongs_to_another_file_is_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    for claim, said in (
        (config["nxm_sparsity"] | {"bits": 4}, "config.json claims 2:4 int4 for .*, packed.safetensors has 2:4 int3"),
        (config["nxm_sparsity"] | {"targets": [QUERY]}, "config.json claims no integers for .*, packed.* has 2:4 int3"),
    ):
        (packed / "config.json").write_text(json.dumps(config | {"nxm_sparsity": claim}))
        refused(packed, said)
    (packed / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(UserError, match=r"in another size than config\.json asks for"):
        load(packed)
    (packed / "config.json").write_text(json.dumps(config | {"architectures": ["Mine"]}))
    with pytest.raises(UserError, match="architectures names 'Mine', which is no model of transformers"):
        load(packed)


def test_two_models_in_one_folder_are_refused(packed):
    save_file({"a": torch.ones(2)}, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds both packed\.safetensors and model\.safetensors, two models"):
        load(packed)
