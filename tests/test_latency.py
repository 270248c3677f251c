"""The benchmark's bookkeeping: what is compared with what, what is absent and why. No test asserts on a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from nxm import latency
from nxm.constraints import NM, Unstructured
from nxm.errors import UserError
from nxm.results import read_benchmark
from nxm.rounds import Call, time_call
from nxm.settings import AdmmTraining, Benchmark, Pattern, Study, Targets, Trainer, Training
from nxm.sources import write_manifest
from nxm.targets import find_targets

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAIN_EXAMPLES, BATCH = 24, 4
STEPS_PER_EPOCH = TRAIN_EXAMPLES // BATCH
NUMBERS = {"median_ms", "p10_ms", "p90_ms"}


@pytest.fixture
def study() -> Study:
    """Only what the benchmark reads."""
    run = {"epochs": 2, "learning_rate": 1e-4, "batch_size": BATCH}
    admm = AdmmTraining(**run, recipe="proximal", rho=0.35, freeze_at=0.5)
    return Study.model_construct(
        study="tiny",
        tasks=["stsb"],
        seeds=[3],
        pattern=Pattern(n_nonzero=2, group_size=4),
        density=0.5,
        targets=Targets(),
        trainer=Trainer(),
        dense={"stsb": Training(**run)},
        asp={"stsb": Training(**run)},
        nxm={"stsb": admm},
        admm_unstructured={"stsb": admm},
        benchmark=Benchmark(seeds=[3], batch_sizes=[1, 2], lengths=[4, 8], warmup=1, repeats=3),
    )


def save_model(folder: Path, layers: int, sparse: bool) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    if sparse:
        for W in find_targets(model).values():
            W.data = NM(2, 4).project(W.data)
    model.save_pretrained(folder)


@pytest.fixture
def root(tmp_path: Path, study: Study) -> Path:
    """A repository with a finished study of tiny random models."""
    for name in latency.MODELS:
        folder = tmp_path / "models" / "tiny" / "stsb" / name / "seed3"
        save_model(folder, layers=1 if "distil" in name else 2, sparse="nxm" in name)
    prepared = tmp_path / "data" / "tiny" / "prepared" / "stsb"
    lengths = [3, 7] * (TRAIN_EXAMPLES // 2)
    DatasetDict(train=Dataset.from_dict({"length": lengths})).save_to_disk(prepared)
    files = {path.relative_to(prepared).as_posix(): "test" for path in prepared.rglob("*") if path.is_file()}
    write_manifest(prepared, files, {})
    return tmp_path


@pytest.fixture
def small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = latency.measure_projection
    monkeypatch.setattr(latency, "measure_projection", lambda study, timer: original(study, timer, shape=(16, 32)))


def unit_timer(call: Call, device: torch.device) -> float:
    """Does the work, says that it took a millisecond."""
    call()
    return 1e-3


def folders_of(root: Path) -> dict[str, Path]:
    return {name: root / "models" / "tiny" / "stsb" / name / "seed3" for name in latency.MODELS}


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_projection")
def test_the_file_has_every_part_and_every_row_its_keys(
    root: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = latency.run_benchmark(study, root, unit_timer)
    assert path == root / "results" / "tiny" / "benchmark.json"
    assert [file.name for file in path.parent.iterdir()] == ["benchmark.json"]  # nothing temporary is left
    benchmark = read_benchmark(path)
    assert benchmark is not None
    assert benchmark["study"] == "tiny"
    assert {"cpu", "cores", "device", "memory_gib"} <= benchmark["provenance"]["machine"].keys()
    assert "torch" in benchmark["provenance"]["versions"]

    measured = [row for row in benchmark["latency"] if "absent" not in row]
    points = {(row["model"], row["kernel"], row["dtype"], row["batch"], row["length"]) for row in measured}
    expected = {(m, "dense", "fp32", b, n) for m in latency.MODELS for b in (1, 2) for n in (4, 8)}
    assert points == expected
    assert len(measured) == len(expected)
    for row in measured:
        assert row.keys() >= NUMBERS | {"spread", "speedup_over_dense"}
    for row in benchmark["training_step"]:
        assert row.keys() >= NUMBERS | {"ratio_to_dense"}
        assert (row["batch"], row["length"]) == (BATCH, 5)  # the mean of 3 and 7
    assert [row["method"] for row in benchmark["training_step"]] == list(latency.STEP_METHODS)
    for row in benchmark["projection"]:
        assert row.keys() >= NUMBERS | {"shape", "speedup_over_torch_ao"}
    assert {"nxm mask 2:4", "nxm project 2:4", "torch.ao 2:4"} <= {row["method"] for row in benchmark["projection"]}


def test_what_a_cpu_cannot_do_is_absent_with_a_reason_and_without_numbers(root: Path, study: Study) -> None:
    rows = latency.measure_latency(folders_of(root), study, CPU, unit_timer)
    sparse = [row for row in rows if row["kernel"] == "2:4"]
    assert {row["model"] for row in sparse} == {"nxm", "distil_nxm"}
    for row in sparse:
        assert row["absent"] == "no 2:4 kernel in PyTorch for cpu"
        assert not row.keys() & (NUMBERS | {"spread", "speedup_over_dense"})


def test_a_model_that_was_not_trained_is_absent_and_the_others_are_measured(root: Path, study: Study) -> None:
    folders = folders_of(root)
    (folders["distil_nxm"] / "config.json").unlink()
    rows = latency.measure_latency(folders, study, CPU, unit_timer)
    assert [row for row in rows if row["model"] == "distil_nxm"] == [
        {"model": "distil_nxm", "kernel": "dense", "absent": "no model of this method was found"}
    ]
    assert {row["model"] for row in rows if "median_ms" in row} == {"dense", "nxm", "distil"}


def test_without_the_dense_model_there_is_nothing_to_compare_with(root: Path, study: Study) -> None:
    (folders_of(root)["dense"] / "config.json").unlink()
    with pytest.raises(UserError, match=r"dense.*run the stage baseline"):
        latency.run_benchmark(study, root, unit_timer)
    assert not (root / "results").exists()


def test_a_length_beyond_the_model_is_named(root: Path, study: Study) -> None:
    settings = study.benchmark.model_copy(update={"lengths": [8, 17]})
    with pytest.raises(UserError, match=r"benchmark\.lengths has 17.*16 tokens"):
        latency.measure_latency(folders_of(root), study.model_copy(update={"benchmark": settings}), CPU, unit_timer)


def test_speedup_is_dense_time_over_own_time(root: Path, study: Study) -> None:
    def layers_timer(call: Call, device: torch.device) -> float:
        return 0.01 * call.args[0].config.num_hidden_layers  # type: ignore[attr-defined]

    rows = latency.measure_latency(folders_of(root), study, CPU, layers_timer)
    speedups = {row["model"]: row["speedup_over_dense"] for row in rows if "absent" not in row}
    assert speedups == {"dense": 1.0, "nxm": 1.0, "distil": 2.0, "distil_nxm": 2.0}
    assert {row["spread"] for row in rows if "absent" not in row} == {0.0}


# --- training step -----------------------------------------------------------------------------------------------


def training_step(root: Path, study: Study, timer: latency.Timer) -> list[latency.Row]:
    return latency.measure_training_step(
        folders_of(root)["dense"], study, "stsb", length=5, steps_per_epoch=STEPS_PER_EPOCH, device=CPU, timer=timer
    )


def test_a_projection_is_spread_over_its_interval(root: Path, study: Study) -> None:
    def scripted(call: Call, device: torch.device) -> float:
        name = getattr(call, "func", call).__name__
        return {"step": 0.10, "call_back": 0.01, "project": 0.06}[name]

    rows = {row["method"]: row for row in training_step(root, study, scripted)}
    assert rows["dense"]["ratio_to_dense"] == 1.0
    assert rows["asp"]["ratio_to_dense"] == pytest.approx(1.1)
    assert rows["asp"]["callback_ms"] == pytest.approx(10.0)
    for name in ("nxm", "nxm_paper", "admm_unstructured"):
        assert rows[name]["interval"] == STEPS_PER_EPOCH
        assert rows[name]["projection_ms"] == pytest.approx(60.0)
        assert rows[name]["median_ms"] == pytest.approx(110.0 + 60.0 / STEPS_PER_EPOCH)
        assert rows[name]["ratio_to_dense"] == pytest.approx(1.2)


def test_the_callbacks_do_their_work_in_every_step(root: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, latency.SparsityCallback | None] = {}
    done: list[str] = []
    original = latency._callback

    def watched(study: Study, task: str, name: str) -> latency.SparsityCallback | None:
        callback = made[name] = original(study, task, name)
        for hook in ("on_pre_optimizer_step", "on_optimizer_step"):
            if callback is not None:
                method = getattr(callback, hook)
                monkeypatch.setattr(
                    callback, hook, lambda *a, m=method, h=hook, **k: (done.append(f"{name} {h}"), m(*a, **k))
                )
        return callback

    monkeypatch.setattr(latency, "_callback", watched)
    training_step(root, study, unit_timer)
    rounds = study.benchmark.warmup + study.benchmark.repeats
    for name in latency.STEP_METHODS[1:]:
        assert done.count(f"{name} on_pre_optimizer_step") == done.count(f"{name} on_optimizer_step") == rounds
    for name in ("nxm", "nxm_paper", "admm_unstructured"):
        callback = made[name]
        assert isinstance(callback, latency.AdmmCallback)
        assert len(callback.iterations) == rounds  # each timed projection was one
        assert callback.frozen_at_step is None  # else the rest would time a fixed mask
    assert made["dense"] is None
    assert made["nxm"].settings.recipe == "proximal"
    assert made["nxm_paper"].settings.recipe == "paper"


# --- projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", latency.PROJECTION_PATTERNS, ids=str)
def test_all_ways_that_are_compared_give_the_same_mask(pattern: NM | Unstructured) -> None:
    W = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    expected = pattern.mask(W)
    masker = latency.torch_ao_masker(W, pattern)
    assert torch.equal(masker().bool(), expected)
    assert torch.equal(masker().bool(), expected)  # the second call starts from the weights again
    assert torch.equal(latency.topk_mask(W, pattern), expected)


def test_projection_speedup_is_over_torch_ao_at_the_same_pattern(study: Study) -> None:
    def by_position(call: Call, device: torch.device) -> float:
        return 1.0 if getattr(call, "__name__", "") == "compute" else 0.25  # torch.ao's is the only plain function

    rows = latency.measure_projection(study, by_position, shape=(8, 16))
    for row in rows:
        assert row["speedup_over_torch_ao"] == (1.0 if row["method"].startswith("torch.ao") else 4.0)
        assert row["shape"] == [8, 16]


# --- 2:4 kernels, the decisions around them ----------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An sm_90 GPU, as far as deciding goes: models and tokens stay on the CPU."""
    load, ids = latency._load, latency._random_ids
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(latency, "_load", lambda folder, device: load(folder, CPU))
    monkeypatch.setattr(latency, "_random_ids", lambda v, b, n, device: ids(v, b, min(n, 8), CPU))


