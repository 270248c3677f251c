"""Masked and shrunk models agree, and a shrunk model's folder loads again."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
)

import nxm
from nxm import NM, UserError, permute_
from nxm.models.roles import ROLES, find_blocks
from nxm.models.shrink import read_structure, shrink
from nxm.models.structure import Structure, full_structure, mask_, structure_of
from tiny_models import DISTILBERT, MODELS, SIZES

HEADS, ROWS = 4, 40
LARGER = {"num_attention_heads": HEADS, "intermediate_size": ROWS}
FAMILIES = sorted(ROLES)
every_family = pytest.mark.parametrize("family", FAMILIES)
TINY = Structure(heads=((2,), (0, 3)), rows=((7,), tuple(range(5, 30))))


def new_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Two layers of four heads and 40 rows, with biases and weights large enough that an error shows."""
    torch.manual_seed(seed)
    one = MODELS[family]()
    config = one.config
    values = (SIZES | LARGER) if family != "distilbert" else (DISTILBERT | {"n_heads": HEADS, "hidden_dim": ROWS})
    for key, value in values.items():
        setattr(config, key, value)
    model = type(one)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Five sequences of 3 to 11 tokens, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (5, 11), generator=generator)
    mask = (torch.arange(11)[None, :] < torch.tensor([11, 3, 7, 10, 5])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(**batch()).logits


def subsets(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, n - 1), min_size=1).map(lambda found: tuple(sorted(found)))


structures = st.builds(
    Structure, heads=st.tuples(subsets(HEADS), subsets(HEADS)), rows=st.tuples(subsets(ROWS), subsets(ROWS))
)

# --- Masked and shrunk -------------------------------------------------------------------------------------------


