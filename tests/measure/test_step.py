"""The benchmark's bookkeeping: which calls are compared with which. No test asserts on a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForSequenceClassification

from nxm.errors import UserError
from nxm.files import write_manifest
from nxm.measure import step
from nxm.measure.timing import Call
from nxm.sets.nm import NM
from nxm.sets.unstructured import Unstructured
from nxm.study.results import read_benchmark
from nxm.study.settings import Benchmark, Run, Study, load_study

REPOSITORY = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS_PER_EPOCH = 2
NUMBERS = {"median_ms", "p10_ms", "p90_ms"}
ADMM_RUNS = ("nxm", "nxm_paper", "admm_unstructured")


@pytest.fixture
def study() -> Study:
    """The embedded study, with fewer rounds."""
    return load_study(REPOSITORY / "params.yaml").model_copy(
        update={"benchmark": Benchmark(seeds=[3], warmup=1, repeats=3)}
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
def folder(tmp_path: Path, study: Study) -> Path:
    """A study's folder with a tiny random dense model and prepared data."""
    save_model(dense_of(tmp_path))
    prepared = tmp_path / "data" / "prepared" / "stsb"
    lengths = [3, 7] * (study.run("dense", "stsb").batch_size * STEPS_PER_EPOCH // 2)
    DatasetDict(train=Dataset.from_dict({"length": lengths})).save_to_disk(prepared)
    files = {path.relative_to(prepared).as_posix(): "test" for path in prepared.rglob("*") if path.is_file()}
    write_manifest(prepared, files, {})
    return tmp_path


@pytest.fixture
def small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = step.measure_projection
    monkeypatch.setattr(step, "measure_projection", lambda study, timer: original(study, timer, shape=(16, 32)))


def unit_timer(call: Call, device: torch.device) -> float:
    """Do the work and return a millisecond."""
    call()
    return 1e-3


def dense_of(folder: Path) -> Path:
    return folder / "models" / "stsb" / "dense" / "seed3"


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_projection")
def test_the_file_has_every_part_and_every_row_its_keys(
    folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = step.run_benchmark(study, folder, unit_timer)
    assert path == folder / "results" / "benchmark.json"
    assert [file.name for file in path.parent.iterdir()] == ["benchmark.json"]  # nothing temporary is left
    benchmark = read_benchmark(path)
    assert benchmark is not None
    assert benchmark["study"] == "embedded"
    assert {"cpu", "cores", "device", "memory_gib"} <= benchmark["provenance"]["machine"].keys()
    assert "torch" in benchmark["provenance"]["versions"]

    for row in benchmark["training_step"]:
        assert row.keys() >= NUMBERS | {"ratio_to_dense"}
        assert (row["batch"], row["length"]) == (32, 5)  # the mean of 3 and 7
    assert [row["method"] for row in benchmark["training_step"]] == list(step.STEP_RUNS)
    for row in benchmark["projection"]:
        assert row.keys() >= NUMBERS | {"shape", "speedup_over_torch_ao"}
    assert {"nxm mask 2:4", "nxm project 2:4", "torch.ao 2:4"} <= {row["method"] for row in benchmark["projection"]}


def test_without_the_dense_model_there_is_nothing_to_train(folder: Path, study: Study) -> None:
    (dense_of(folder) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"dense/seed3: no model here"):
        step.run_benchmark(study, folder, unit_timer)
    assert not (folder / "results").exists()


# --- training step -----------------------------------------------------------------------------------------------


def training_step(folder: Path, study: Study, timer: step.Timer) -> list[step.Row]:
    return step.measure_training_step(
        dense_of(folder), study, "stsb", length=5, steps_per_epoch=STEPS_PER_EPOCH, device=CPU, timer=timer
    )


def scripted(call: Call, device: torch.device) -> float:
    name = getattr(call, "func", call).__name__
    return {"step": 0.10, "call_back": 0.01, "project": 0.06}[name]


def test_an_interval_that_follows_from_the_length_is_that_of_the_studys_own_run(
    folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Study.run
    changes = {"epochs": 24, "interval": "auto", "freeze_at": 0.5}

    def changed(*given: object) -> Run:
        run = original(*given)
        return run.replace(**{name: value for name, value in changes.items() if name in type(run).model_fields})

    monkeypatch.setattr(Study, "run", changed)
    rows = training_step(folder, study, scripted)
    assert {row["method"]: row.get("interval") for row in rows} == {
        "dense": None,
        "asp": None,
        "nxm": STEPS_PER_EPOCH,  # of 24 epochs twelve come before the freeze
        "nxm_paper": STEPS_PER_EPOCH,
        "admm_unstructured": STEPS_PER_EPOCH,
    }


def test_a_projection_is_spread_over_its_interval(folder: Path, study: Study) -> None:
    rows = {row["method"]: row for row in training_step(folder, study, scripted)}
    interval = study.run("nxm", "stsb").interval
    assert rows["dense"]["ratio_to_dense"] == 1.0
    assert rows["asp"]["ratio_to_dense"] == pytest.approx(1.1)
    assert rows["asp"]["callback_ms"] == pytest.approx(10.0)
    for name in ADMM_RUNS:
        assert rows[name]["interval"] == interval
        assert rows[name]["projection_ms"] == pytest.approx(60.0)
        assert rows[name]["median_ms"] == pytest.approx(110.0 + 60.0 / interval)
        assert rows[name]["ratio_to_dense"] == pytest.approx(1.1 + 0.6 / interval)


def test_the_callbacks_do_their_work_in_every_step(folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, step.SparsityCallback | None] = {}
    done: list[str] = []
    original = step._callback

    def watched(study: Study, task: str, name: str, steps_per_epoch: int) -> step.SparsityCallback | None:
        callback = made[name] = original(study, task, name, steps_per_epoch)
        for hook in ("on_pre_optimizer_step", "on_optimizer_step"):
            if callback is not None:
                method = getattr(callback, hook)
                monkeypatch.setattr(
                    callback, hook, lambda *a, m=method, h=hook, **k: (done.append(f"{name} {h}"), m(*a, **k))
                )
        return callback

    monkeypatch.setattr(step, "_callback", watched)
    training_step(folder, study, unit_timer)
    rounds = study.benchmark.warmup + study.benchmark.repeats
    for name in step.STEP_RUNS[1:]:
        assert done.count(f"{name} on_pre_optimizer_step") == done.count(f"{name} on_optimizer_step") == rounds
    for name in ADMM_RUNS:
        callback = made[name]
        assert isinstance(callback, step.AdmmCallback)
        assert len(callback.iterations) == rounds  # each timed projection was one
        assert callback.frozen_at_step is None  # otherwise the others would time a fixed mask
    assert made["dense"] is None
    assert made["nxm"].settings.recipe == "proximal"
    assert made["nxm_paper"].settings.recipe == "paper"


# --- projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", step.PROJECTION_PATTERNS, ids=str)
def test_all_ways_that_are_compared_give_the_same_mask(pattern: NM | Unstructured) -> None:
    W = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    expected = pattern.mask(W)
    masker = step.torch_ao_masker(W, pattern)
    assert torch.equal(masker().bool(), expected)
    assert torch.equal(masker().bool(), expected)  # the second call starts from the weights again
    assert torch.equal(step.topk_mask(W, pattern), expected)


def test_projection_speedup_is_over_torch_ao_at_the_same_pattern(study: Study) -> None:
    def by_position(call: Call, device: torch.device) -> float:
        return 1.0 if getattr(call, "__name__", "") == "compute" else 0.25  # torch.ao's is the only plain function

    rows = step.measure_projection(study, by_position, shape=(8, 16))
    for row in rows:
        assert row["speedup_over_torch_ao"] == (1.0 if row["method"].startswith("torch.ao") else 4.0)
        assert row["shape"] == [8, 16]
