"""Parts of a bench: products, encoders and blocks compute what they say. No test reads a clock."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from nxm.measure.bench import blocks, card, encoder, encoders, products
from nxm.measure.bench.unit import difference, kernel_row
from nxm.measure.kernels import Launched, is_sparse, launched
from nxm.replay import Replay
from nxm.sets.nm import NM
from stand_in import cusparselt_on_cpu

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(encoder.SIZES, "tiny", (2, 64, 4, 128))
    monkeypatch.setattr(encoders, "REPEATS", 1)


def by_way(rows):
    return {row["way"]: row for row in rows}


@pytest.mark.parametrize("dtype", products.DTYPES)
def test_every_way_to_multiply_is_right_and_a_cpu_has_no_2of4_kernels(dtype):
    rows = by_way(products.measure_product(dtype, (96, 64), 48, CPU))
    assert rows["dense"]["relative_error"] <= products.TOLERANCE[dtype]
    assert rows["dense"]["reference"].startswith("dense")
    assert "absent" in rows["2:4"]
    assert "median_ms" not in rows["2:4"]
    with cusparselt_on_cpu():
        rows = by_way(products.measure_product(dtype, (96, 64), 48, CPU))
    if dtype == "fp32":  # no 2:4 kernel multiplies it
        assert rows["2:4"]["absent"].startswith("matrix: cuSPARSELt has no 2:4 kernel")
        return
    assert rows["2:4"]["relative_error"] <= products.TOLERANCE[dtype]
    assert rows["2:4"]["algorithm"] == [3, 1, -1]
    assert rows["2:4"]["care"] == 0


def test_a_way_whose_output_is_wrong_gets_no_time(monkeypatch):
    honest = products.ways_to_multiply

    def wrong_where_sparse(*given):
        ways = honest(*given)
        (call,) = ways.calls["masked"]()
        ways.calls["masked"] = lambda: [lambda: 1.5 * call()]
        return ways

    monkeypatch.setattr(products, "ways_to_multiply", wrong_where_sparse)
    rows = by_way(products.measure_product("fp32", (32, 64), 16, CPU))
    assert rows["masked"]["absent"] == "its output is wrong: relative error 5.0e-01"
    assert "median_ms" not in rows["masked"]
    assert "median_ms" in rows["dense"]


def test_a_graph_whose_output_is_wrong_gets_no_time(monkeypatch):
    class Wrong(Replay):
        """Its calls are right when they are called, and their graph is not."""

        def __init__(self, calls, device):
            super().__init__(calls, device)
            self.output = 1.5 * self.output

    monkeypatch.setattr(products, "Replay", Wrong)
    (row,) = [row for row in products.measure_product("fp32", (32, 64), 16, CPU) if row["way"] == "dense"]
    assert row["absent"] == "its output is wrong: relative error 5.0e-01"
    monkeypatch.setattr(blocks, "Replay", Wrong)
    sparse = [row for row in blocks.measure_blocks((128, 128), 32, CPU) if row["way"] != "dense"]
    assert {row["absent"] for row in sparse} == {"its output is wrong in a CUDA graph: relative error 5.0e-01"}


@pytest.mark.parametrize("dtype", products.DTYPES)
def test_the_last_of_several_calls_has_an_exact_result_of_its_own(dtype):
    draws = torch.Generator().manual_seed(0)
    xs, Ws = ([torch.randn(16, 32, generator=draws) for _ in range(2)] for _ in range(2))
    sparse = [products.two_of_four(W) for W in Ws]
    if dtype in ("int8", "fp8"):
        make = products._integer_ways if dtype == "int8" else products._fp8_ways
        ways = make(xs, Ws, sparse, products.search)
    else:
        kind = products.DTYPES[dtype]
        ways = products._half_ways(*([v.to(kind) for v in values] for values in (xs, Ws, sparse)), products.search)
    assert not torch.equal(ways.exact("dense", 0), ways.exact("dense", -1))


def test_what_a_library_refuses_is_absent_with_its_reason(monkeypatch):
    honest = products.ways_to_multiply

    def refusing(*given):
        ways = honest(*given)

        def refuse():
            raise RuntimeError("self.size(0) needs to be greater than 16\nand more")

        ways.calls["masked"] = refuse
        return ways

    monkeypatch.setattr(products, "ways_to_multiply", refusing)
    rows = by_way(products.measure_product("fp32", (32, 64), 16, CPU))
    assert rows["masked"]["absent"] == "self.size(0) needs to be greater than 16"


def test_a_product_counts_two_operations_for_each_weight_and_token():
    (row,) = [row for row in products.measure_product("fp32", (32, 64), 16, CPU) if row["way"] == "dense"]
    assert row["tflops"] * 1e12 * row["median_ms"] / 1e3 == pytest.approx(2 * 32 * 64 * 16, rel=0.02)


def test_units_are_distinct_and_large_products_come_before_small_ones():
    for device in (CPU, torch.device("cuda")):
        units = products.units(device)
        assert len({unit.name for unit in units}) == len(units)
        tokens = products.TOKENS[device.type]
        assert list(tokens.values()) == sorted(tokens.values(), reverse=True)
        assert list(tokens) == sorted(tokens, reverse=True)


def test_the_encoder_computes_what_bert_does(tiny):
    """The same weights in transformers' BertLayer give the same hidden states."""
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, layer_norm_eps=1e-12
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    layers = encoder.make_layers("tiny", CPU)
    for ours, theirs in zip(layers, bert.encoder.layer, strict=True):
        attention = theirs.attention.self
        for part in ("weight", "bias"):
            parts = [getattr(each, part) for each in (attention.query, attention.key, attention.value)]
            getattr(ours.qkv, part).copy_(torch.cat(parts))
        ours.attention_output.load_state_dict(theirs.attention.output.dense.state_dict())
        ours.attention_norm.load_state_dict(theirs.attention.output.LayerNorm.state_dict())
        ours.up.load_state_dict(theirs.intermediate.dense.state_dict())
        ours.down.load_state_dict(theirs.output.dense.state_dict())
        ours.output_norm.load_state_dict(theirs.output.LayerNorm.state_dict())
    h = torch.randn(3, 7, 64)
    with torch.inference_mode():
        expected = bert.encoder(h).last_hidden_state
    torch.testing.assert_close(encoder.run(layers, h), expected, rtol=1e-4, atol=1e-5)


