"""Result files: what is written is what is read, and a wrong file is named with what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nxm.errors import UserError
from nxm.files import write_bytes
from nxm.study.results import (
    FRAME_COLUMNS,
    mean_similarity,
    predictions_path,
    read_benchmark,
    read_failures,
    read_predictions,
    read_result,
    read_study,
    result_path,
    same_apart_from_times,
    to_frame,
    without_times,
    write_predictions,
    write_result,
)
from synthetic_study import make_benchmark, make_failure, make_result, make_study


@pytest.mark.parametrize("method", ["dense", "asp", "nxm", "distil_nxm_kd"])
def test_a_result_equals_the_one_read_back(tmp_path: Path, method: str) -> None:
    result = make_result(method=method)
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result


def test_equal_results_give_equal_bytes_with_sorted_keys(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(tmp_path / name, make_result())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    keys = list(json.loads((tmp_path / "a").read_text()))
    assert keys == sorted(keys)


def test_the_first_keys_are_those_that_any_reader_may_count_on(tmp_path: Path) -> None:
    write_result(tmp_path / "r.json", make_result(score=83.12))
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert (loaded["study"], loaded["task"], loaded["method"], loaded["seed"]) == ("embedded", "stsb", "nxm", 1)
    assert loaded["metric"] == {"name": "spearman", "value": 83.12}
    assert loaded["cell"] is None


def test_scores_are_rounded_and_hyperparameters_are_not() -> None:
    result = make_result(score=83.123456789, learning_rate=1.23456789e-5)
    assert result.metric.value == 83.1235
    assert result.hyperparameters["learning_rate"] == 1.23456789e-5


def test_only_times_memory_and_energy_may_differ_between_equal_runs() -> None:
    result = make_result()
    other = {"wall_seconds": 9e3, "train_seconds": 8e3, "peak_memory_mib": 1.0, "energy_joules": 5.0}
    slower = result.model_copy(update=other)
    assert slower != result
    assert same_apart_from_times(result, slower)
    assert "wall_seconds" not in without_times(result)
    assert not same_apart_from_times(result, make_result(seed=2))


def test_predictions_are_read_as_written_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    logits = {"validation": np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)}
    paths = [predictions_path(tmp_path / f"seed{seed}.json") for seed in (0, 1)]
    for path in paths:
        write_predictions(path, logits)
    read = read_predictions(paths[0])
    assert read.keys() == logits.keys()
    assert np.array_equal(read["validation"], logits["validation"])
    assert read["validation"].dtype == np.float32
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_damaged_predictions_are_named_and_no_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seed0.npz"
    with pytest.raises(UserError, match="no such file"):
        read_predictions(path)
    write_predictions(path, {"validation": np.zeros((50, 1), np.float32)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"seed0\.npz: not a file of predictions"):
        read_predictions(path)
    np.savez(path, validation=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(UserError, match="not a file of predictions"):
        read_predictions(path)


def test_a_failed_cell_is_no_result_and_is_found_with_its_reason(tmp_path: Path) -> None:
    done = make_result(cell="lr9e-5")
    write_result(result_path(tmp_path, "embedded", "stsb", "nxm", 1, "lr9e-5"), done)
    failure = make_failure()
    write_result(result_path(tmp_path, "embedded", "stsb", "nxm", 1, "lr1"), failure)
    assert read_study(tmp_path / "results", "embedded") == [done]
    assert read_failures(tmp_path / "results", "embedded") == [failure]
    with pytest.raises(UserError, match="'metric' is missing"):
        read_result(result_path(tmp_path, "embedded", "stsb", "nxm", 1, "lr1"))


def test_a_result_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        make_result().seed = 3


def _broken(change: str) -> dict[str, Any]:
    values = make_result().model_dump(mode="json")
    if change == "extra":
        values["epochs"][0]["typo"] = 1
    elif change == "missing":
        del values["provenance"]["data_sha256"]
    elif change == "value":
        values["sparsity"]["density"] = 1.5
    elif change == "hyperparameter":
        del values["hyperparameters"]["rho"]
    elif change == "patch":
        values["admm"]["example"]["after"].pop()
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("extra", "unknown key 'epochs.0.typo'"),
        ("missing", "'provenance.data_sha256' is missing"),
        ("value", "sparsity.density = 1.5"),
        ("hyperparameter", "'hyperparameters' lacks rho"),
        ("patch", "same shape"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path: Path, change: str, said: str) -> None:
    path = tmp_path / "seed1.json"
    path.write_text(json.dumps(_broken(change)))
    with pytest.raises(UserError) as caught:
        read_result(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "no such file"), ("{", "not a JSON file"), ("[1]", "JSON object"), ("\xff", "not a JSON")]
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "seed1.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        read_result(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        make_result(score=value)


def test_a_study_is_all_its_runs_and_cells_and_not_its_benchmark(tmp_path: Path) -> None:
    written = make_study(tmp_path, tasks=("stsb", "mrpc"), seeds=(1, 10, 2))
    read = read_study(tmp_path / "results", "embedded")
    assert len(read) == len(written)
    assert {(r.task, r.method, r.cell, r.seed) for r in read} == {(r.task, r.method, r.cell, r.seed) for r in written}
    assert read == sorted(read, key=lambda r: (r.task, r.method, r.cell or "", r.seed))
    assert read_study(tmp_path / "results", "nothing") == []


def test_a_result_in_another_runs_place_is_refused(tmp_path: Path) -> None:
    write_result(result_path(tmp_path, "embedded", "stsb", "asp", 1), make_result(method="nxm"))
    with pytest.raises(UserError, match=r"results/embedded/stsb/nxm/seed1\.json"):
        read_study(tmp_path / "results", "embedded")


def test_paths_are_those_that_anything_can_read() -> None:
    assert result_path("r", "embedded", "stsb", "nxm", 3).as_posix() == "r/results/embedded/stsb/nxm/seed3.json"
    cell = result_path("r", "embedded", "stsb", "nxm", 3, "rho0.1")
    assert cell.as_posix() == "r/results/embedded/stsb/nxm/rho0.1/seed3.json"


def test_similarity_counts_only_while_the_mask_can_move() -> None:
    result = make_result()
    moving = [i.similarity for i in result.admm.iterations if i.similarity is not None]
    assert mean_similarity(result) == pytest.approx(sum(moving) / len(moving))
    early = result.model_copy(update={"admm": result.admm.model_copy(update={"frozen_at_step": 3 * 47})})
    assert mean_similarity(early) == pytest.approx(sum(moving[:2]) / 2)
    assert mean_similarity(make_result(method="asp")) is None


def test_the_frame_has_a_row_a_run_and_numbers_where_they_are() -> None:
    frame = to_frame([make_result(method="dense"), make_result(cell="rho0.1", rho=0.1)])
    assert tuple(frame.columns) == FRAME_COLUMNS
    assert list(frame["cell"]) == [None, "rho0.1"]
    assert frame["rho"].isna().tolist() == [True, False]
    assert to_frame([]).empty


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert path.read_bytes() == b"old"


def test_a_benchmark_is_read_whole_or_named(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    assert read_benchmark(path) is None
    path.write_text(json.dumps(make_benchmark()))
    assert read_benchmark(path) == make_benchmark()
    path.write_text(json.dumps({"study": "embedded"}))
    with pytest.raises(UserError, match="'provenance'"):
        read_benchmark(path)
