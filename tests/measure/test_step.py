"""The benchmark's bookkeeping: what is compared with what. No test asserts on a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForSequenceClassification

from nxm.errors import UserError
from nxm.files import write_manifest
from nxm.measure import step as overhead
from nxm.measure.timing import Call
from nxm.sets.nm import NM
from nxm.sets.unstructured import Unstructured
from nxm.study.results import read_benchmark
from nxm.study.settings import AdmmTraining, Benchmark, Pattern, Study, Targets, Trainer, Training

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
        benchmark=Benchmark(seeds=[3], warmup=1, repeats=3),
    )


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)


@pytest.fixture
def root(tmp_path: Path, study: Study) -> Path:
    """A repository with a tiny random dense model and prepared data."""
    save_model(dense_of(tmp_path))
    prepared = tmp_path / "data" / "tiny" / "prepared" / "stsb"
    lengths = [3, 7] * (TRAIN_EXAMPLES // 2)
    DatasetDict(train=Dataset.from_dict({"length": lengths})).save_to_disk(prepared)
    files = {path.relative_to(prepared).as_posix(): "test" for path in prepared.rglob("*") if path.is_file()}
    write_manifest(prepared, files, {})
    return tmp_path


@pytest.fixture
def small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = overhead.measure_projection
    monkeypatch.setattr(overhead, "measure_projection", lambda study, timer: original(study, timer, shape=(16, 32)))


def unit_timer(call: Call, device: torch.device) -> float:
    """Does the work, says that it took a millisecond."""
    call()
    return 1e-3


def dense_of(root: Path) -> Path:
    return root / "models" / "tiny" / "stsb" / "dense" / "seed3"


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_projection")
def test_the_file_has_every_part_and_every_row_its_keys(
    root: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = overhead.run_benchmark(study, root, unit_timer)
    assert path == root / "results" / "tiny" / "benchmark.json"
    assert [file.name for file in path.parent.iterdir()] == ["benchmark.json"]  # nothing temporary is left
    benchmark = read_benchmark(path)
    assert benchmark is not None
    assert benchmark["study"] == "tiny"
    assert {"cpu", "cores", "device", "memory_gib"} <= benchmark["provenance"]["machine"].keys()
    assert "torch" in benchmark["provenance"]["versions"]

    for row in benchmark["training_step"]:
        assert row.keys() >= NUMBERS | {"ratio_to_dense"}
        assert (row["batch"], row["length"]) == (BATCH, 5)  # the mean of 3 and 7
    assert [row["method"] for row in benchmark["training_step"]] == list(overhead.STEP_METHODS)
    for row in benchmark["projection"]:
        assert row.keys() >= NUMBERS | {"shape", "speedup_over_torch_ao"}
    assert {"nxm mask 2:4", "nxm project 2:4", "torch.ao 2:4"} <= {row["method"] for row in benchmark["projection"]}


def test_without_the_dense_model_there_is_nothing_to_train(root: Path, study: Study) -> None:
    (dense_of(root) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"dense/seed3: no model here"):
        overhead.run_benchmark(study, root, unit_timer)
    assert not (root / "results").exists()


# --- training step -----------------------------------------------------------------------------------------------


def training_step(root: Path, study: Study, timer: overhead.Timer) -> list[overhead.Row]:
    return overhead.measure_training_step(
        dense_of(root), study, "stsb", length=5, steps_per_epoch=STEPS_PER_EPOCH, device=CPU, timer=timer
    )


def scripted(call: Call, device: torch.device) -> float:
    name = getattr(call, "func", call).__name__
    return {"step": 0.10, "call_back": 0.01, "project": 0.06}[name]


def test_an_interval_that_follows_from_the_length_is_that_of_the_studys_own_run(root: Path, study: Study) -> None:
    block = study.nxm["stsb"].model_copy(
        update={"epochs": 24, "interval": "auto", "freeze_at": 0.5, "dual_step": "full"}
    )
    rows = training_step(root, study.model_copy(update={"nxm": {"stsb": block}}), scripted)
    assert {row["method"]: row.get("interval") for row in rows} == {
        "dense": None,
        "asp": None,
        "nxm": STEPS_PER_EPOCH,  # of 24 epochs twelve come before the freeze
        "nxm_paper": STEPS_PER_EPOCH,
        "admm_unstructured": STEPS_PER_EPOCH,
    }


def test_a_projection_is_spread_over_its_interval(root: Path, study: Study) -> None:
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
    made: dict[str, overhead.SparsityCallback | None] = {}
    done: list[str] = []
    original = overhead._callback

    def watched(study: Study, task: str, name: str, steps_per_epoch: int) -> overhead.SparsityCallback | None:
        callback = made[name] = original(study, task, name, steps_per_epoch)
        for hook in ("on_pre_optimizer_step", "on_optimizer_step"):
            if callback is not None:
                method = getattr(callback, hook)
                monkeypatch.setattr(
                    callback, hook, lambda *a, m=method, h=hook, **k: (done.append(f"{name} {h}"), m(*a, **k))
                )
        return callback

    monkeypatch.setattr(overhead, "_callback", watched)
    training_step(root, study, unit_timer)
    rounds = study.benchmark.warmup + study.benchmark.repeats
    for name in overhead.STEP_METHODS[1:]:
        assert done.count(f"{name} on_pre_optimizer_step") == done.count(f"{name} on_optimizer_step") == rounds
    for name in ("nxm", "nxm_paper", "admm_unstructured"):
        callback = made[name]
        assert isinstance(callback, overhead.AdmmCallback)
        assert len(callback.iterations) == rounds  # each timed projection was one
        assert callback.frozen_at_step is None  # else the rest would time a fixed mask
    assert made["dense"] is None
    assert made["nxm"].settings.recipe == "proximal"
    assert made["nxm_paper"].settings.recipe == "paper"


# --- projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", overhead.PROJECTION_PATTERNS, ids=str)
def test_all_ways_that_are_compared_give_the_same_mask(pattern: NM | Unstructured) -> None:
    W = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    expected = pattern.mask(W)
    masker = overhead.torch_ao_masker(W, pattern)
    assert torch.equal(masker().bool(), expected)
    assert torch.equal(masker().bool(), expected)  # the second call starts from the weights again
    assert torch.equal(overhead.topk_mask(W, pattern), expected)


def test_projection_speedup_is_over_torch_ao_at_the_same_pattern(study: Study) -> None:
    def by_position(call: Call, device: torch.device) -> float:
        return 1.0 if getattr(call, "__name__", "") == "compute" else 0.25  # torch.ao's is the only plain function

    rows = overhead.measure_projection(study, by_position, shape=(8, 16))
    for row in rows:
        assert row["speedup_over_torch_ao"] == (1.0 if row["method"].startswith("torch.ao") else 4.0)
        assert row["shape"] == [8, 16]