@every_family
@settings(max_examples=12, deadline=None)
@given(structure=structures, multiple=st.sampled_from([1, 8, 16, 32]))
def test_masked_and_shrunk_models_agree(family, structure, multiple):
    model = new_model(family)
    mask_(model, structure)
    assert structure_of(model) == structure
    small = shrink(model, structure, multiple)
    torch.testing.assert_close(logits(small), logits(model), rtol=0, atol=1e-6)
    for block, heads, rows in zip(find_blocks(small), structure.n_heads, structure.n_rows, strict=True):
        assert block.n_heads == heads
        assert block.n_rows == min(-(-rows // multiple) * multiple, ROWS)
    assert small.num_parameters() < model.num_parameters() or structure == full_structure(model)


@every_family
def test_one_head_and_one_row_are_enough(family):
    model = new_model(family)
    mask_(model, TINY)
    small = shrink(model, TINY)
    torch.testing.assert_close(logits(small), logits(model), rtol=0, atol=1e-6)
    assert [block.n_rows for block in find_blocks(small)] == [1, 25]


@every_family
def test_hidden_states_agree_with_eager_attention_and_with_sdpa(family):
    model = new_model(family)
    mask_(model, TINY)
    implementations = ["eager"] if family == "mpnet" else ["eager", "sdpa"]
    for implementation in implementations:
        model.set_attn_implementation(implementation)
        small = shrink(model, TINY)
        ours, theirs = (one(**batch(), output_hidden_states=True).hidden_states for one in (small, model))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@every_family
def test_a_model_without_zeros_stays_as_it_is(family):
    model = new_model(family)
    small = shrink(model, structure_of(model), multiple=8)
    assert structure_of(model) == full_structure(model)
    assert torch.equal(logits(small), logits(model))
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@every_family
def test_the_larger_model_is_not_changed(family):
    model = new_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = shrink(model, TINY)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "nxm_structure")


@every_family
def test_a_shrunk_model_can_be_shrunk_again(family):
    """Heads keep the indices of the dense model: MPNet's position bias and config.json need them."""
    model = new_model(family)
    first = Structure(heads=((0, 2, 3), (1, 2, 3)), rows=(tuple(range(20)), tuple(range(10, 40))))
    mask_(model, first)
    small = shrink(model, first)
    second = Structure(heads=((1, 2), (0,)), rows=((3, 4), (29,)))
    mask_(small, second)
    smaller = shrink(small, second)
    torch.testing.assert_close(logits(smaller), logits(small), rtol=0, atol=1e-6)
    assert read_structure(smaller.config) == {"heads": [[2, 3], [1]], "rows": [2, 1]}
    assert structure_of(smaller).n_heads == (2, 1)


@every_family
def test_a_shrunk_model_trains(family):
    small = shrink(new_model(family), TINY, multiple=8).train()
    loss = small(**batch(), labels=torch.zeros(5, dtype=torch.long)).loss
    loss.backward()
    for block in find_blocks(small):
        assert all(layer.weight.grad.any() for layer in (block.query, block.key, block.value, block.output))
        assert all(layer.weight.grad.any() for layer in (block.ffn1, block.ffn2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_shrunk_model_has_the_models_dtype_and_frozen_parameters(dtype):
    model = new_model("bert").to(dtype)
    model.bert.encoder.layer[0].requires_grad_(False)
    small = shrink(model, TINY, multiple=8)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_claim_of_a_pattern_is_dropped_with_the_columns():
    model = new_model("bert")
    model.config.nxm_sparsity = {"kind": "nm"}
    assert not hasattr(shrink(model, TINY).config, "nxm_sparsity")
    assert model.config.nxm_sparsity == {"kind": "nm"}


@every_family
def test_channels_of_a_shrunk_model_can_be_permuted(family):
    """Its layers have fewer heads than the config says."""
    structure = Structure(heads=((0, 1, 3), (2,)), rows=(tuple(range(24)), tuple(range(8))))
    small = shrink(new_model(family), structure)
    before = logits(small)
    assert all(after >= first for first, after in permute_(small, NM(2, 4)).values())
    torch.testing.assert_close(logits(small), before, rtol=0, atol=1e-5)


# --- Dead heads and rows -----------------------------------------------------------------------------------------


@every_family
def test_heads_and_rows_are_dead_by_either_of_their_matrices(family):
    model = new_model(family)
    block, width = find_blocks(model)[0], find_blocks(model)[0].head_width
    with torch.no_grad():
        block.output.weight[:, :width] = 0.0  # head 0
        block.value.weight[width : 2 * width] = 0.0  # head 1
        block.value.bias[width : 2 * width] = 0.0
        block.value.weight[2 * width : 3 * width] = 0.0  # head 2 still adds its bias
        block.ffn2.weight[:, 3] = 0.0
        block.ffn1.weight[4:6] = 0.0
        block.ffn1.bias[4] = 0.0  # row 5 still adds its bias
    structure = structure_of(model)
    assert structure.heads == ((2, 3), (0, 1, 2, 3))
    assert structure.rows[0] == tuple(i for i in range(ROWS) if i not in (3, 4))
    torch.testing.assert_close(logits(shrink(model, structure)), logits(model), rtol=0, atol=1e-6)


def test_a_row_of_zeros_lives_where_the_activation_of_zero_is_not_zero():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, hidden_act="sigmoid")).eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[0] = 0.0
    assert structure_of(model) == full_structure(model)


# --- Folders -----------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("multiple", [1, 16])
def test_a_saved_model_loads_to_the_bit(family, multiple, tmp_path):
    small = shrink(new_model(family), TINY, multiple)
    small.save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    loaded = nxm.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(loaded) is type(small)
    assert not loaded.training
    ours, theirs = loaded.state_dict(), small.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(loaded), logits(small))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_config_has_heads_and_rows_by_layer_as_plain_json(tmp_path):
    shrink(new_model("bert"), TINY, multiple=8).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["nxm_structure"] == {"heads": [[2], [0, 3]], "rows": [8, 32]}
    assert written["num_attention_heads"] == HEADS