def test_projected_matrices_are_2of4_and_the_others_untouched(tiny):
    layers = encoder.make_layers("tiny", CPU)
    sparse = encoder.project(layers, encoder.FEED_FORWARD)
    for before, after in zip(layers, sparse, strict=True):
        for name in encoder.MATRICES:
            W = after.get_submodule(name).weight
            assert NM(2, 4).contains(W) == (name in encoder.FEED_FORWARD)
            assert torch.equal(W, before.get_submodule(name).weight) == (name not in encoder.FEED_FORWARD)


def test_every_form_is_right_and_proves_its_reference(tiny):
    with cusparselt_on_cpu():
        rows = encoders.measure_encoder("tiny", 2, 16, CPU, backend="eager")
    assert len(rows) == len(encoders.forms_on(CPU))
    assert not [row for row in rows if "captured" in row or row["way"] == "captured"]  # a CPU has no CUDA graphs
    assert ("fp32", "dense", "eager") in {(row["dtype"], row["form"], row["way"]) for row in rows}
    for row in rows:
        assert "absent" not in row, row
        if "same_as" in row:
            assert row["form"] == "auto"
            continue
        assert row["relative_error"] <= encoders.TOLERANCE[row["dtype"]]
        assert row["reference"] == "bf16 dense compiled"
        kernels = set(row["kernels_of"].values())
        if row["form"] == "2:4":
            assert kernels == {"cusparselt"}
        if row["form"] == "2:4 FFN":
            assert [row["kernels_of"][name] for name in encoder.MATRICES] == ["dense", "dense"] + ["cusparselt"] * 2


