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
from nxm.study.plan import Training
from nxm.study.results import (
    Result,
    floor_path,
    mean_similarity,
    place_of,
    predictions_path,
    read_benchmark,
    read_chosen,
    read_failures,
    read_floor,
    read_predictions,
    read_result,
    read_study,
    result_path,
    same_apart_from_times,
    without_times,
    write_chosen,
    write_floor,
    write_predictions,
    write_result,
)
from records import ROOT, failure, record

NXM = Training("stsb", "nxm", 1)
TRIAL = Training("stsb", "nxm", 1, trial="lr9e-05")
VARIANT = Training("stsb", "nxm", 1, variant="rho0.1")


def make_result(training: Training = NXM, **changes: Any) -> Result:
    return record(training, **changes)


@pytest.mark.parametrize("run", ["dense", "asp", "nxm", "distil_nxm_kd"])
def test_a_result_equals_the_one_read_back(tmp_path: Path, run: str) -> None:
    result = make_result(Training("stsb", run, 1))
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
    assert (loaded["study"], loaded["task"], loaded["run"], loaded["seed"]) == ("embedded", "stsb", "nxm", 1)
    assert loaded["metric"] == {"name": "spearman", "value": 83.12}
    assert loaded["variant"] is loaded["trial"] is None


def test_scores_are_rounded_and_hyperparameters_are_not() -> None:
    values = make_result().hyperparameters | {"learning_rate": 1.23456789e-5}
    result = make_result(score=83.123456789, hyperparameters=values)
    assert result.metric.value == 83.1235
    assert result.hyperparameters["learning_rate"] == 1.23456789e-5


def test_only_times_memory_and_energy_may_differ_between_equal_runs() -> None:
    result = make_result()
    other = {"wall_seconds": 9e3, "train_seconds": 8e3, "peak_memory_mib": 1.0, "energy_joules": 5.0}
    slower = result.model_copy(update=other)
    assert slower != result
    assert same_apart_from_times(result, slower)
    assert "wall_seconds" not in without_times(result)
    assert not same_apart_from_times(result, make_result(Training("stsb", "nxm", 2)))


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


@pytest.mark.parametrize("lost", [Training("stsb", "nxm", 1, trial="lr1"), Training("stsb", "nxm", 1, variant="lr1")])
def test_a_training_that_failed_is_no_result_and_is_found_with_its_reason(tmp_path: Path, lost: Training) -> None:
    done = make_result(TRIAL)
    write_result(result_path(tmp_path, TRIAL), done)
    write_result(result_path(tmp_path, lost), failure(lost))
    assert read_study(tmp_path) == [done]
    assert read_failures(tmp_path) == [failure(lost)]
    assert read_failures(tmp_path)[0].failure == "the loss became nan at step 3"
    with pytest.raises(UserError, match="'metric' is missing"):
        read_result(result_path(tmp_path, lost))


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


def test_a_study_is_all_its_runs_variants_and_trials_and_not_its_benchmark(tmp_path: Path) -> None:
    names = [("asp", {}), ("nxm", {}), ("nxm", {"variant": "rho0.1"}), ("nxm", {"trial": "lr9e-05"})]
    planned = [
        Training(task, run, seed, **own) for task in ("stsb", "mrpc") for seed in (1, 10, 2) for run, own in names
    ]
    for training in planned:
        write_result(result_path(tmp_path, training), record(training))
    (tmp_path / "results/benchmark.json").write_text("{}")
    (tmp_path / "results/chosen/stsb").mkdir(parents=True)
    (tmp_path / "results/chosen/stsb/nxm.json").write_text("{}")
    read = read_study(tmp_path)
    assert {place_of(result) for result in read} == set(planned)
    assert len(read) == len(planned)
    assert read == sorted(read, key=lambda r: (r.task, r.name, r.variant or r.trial or "", r.seed))
    assert read_study(tmp_path / "nothing") == []


def test_names_say_what_a_result_is_of() -> None:
    assert [record(training).full_name for training in (NXM, VARIANT, TRIAL)] == ["nxm", "nxm/rho0.1", "nxm"]
    assert [record(training).whole for training in (NXM, VARIANT, TRIAL)] == [True, False, False]


def test_a_result_in_another_runs_place_is_refused(tmp_path: Path) -> None:
    write_result(result_path(tmp_path, Training("stsb", "asp", 1)), make_result())
    with pytest.raises(UserError, match=r"results/stsb/nxm/seed1\.json"):
        read_study(tmp_path)


def test_a_trial_in_a_variants_place_is_refused(tmp_path: Path) -> None:
    write_result(result_path(tmp_path, VARIANT), record(Training("stsb", "nxm", 1, trial="rho0.1")))
    with pytest.raises(UserError, match=r"its contents belong at .*results/search/stsb/nxm/rho0\.1/seed1\.json"):
        read_study(tmp_path)


def test_paths_are_those_that_anything_can_read() -> None:
    assert result_path("r", NXM).as_posix() == "r/results/stsb/nxm/seed1.json"
    assert result_path("", VARIANT).as_posix() == "results/stsb/nxm/rho0.1/seed1.json"
    assert result_path("", TRIAL).as_posix() == "results/search/stsb/nxm/lr9e-05/seed1.json"
    assert predictions_path(result_path("", NXM)).as_posix() == "results/stsb/nxm/seed1.npz"


def _former(training: Training, run: str, cell: str | None, **values: Any) -> dict[str, Any]:
    """Return a result as it was written before runs were composed."""
    content = record(training).model_dump(mode="json")
    content |= {"method": run, "cell": cell}
    content["hyperparameters"] = {name: content["hyperparameters"][name] for name in ("epochs", "learning_rate")}
    content["hyperparameters"] |= {"batch_size": 32} | values
    return {key: value for key, value in content.items() if key not in ("run", "variant", "trial", "admm")}