def test_a_half_precision_model_loads_in_its_own_dtype(tmp_path):
    shrink(new_model("bert").to(torch.bfloat16), TINY).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in nxm.load(tmp_path).parameters()} == {torch.bfloat16}


def test_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    small = shrink(BertForMaskedLM(BertConfig(**SIZES | LARGER)).eval(), TINY)
    small.save_pretrained(tmp_path)
    loaded = nxm.load(tmp_path)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert torch.equal(logits(loaded), logits(small))


@every_family
def test_a_model_that_was_not_shrunk_loads_too(family, tmp_path):
    model = new_model(family)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(nxm.load(tmp_path)), logits(model))


@every_family
def test_plain_transformers_refuses_a_shrunk_model_or_draws_its_matrices_at_random(family, tmp_path):
    """The finding in the module's docstring; when transformers can build such models, this test says so."""
    small = shrink(new_model(family), TINY, multiple=8)
    small.save_pretrained(tmp_path)
    for loader in (AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            loader.from_pretrained(tmp_path)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert [block.n_heads for block in find_blocks(found)] == [HEADS, HEADS]
    assert not torch.allclose(logits(found), logits(small), atol=1e-2)


def test_transformers_has_a_key_for_sizes_by_layer_that_bert_does_not_read():
    config = BertConfig(**SIZES, per_layer_config={0: {"intermediate_size": 64}})
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        BertForSequenceClassification(config)


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure(((0,), ()), ((0,), (0,))), "layer 1 has none of its 4 heads left: a layer needs at least one"),
        (Structure(((0,), (1,)), ((), (0,))), "layer 0 has none of its 40 rows left"),
        (Structure(((0,),), ((0,),)), "names heads of 1 layers, but the model has 2 layers"),
        (Structure(((0,), (4,)), ((0,), (0,))), r"layer 1: heads \[4\] are not ascending indices below 4"),
        (Structure(((0,), (1,)), ((3, 2), (0,))), r"layer 0: rows \[3, 2\] are not ascending"),
        (Structure(((0, 0), (1,)), ((0,), (0,))), r"layer 0: heads \[0, 0\] are not ascending"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(structure, message):
    for call in (shrink, mask_):
        with pytest.raises(UserError, match=message):
            call(new_model("bert"), structure)


def test_a_layer_that_lost_all_heads_is_named():
    model = new_model("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight.zero_()
    with pytest.raises(UserError, match="layer 1 has none of its 4 heads left"):
        shrink(model, structure_of(model))


def test_an_unknown_architecture_is_named_with_those_that_are_known():
    model = new_model("bert")
    model.config.model_type = "longformer"
    for call in (structure_of, full_structure, lambda model: shrink(model, TINY)):
        with pytest.raises(UserError, match=r"'longformer' has no entry in nxm\.models\.roles.*known: bert, distilb"):
            call(model)


def test_a_multiple_below_one_is_refused():
    with pytest.raises(UserError, match="multiple = 0"):
        shrink(new_model("bert"), TINY, multiple=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nxm_structure": {"heads": [[2], [0, 3]]}}, "nxm_structure is .*; it needs 'heads'"),
        ({"nxm_structure": {"heads": [[2], [0, 3]], "rows": [8, 24]}}, "size mismatch for .*intermediate"),
        ({"nxm_structure": {"heads": [[2], [0, 9]], "rows": [8, 32]}}, r"layer 1: heads \[0, 9\]"),
        ({"architectures": ["Magic"]}, "architectures names 'Magic', which is no model of transformers"),
        ({"architectures": ["BertForMaskedLM"]}, "not the tensors of BertForMaskedLM: the folder lacks 'cls"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(change, message, tmp_path):
    shrink(new_model("bert"), TINY, multiple=8).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        nxm.load(tmp_path)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        nxm.load(tmp_path)
    shrink(new_model("bert"), TINY).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        nxm.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: there is no such file"):
        nxm.load(tmp_path)