def test_without_2of4_kernels_dense_forms_are_measured_and_the_others_say_why(tiny):
    rows = encoders.measure_encoder("tiny", 2, 16, CPU, backend="eager")
    for row in rows:
        if row["form"].startswith("2:4"):
            assert row["absent"] == f"no 2:4 kernel for {row['dtype']} on cpu"
        elif row["form"] == "dense":
            assert "median_ms" in row


@pytest.mark.parametrize("density", blocks.DENSITIES)
@pytest.mark.parametrize("block", [8, 16])
def test_as_many_blocks_are_left_in_each_row_of_blocks(block, density):
    W = torch.randn(64, 160)
    left, kept = blocks.keep_blocks(W, block, density, torch.Generator().manual_seed(0))
    assert kept == pytest.approx(float((left != 0).double().mean()))
    tiles = left.reshape(64 // block, block, 160 // block, block).abs().sum((1, 3)) > 0
    assert (tiles.sum(1) == round(density * 160 / block)).all()
    assert torch.equal(left[left != 0], W[left != 0])


def test_block_sparse_products_are_right():
    rows = by_way(blocks.measure_blocks((128, 128), 32, CPU))
    assert len(rows) == 1 + len(blocks.BLOCKS) * len(blocks.DENSITIES)
    assert all("absent" not in row for row in rows.values())
    assert all(row["relative_error"] < 1e-5 for way, row in rows.items() if way != "dense")


def test_a_block_sparse_row_counts_the_weights_that_are_left():
    for row in blocks.measure_blocks((64, 192), 32, CPU):
        kept = {"dense": 1.0, "32x32 at 0.2": 1 / 6, "32x32 at 0.4": 2 / 6, "64x64 at 0.2": 1 / 3}.get(
            row["way"], 1 / 3
        )
        assert row.get("density", 1.0) == pytest.approx(kept, abs=1e-4)
        assert row["tflops"] * 1e9 * row["median_ms"] == pytest.approx(2 * 32 * 64 * 192 * kept, rel=0.02)
        assert "captured" not in row


def test_the_proof_names_what_ran(monkeypatch):
    monkeypatch.setattr(card, "PROOF", (64, 64, 32))
    assert all(row["absent"] for row in card.measure_proof(CPU))
    with cusparselt_on_cpu():
        rows = card.measure_proof(CPU)
    assert [row["way"] for row in rows] == ["dense", "2:4"] * 2
    assert all(row["launches"] > 0 for row in rows)
    assert all(row["difference"] < 1e-2 for row in rows if row["way"] == "2:4")


def test_sparse_launches_are_counted_by_name():
    row = kernel_row(
        [
            Launched("sm90_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x256x64", 12, 100.0),
            Launched("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", 3, 50.0),
        ]
    )
    assert (row["sparse_launches"], row["launches"], row["kernels_us"]) == (12, 15, 150.0)


def test_kernels_are_told_by_their_names():
    assert is_sparse("void cutlass::Kernel<cutlass::gemm::kernel::SparseGemmRowBroadcast<...>>")
    assert is_sparse("sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64")
    assert is_sparse("cutlass_80_tensorop_h16816spgemm_128x128_64x3_tn_align8")
    assert not is_sparse("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn")
    assert not is_sparse("sparse_copy")


def test_the_profiler_counts_what_ran():
    x, W = torch.randn(16, 64), torch.randn(32, 64)

    def twice():
        torch.mm(x, W.t())
        torch.mm(x, W.t())

    found = {each.name: each.launches for each in launched(twice, CPU)}
    assert found["aten::mm"] == 2
    assert "aten::mm" not in {each.name for each in launched(lambda: torch.add(x, 1.0), CPU)}


def test_a_difference_is_relative():
    assert difference(torch.tensor([1.1, 0.0]), torch.tensor([1.0, 0.0])) == pytest.approx(0.1, rel=1e-3)