@pytest.mark.parametrize(
    ("training", "run", "cell"),
    [
        (NXM, "nxm", None),
        (VARIANT, "nxm", "rho0.1"),
        (TRIAL, "nxm", "lr9e-05"),
        (Training("stsb", "nxm", 1, variant="paper-rho0.006"), "nxm_paper", "rho0.006"),
    ],
)
def test_former_files_are_read_in_todays_terms(tmp_path: Path, training: Training, run: str, cell: str | None) -> None:
    path = result_path(tmp_path, training)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(_former(training, run, cell)))
    (read,) = read_study(tmp_path)
    assert place_of(read) == training
    assert read_result(path) == read


def test_a_former_pattern_is_todays_set(tmp_path: Path) -> None:
    path = result_path(tmp_path, VARIANT)
    path.parent.mkdir(parents=True)
    for pattern, expected in (({"n_nonzero": 1, "group_size": 4}, "1:4"), (None, None)):
        path.write_text(json.dumps(_former(VARIANT, "nxm", "rho0.1", pattern=pattern)))
        assert read_result(path).hyperparameters.get("set") == expected


def test_a_result_without_shrunk_layers_has_no_key_for_them(tmp_path: Path) -> None:
    """As the files written before there was structured pruning, which keep their bytes."""
    write_result(tmp_path / "r.json", make_result())
    assert "structure" not in json.loads((tmp_path / "r.json").read_text())
    assert make_result().structure is None


STRUCTURE = {
    "heads": [3, 12],
    "rows": [264, 8],
    "dense_heads": 12,
    "dense_rows": 1536,
    "share": 0.5,
    "pruning": {
        "budget": 0.5,
        "share": 0.4987654,
        "cost": "flops",
        "units": "heads_rows",
        "course": [{"step": 10, "share": 1.0}, {"step": 20, "share": 0.4987654}],
    },
}


@pytest.mark.parametrize("pruning", [STRUCTURE["pruning"], None], ids=["pruned here", "of the start"])
def test_the_sizes_of_a_shrunk_models_layers_are_read_as_written(tmp_path: Path, pruning: dict | None) -> None:
    result = make_result(structure=STRUCTURE | {"pruning": pruning})
    write_result(tmp_path / "r.json", result)
    again = read_result(tmp_path / "r.json")
    assert again == result
    assert again.structure is not None
    assert again.structure.heads == (3, 12)
    assert (again.structure.pruning and again.structure.pruning.share) == (pruning and 0.498765)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": [3]}, "'heads' has 1 layers and 'rows' has 2"),
        ({"heads": [3, 13]}, "'heads' must be from 1 to the 12 of a dense layer, not [3, 13]"),
        ({"rows": [0, 8]}, "'rows' must be from 1 to the 1536 of a dense layer, not [0, 8]"),
        ({"share": 1.5}, "structure.share = 1.5"),
        ({"width": 3}, "unknown key 'structure.width'"),
    ],
)
def test_impossible_sizes_of_layers_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    values = make_result().model_dump(mode="json") | {"structure": STRUCTURE | change}
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        read_result(tmp_path / "r.json")
    assert said in str(caught.value)


def test_committed_results_are_read_whole_by_todays_code() -> None:
    assert {result.study for result in read_study(ROOT)} == {"embedded"}
    assert len(read_study(ROOT)) == len(list((ROOT / "results").glob("*/**/seed*.json")))


def test_chosen_values_are_read_as_written_and_of_their_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "chosen.json"
    with pytest.raises(UserError, match="no such file"):
        read_chosen(path, NXM)
    write_chosen(path, "stsb", "nxm", "heldout", "lr0.0003", {"learning_rate": 3e-4})
    assert read_chosen(path, NXM) == {"learning_rate": 3e-4}
    for other in (Training("stsb", "asp", 1), Training("rte", "nxm", 1)):
        message = f"does not say what the search chose for {other.run} on {other.task}"
        with pytest.raises(UserError, match=message):
            read_chosen(path, other)


def test_the_score_of_the_best_constant_answer_is_read_as_written(tmp_path: Path) -> None:
    path = floor_path(tmp_path, "mrpc")
    assert path == tmp_path / "results/bootstrap/mrpc.json"
    write_floor(path, {"mrpc": 81.2})
    assert read_floor(path) == {"mrpc": 81.2}
    path.write_text('{"constant_answer": {"mrpc": "high"}}')
    with pytest.raises(UserError, match="'constant_answer' must be there, numbers by column"):
        read_floor(path)


def test_similarity_counts_only_while_the_mask_can_move() -> None:
    result = make_result()
    iterations = [i for i in result.admm.iterations if i.similarity is not None]
    assert len(iterations) > 2
    for frozen, counted in ((iterations[1].step, 2), (iterations[2].step - 1, 2), (None, len(iterations))):
        changed = result.model_copy(update={"admm": result.admm.model_copy(update={"frozen_at_step": frozen})})
        mean = sum(i.similarity for i in iterations[:counted]) / counted
        assert mean_similarity(changed) == pytest.approx(mean, rel=1e-12)
    assert mean_similarity(make_result(Training("stsb", "asp", 1))) is None


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
    committed = (ROOT / "results/benchmark.json").read_text(encoding="utf-8")
    path.write_text(committed)
    assert read_benchmark(path) == json.loads(committed)
    path.write_text(json.dumps({"study": "embedded"}))
    with pytest.raises(UserError, match="'provenance'"):
        read_benchmark(path)