@pytest.mark.usefixtures("pretended_gpu")
def test_fp32_and_old_gpus_have_no_2of4_kernel(root: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders_of(root)["nxm"]
    with pytest.raises(latency._No2of4KernelError, match="not fp32"):
        latency._with_2of4_kernels(folder, study, CUDA, "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(latency._No2of4KernelError, match=r"8\.0, this GPU has 7\.5"):
        latency._with_2of4_kernels(folder, study, CUDA, "bf16")


@pytest.mark.usefixtures("pretended_gpu")
def test_matrices_that_are_not_2of4_are_never_packed(root: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda W: pytest.fail("packed"))
    with pytest.raises(latency._No2of4KernelError, match=r"12 of 12 matrices are not 2:4, first bert\.encoder"):
        latency._with_2of4_kernels(folders_of(root)["dense"], study, CUDA, "bf16")


@pytest.mark.usefixtures("pretended_gpu")
def test_a_failure_to_pack_is_a_reason(root: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(W: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape is not supported\nmore")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", fail)
    with pytest.raises(latency._No2of4KernelError, match=r"multiply: shape is not supported$"):
        latency._with_2of4_kernels(folders_of(root)["nxm"], study, CUDA, "bf16")


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.5, False), (float("nan"), False)])
def test_only_an_output_like_the_dense_kernels_is_timed(
    root: Path, study: Study, monkeypatch: pytest.MonkeyPatch, factor: float, right: bool
) -> None:
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda W: W * factor)
    folder = folders_of(root)["nxm"]
    if right:
        encoder = latency._with_2of4_kernels(folder, study, CUDA, "bf16")
        weights = [module.weight for module in encoder.encoder.modules() if isinstance(module, nn.Linear)]
        assert all(weight.dtype == torch.bfloat16 and not weight.requires_grad for weight in weights)
    else:
        with pytest.raises(latency._No2of4KernelError, match="its output is wrong"):
            latency._with_2of4_kernels(folder, study, CUDA, "bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_2of4_rows_are_numbers_or_reasons(root: Path, study: Study) -> None:
    rows = latency.measure_latency(folders_of(root), study, CUDA, time_call)
    sparse = [row for row in rows if row["kernel"] == "2:4"]
    assert {row["dtype"] for row in sparse} == {"fp32", "fp16", "bf16"}
    for row in sparse:
        assert ("absent" in row) != ("median_ms" in row)
        if row["dtype"] == "fp32":
            assert "not fp32" in row["absent"]


def test_the_file_is_plain_json(root: Path, study: Study) -> None:
    rows = latency.measure_latency(folders_of(root), study, CPU, unit_timer)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
