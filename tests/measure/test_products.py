"""Products of single matrices: comparisons, absent ways and the roofline. No test reads a clock."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from nxm.measure import products
from nxm.measure.kernels import are_sparse, kernels_of
from nxm.measure.products import Ceilings, Product, measure_unit, roofline, run_matrices
from nxm.measure.timing import Call
from nxm.sets.nm import NM
from nxm.study.results import read_measurements
from nxm.study.settings import Matrices, Study

CPU = torch.device("cpu")
LIMITS = Ceilings(1e9, {"dense": 1e9, "cusparselt": 2e9, "cutlass": 1.5e9})
SETTINGS = Matrices(devices=["cpu"], shapes=[[32, 64], [64, 32]], points=[[1, 16], [2, 16]], warmup=1, repeats=3)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with small products, also for the ceilings."""
    monkeypatch.setattr(products, "CEILING_SIZE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(products, "COPY_BYTES", {"cpu": 4096, "cuda": 4096})
    return Study.model_construct(study="tiny", matrices=SETTINGS)


def unit_timer(call: Call, device: torch.device) -> float:
    call()
    return 1e-3


def test_every_unit_has_a_row_for_each_way_and_a_cpu_has_no_2of4_kernels(study: Study, tmp_path: Path) -> None:
    path = run_matrices(study, "cpu", tmp_path, unit_timer)
    assert path == tmp_path / "results/matrices/cpu.json"
    (file,) = read_measurements(path.parent)
    assert file["device"] == "cpu"
    assert {"machine", "versions"} == file["provenance"].keys()
    units = {(tuple(row["shape"]), row["batch"], row["length"], row["dtype"]) for row in file["rows"]}
    assert units == {(s, b, 16, d) for s in ((32, 64), (64, 32)) for b in (1, 2) for d in ("fp32", "bf16", "int8")}
    assert len(file["rows"]) == 4 * len(units)
    for row in file["rows"]:
        if row["way"] in ("cusparselt", "cutlass"):
            assert row["absent"] == "no 2:4 kernel in PyTorch for cpu"
            assert not row.keys() & {"median_ms", "speedup_over_dense", "kernels"}
        else:
            assert row["median_ms"] == 1.0
            assert row["speedup_over_dense"] == 1.0
            assert not row["noisy"]
            assert row["kernels"]
            assert not row["sparse_kernels"]
            assert row["relative_error"] <= products.TOLERANCE[row["dtype"]]
    assert not (tmp_path / "checkpoints/matrices-cpu").exists()
    ways = {(row["dtype"], row["way"]) for row in file["ceilings"]}
    assert ways == {(dtype, way) for dtype in ("fp32", "bf16", "int8") for way in ("dense", "copy")}


def test_a_killed_run_measures_no_unit_twice(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    measured: list[tuple[object, ...]] = []

    def until_killed(shape: object, point: object, dtype: str, *rest: object) -> list[dict[str, object]]:
        if len(measured) == 5:
            raise KilledError
        measured.append((shape, point, dtype))
        return measure_unit(shape, point, dtype, *rest)

    monkeypatch.setattr(products, "measure_unit", until_killed)
    with pytest.raises(KilledError):
        run_matrices(study, "cpu", tmp_path, unit_timer)
    assert not (tmp_path / "results").exists()
    first = list(measured)
    monkeypatch.setattr(products, "measure_unit", lambda *given: measured.append(given[:3]) or measure_unit(*given))
    path = run_matrices(study, "cpu", tmp_path, unit_timer)
    assert len(measured) == len(set(measured)) == 12
    assert measured[:5] == first
    whole = run_matrices(study, "cpu", tmp_path / "other", unit_timer)
    rows = [json.loads(each.read_text())["rows"] for each in (path, whole)]
    assert rows[0] == rows[1]


def test_without_a_gpu_the_file_says_so_and_has_no_number(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = json.loads(run_matrices(study, "cuda", tmp_path, unit_timer).read_text())
    assert file == {"study": "tiny", "device": "cuda", "absent": "no CUDA device where this was run", "rows": []}


def test_a_way_whose_output_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = products._dense

    def wrong_where_sparse(x: torch.Tensor, W: torch.Tensor) -> Product:
        product = honest(x, W)
        return Product(lambda: 1.5 * product.call(), W) if NM(2, 4).contains(W) else product

    monkeypatch.setattr(products, "_dense", wrong_where_sparse)
    rows = {row["way"]: row for row in measure_unit((32, 64), (1, 16), "fp32", CPU, SETTINGS, LIMITS, unit_timer)}
    assert rows["masked"]["absent"] == "its output is wrong: relative error 5.0e-01"
    assert "median_ms" not in rows["masked"]
    assert rows["dense"]["median_ms"] == 1.0


def test_what_a_library_refuses_is_absent_with_its_reason(monkeypatch) -> None:
    """For example, `_int_mm` on CUDA refuses few rows."""

    def refuse(x: torch.Tensor, W: torch.Tensor) -> Product:
        if NM(2, 4).contains(W):
            raise RuntimeError("self.size(0) needs to be greater than 16\nand more")
        return honest(x, W)

    honest = products._dense
    monkeypatch.setattr(products, "_dense", refuse)
    rows = {row["way"]: row for row in measure_unit((32, 64), (1, 16), "fp32", CPU, SETTINGS, LIMITS, unit_timer)}
    assert rows["masked"]["absent"] == "PyTorch refused: self.size(0) needs to be greater than 16"
    assert rows["dense"]["median_ms"] == 1.0


def test_kernels_are_timed_without_their_launch(study, tmp_path, monkeypatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(products, "time_kernel", lambda call, device: used.append(device.type) or 1e-3)
    run_matrices(study, "cpu", tmp_path)
    assert set(used) == {"cpu"}


def test_speedups_are_within_rounds_and_noise_is_marked() -> None:
    seconds = iter(
        [9.0, 9.0, 1.0, 0.5, 1.0, 2.0, 4.0, 2.0] + [1.0, 0.5] * 10
    )  # dense and masked take turns to be first

    rows = measure_unit((32, 64), (1, 16), "fp32", CPU, SETTINGS, LIMITS, lambda call, device: next(seconds))
    by_way = {row["way"]: row for row in rows if "absent" not in row}
    assert by_way["masked"]["speedup_over_dense"] == 2.0
    assert by_way["dense"]["noisy"]


def test_the_roofline_is_the_time_of_bytes_or_of_operations() -> None:
    # 16 tokens through (32, 64) in fp32: 65,536 operations; 8,192 + 4,096 + 2,048 bytes.
    dense = roofline((32, 64), 16, "fp32", "dense", 1e-3, LIMITS)
    assert dense["operations"] == 65_536
    assert dense["bytes"] == 14_336
    assert dense["bound"] == "speed"
    assert dense["limit_ms"] == 0.06554
    assert dense["share"] == 0.0655
    slow_memory = Ceilings(1e8, LIMITS.operations)
    assert roofline((32, 64), 16, "fp32", "dense", 1.0, slow_memory)["bound"] == "memory"


def test_a_packed_matrix_is_half_its_values_and_two_bits_for_each() -> None:
    dense = roofline((32, 64), 16, "bf16", "dense", 1.0, LIMITS)
    packed = roofline((32, 64), 16, "bf16", "cusparselt", 1.0, LIMITS)
    assert dense["bytes"] - packed["bytes"] == 32 * 64 * 2 - (32 * 64 * 2 / 2 + 32 * 64 / 2 * 2 / 8)
    assert packed["limit_ms"] == pytest.approx(dense["limit_ms"] / 2, rel=1e-3)  # at twice the speed
    assert roofline((32, 64), 16, "bf16", "masked", 1.0, LIMITS) == dense


def test_kernels_are_told_by_their_names() -> None:
    assert are_sparse(["void cutlass::Kernel<cutlass::gemm::kernel::SparseGemmRowBroadcast<...>>"])
    assert are_sparse(["memset", "sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64"])
    assert are_sparse(["cutlass_80_tensorop_h16816spgemm_128x128_64x3_tn_align8"])
    assert not are_sparse(["ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn", "sparse_copy"])


def test_the_profiler_names_what_ran() -> None:
    x, W = torch.randn(16, 64), torch.randn(32, 64)
    assert "aten::mm" in kernels_of(partial(torch.mm, x, W.t()), CPU)
    assert "aten::mm" not in kernels_of(partial(torch.add, x, 1.0), CPU)
