"""The real pipeline, small: the smoke study through `dvc repro` in a copy of the repository, killed once on its way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import load_file

import smoke_source
from copied import call, copy_repository, environment
from nxm.config import read_yaml
from nxm.files import sha256_file
from nxm.launch.schedule import pending_stages
from nxm.study.results import read_failures, read_result, read_study, same_apart_from_times
from nxm.study.settings import load_study

TARGET = Path("studies/smoke/dvc.yaml")
NXM = Path("results/smoke/mnli/nxm/seed0.json")
FIRST_LOG = "first-launch.log"  # beside the repository
pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]  # the first test waits for two launches


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return call(folder, sys.executable, "-m", "dvc", *arguments)


def launch(folder: Path, jobs: int = 1, log: IO | int = subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nxm.launch.schedule", "--jobs", str(jobs), "smoke"],
        cwd=folder,
        env=environment(folder),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be killed as one
    )


def run_launch(folder: Path, jobs: int = 1, timeout: float = 600) -> tuple[int, str]:
    """Exit status and what was printed; a launch that takes too long is stopped whole, and disturbs no later test."""
    process = launch(folder, jobs)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def pending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    return pending_stages(TARGET)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """The repository without results, plus the smoke study's sources."""
    folder = tmp_path_factory.mktemp("repository")
    copy_repository(folder)
    smoke_source.write(folder / ".cache" / "smoke")
    return folder


@pytest.fixture(scope="module")
def finished(repository) -> tuple[Path, str]:
    """The study, killed in the middle of a training (as by `kill -9`) and started again; the second launch's output."""
    checkpoints = repository / "checkpoints/smoke/mnli/nxm/seed0"
    deadline = time.monotonic() + 900
    with (repository.parent / FIRST_LOG).open("w") as log:  # a pipe that nobody reads would fill up
        process = launch(repository, log=log)
        while not list(checkpoints.glob("*/checkpoint-*/complete")):
            assert process.poll() is None, (repository.parent / FIRST_LOG).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (repository / NXM).exists()
    assert not (repository / "models/smoke/mnli/nxm/seed0").exists()
    status, output = run_launch(repository)
    assert status == 0, output
    return repository, output


def test_a_killed_study_goes_on_from_its_checkpoint_to_the_end(finished):
    folder, output = finished
    study = load_study(folder / "studies/smoke/params.yaml")
    for name in study.figures:
        assert (folder / f"figures/smoke/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"figures/smoke/{name}.png").stat().st_size > 10_000
    for name in study.tables:
        for ending in ("md", "csv", "tex"):
            assert (folder / f"paper_tables/smoke/{name}.{ending}").stat().st_size > 0
    results = read_study(folder / "results", "smoke")
    assert {(r.method, r.cell) for r in results} == {
        ("dense", None),
        ("asp", None),
        ("asp", "lr0.0005"),
        ("asp", "lr0.002"),
        ("admm_unstructured", None),
        ("nxm", None),
        ("nxm", "rho1.0"),
        ("nxm", "lr0.002"),
        ("nxm_paper", "rho0.01"),
        ("distil", None),
        ("distil_nxm", None),
        ("distil_nxm_kd", None),
        ("nxm_plus", None),
        ("nxm_plus", "lr0.001"),
        ("nxm_plus", "permuted"),
        ("sr_ste_plus", None),
        ("dense_plus", None),
        ("distil_nxm_plus", None),
    }
    density = {
        "dense": 1.0,
        "dense_plus": 1.0,
        "distil": 1.0,
        "sr_ste_plus": 0.25,  # 1:4, by a pattern of its own
    }
    for result in results:
        assert set(result.metrics) == {"accuracy_m", "accuracy_mm"}
        assert result.sparsity.density == pytest.approx(density.get(result.method, 0.5))
    assert "training 1 of" in output
    assert "paper_tables/smoke/:" in output.splitlines()[-3]
    assert not any((folder / "checkpoints").rglob("checkpoint-*"))


def test_the_killed_training_ended_as_one_that_was_not_killed(finished):
    """Also: two runs of a stage give equal results files apart from times."""
    folder, output = finished
    resumed = read_result(folder / NXM)
    first_epoch = re.compile(r"'loss': .*'epoch': '1'\}")
    after_the_kill = output.partition("nxm@mnli-0':")[2].partition("Running stage")[0]
    assert "nxm on mnli, seed 0" in after_the_kill
    assert not first_epoch.search(after_the_kill)  # it went on from the checkpoint
    done = dvc(folder, "repro", "--force", "--single-item", f"{TARGET}:nxm@mnli-0")
    assert done.returncode == 0, done.stderr
    assert first_epoch.search(done.stdout)  # this one began anew
    whole = read_result(folder / NXM)
    assert whole.provenance.model_sha256 == resumed.provenance.model_sha256
    assert same_apart_from_times(whole, resumed)
    # Times differ, so DVC would rerun what reads the results; take them as they are.
    assert dvc(folder, "repro", str(TARGET)).returncode == 0


def test_every_sparse_model_on_disk_obeys(finished):
    folder, _ = finished
    methods = ("asp", "nxm", "distil_nxm", "distil_nxm_kd", "admm_unstructured")
    for method in (*methods, "nxm_plus", "sr_ste_plus", "distil_nxm_plus"):
        done = call(folder, sys.executable, "-m", "nxm.check", f"models/smoke/mnli/{method}/seed0")
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_values_in_force_are_the_best_of_the_grid_on_rows_held_out(finished):
    folder, output = finished
    results = read_study(folder / "results", "smoke")
    study = load_study(folder / "studies/smoke/params.yaml")
    for method in ("asp", "nxm", "nxm_plus"):
        cells = [run for run in results if run.method == method and str(run.cell).startswith("lr")]
        best = max(cells, key=lambda run: run.heldout.value).heldout.value
        winners = [run.hyperparameters["learning_rate"] for run in cells if run.heldout.value == best]
        (whole,) = (run for run in results if (run.method, run.cell) == (method, None))
        assert whole.hyperparameters["learning_rate"] in winners
        assert getattr(study, method)["mnli"].learning_rate == whole.hyperparameters["learning_rate"]
        assert f"{method} on mnli: learning_rate {whole.hyperparameters['learning_rate']:g}" in output


def test_several_jobs_run_what_is_missing_in_its_order(finished):
    folder, _ = finished
    for name in ("asp/lr0.002/seed9.json", "nxm/lr0.002/seed9.json", "asp/seed0.json"):
        (folder / "results/smoke/mnli" / name).unlink()
    status, output = run_launch(folder, jobs=2)
    assert status == 0, output
    assert (
        output.index("asp on mnli, seed 9")
        < output.index("asp on mnli: learning_rate")
        < output.index("asp on mnli, seed 0")
    )
    assert (
        "everything is up to date"
        in call(folder, sys.executable, "-m", "nxm.launch.schedule", "--plan", "smoke").stdout
    )


def test_what_is_not_here_is_announced_made_again_and_followed_by_what_reads_it(finished):
    folder, _ = finished
    shutil.rmtree(folder / "models/smoke/mnli/dense")
    (folder / "results/smoke/mnli/distil/seed0.json").unlink()
    status, output = run_launch(folder)  # with as many cores as before: the model is the same, and what reads it stays
    assert status == 0, output
    assert re.search(r"\d+ stages to run: .*1 x baseline.*1 x distil\b", output)
    assert "are up to date, but what they made is not here" in output
    assert output.index("dense on mnli, seed 0") < output.index("distil on mnli, seed 0")
    again = call(folder, sys.executable, "-m", "nxm.launch.schedule", "--plan", "smoke")
    assert "everything is up to date" in again.stdout, again.stdout


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stage_that_fails_stops_no_other_and_is_told(finished, jobs):
    folder, _ = finished
    path = folder / "src/nxm/report/figures/figure2.py"
    before = edited(path, "def draw(", "raise RuntimeError('no figure 2 today')\n\n\ndef draw(")
    (folder / "figures/smoke/figure3.png").unlink()
    (folder / "paper_tables/smoke/table1.md").unlink()
    try:
        status, output = run_launch(folder, jobs)
        assert status == 1
        assert "no figure 2 today" in output
        assert "study smoke: a stage failed" in output
        assert (folder / "figures/smoke/figure3.png").exists()
        assert (folder / "paper_tables/smoke/table1.md").exists()
    finally:
        path.write_text(before)
    assert dvc(folder, "repro", str(TARGET)).returncode == 0


def test_the_report_is_made_without_a_run_and_a_search_that_diverged_and_says_so(finished):
    folder, _ = finished
    profile, tables = folder / "profiles/smoke.yaml", folder / "paper_tables/smoke"
    student, cells = "distil_nxm_plus:\n  mnli:\n    epochs: 3\n    learning_rate: ", "nxm: {learning_rate: "
    whole = (tables / "table1.md").read_text()
    before = edited(profile, student + "1e-3", student + "1e30")
    try:
        edited(profile, cells + "[2e-3, 1e30]", cells + "[1e30]")
        status, output = run_launch(folder)
        assert status == 1
        assert "study smoke: a stage failed" in output
        assert "the grid has chosen nothing for nxm on mnli" in output
        assert "| Student, NxM+ " in whole
        assert "| Student, NxM+ " not in (tables / "table1.md").read_text()
        assert "| Student, NxM " in (tables / "table1.md").read_text()
        rows = (tables / "table_tuning.md").read_text().splitlines()
        (row,) = [line for line in rows if line.startswith("| MNLI") and "| NxM " in line]
        assert "diverged" in row
    finally:
        profile.write_text(before)
    status, output = run_launch(folder)
    assert status == 0, output
    assert (tables / "table1.md").read_text() == whole


def test_a_second_launch_does_nothing_and_says_so(finished):
    status, output = run_launch(finished[0])
    assert status == 0
    assert "nothing to do, everything is up to date" in output


def test_without_data_and_models_a_fresh_clone_has_nothing_to_do(finished, monkeypatch):
    folder, _ = finished
    for name in ("data", "models", ".dvc/cache"):
        (folder / name).rename(folder / f"{name}-away")
    try:
        done = dvc(folder, "repro", "--allow-missing", "--dry", str(TARGET))
        assert done.returncode == 0, done.stderr
        assert "Running stage" not in done.stdout
        assert pending(folder, monkeypatch) == []
    finally:
        for name in ("data", "models", ".dvc/cache"):
            (folder / f"{name}-away").rename(folder / name)


def edited(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return text


def test_editing_a_figure_reruns_that_figure_alone(finished, monkeypatch):
    folder, _ = finished
    path = folder / "src/nxm/report/figures/figure2.py"
    before = edited(path, "from __future__", "# edited\nfrom __future__")
    try:
        assert pending(folder, monkeypatch) == ["figure@figure2"]
    finally:
        path.write_text(before)


def test_changing_rho_retrains_no_dense_and_no_asp(finished, monkeypatch):
    folder, _ = finished
    path = folder / "studies/smoke/params.yaml"
    before = edited(path, "rho: 0.35", "rho: 0.36")
    try:
        kinds = {name.partition("@")[0] for name in pending(folder, monkeypatch)}
        assert {"nxm", "nxm_rho", "admm_unstructured", "distil_nxm", "figure", "table"} <= kinds
        assert not kinds & {"fetch", "prepare", "baseline", "asp", "distil"}
    finally:
        path.write_text(before)


def test_a_mistyped_key_stops_a_stage_with_its_name(finished):
    folder, _ = finished
    path = folder / "studies/smoke/params.yaml"
    before = edited(path, "freeze_at:", "freze_at:")
    try:
        done = call(
            folder,
            sys.executable,
            "stages/train.py",
            "--params",
            str(path),
            "--method",
            "nxm",
            "--task",
            "mnli",
            "--seed",
            "0",
        )
        assert done.returncode == 1
        assert "unknown key 'admm_unstructured.mnli.freze_at'; did you mean 'freeze_at'?" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        path.write_text(before)


def test_a_diverging_training_stops_with_the_step_and_leaves_no_result(finished):
    folder, _ = finished
    path = folder / "studies/smoke/params.yaml"
    before = edited(
        path, "  mnli:\n    epochs: 3\n    learning_rate: 0.001", "  mnli:\n    epochs: 3\n    learning_rate: 1e30"
    )
    try:
        done = call(
            folder,
            *(sys.executable, "stages/train.py", "--params", str(path)),
            *("--method", "dense", "--task", "mnli", "--seed", "7"),
        )
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert "diverged; lower the learning rate" in done.stderr
    assert not (folder / "results/smoke/mnli/dense/seed7.json").exists()


def test_a_diverging_cell_of_the_grid_has_left_its_reason_and_the_rest_went_on(finished):
    folder, _ = finished
    failures = read_failures(folder / "results", "smoke")
    assert [failure.method for failure in failures] == ["nxm", "nxm_plus"]
    for failure in failures:
        assert (failure.cell, failure.hyperparameters["learning_rate"]) == ("lr1e30", 1e30)
        assert "diverged" in failure.failure
        assert failure.failure in (folder / "paper_tables/smoke/table_tuning.md").read_text()


def test_nxm_plus_starts_from_the_dense_model_and_is_compared_with_its_variant(finished):
    folder, second = finished
    output = (folder.parent / FIRST_LOG).read_text() + second
    runs = {(run.method, run.cell): run for run in read_study(folder / "results", "smoke")}
    dense = folder / "models/smoke/mnli/dense/seed0/model.safetensors"
    for place in (("nxm_plus", None), ("nxm_plus", "lr0.001"), ("nxm_plus", "permuted"), ("sr_ste_plus", None)):
        assert runs[place].provenance.weights_sha256 == sha256_file(dense)
        assert runs[place].provenance.weights == "the fine-tuned dense model"
    plus, permuted = runs["nxm_plus", None], runs["nxm_plus", "permuted"]
    changed = {key for key, value in plus.hyperparameters.items() if permuted.hyperparameters[key] != value}
    assert changed == {"permute", "importance"}
    assert output.index("nxm_plus on mnli, seed 9") < output.index("nxm_plus on mnli: learning_rate")
    first_whole_run = re.search(r"(?<!distil_)nxm_plus on mnli, seed 0", output)  # the student does not wait for it
    assert output.index("nxm_plus on mnli: learning_rate") < first_whole_run.start()
    assert "permuted" in (folder / "paper_tables/smoke/table_ablation.md").read_text()


@pytest.mark.parametrize(
    ("method", "start"), [("nxm", "data/smoke/source/weights"), ("nxm_plus", "models/smoke/mnli/dense/seed1")]
)
def test_two_processes_train_to_the_same_weights_as_one(method, start, finished):
    """Same global batches, by gloo on the CPU, without dropout and noise, which each process draws; equal to rounding.

    NxM+ with a teacher's hidden states and the activations' norms, both sums over the tokens of all processes.
    """
    folder, _ = finished
    if not (folder / start).exists():
        shutil.copytree(folder / "models/smoke/mnli/dense/seed0", folder / start)
    config = folder / start / "config.json"
    values = json.loads(config.read_text())
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.unlink()  # DVC's cache may be linked to it
    config.write_text(json.dumps(values))
    settings = read_yaml(folder / "studies/smoke/params.yaml")
    settings["nxm_plus"]["mnli"] |= {"importance": "activations", "schedule": "constant", "noise": 0.0}
    (folder / "studies/smoke/two.json").write_text(json.dumps(settings))
    trained = {}
    for hardware in ("auto", "cpu2"):
        done = call(
            folder,
            *("accelerate", "launch", "--config_file", f"hardware/{hardware}.yaml", "stages/train.py"),
            *("--params", "studies/smoke/two.json", "--method", method, "--task", "mnli", "--seed", "1"),
            ACCELERATE_USE_CPU="1",
        )
        assert done.returncode == 0, done.stderr[-3000:]
        model = folder / f"models/smoke/mnli/{method}/seed1"
        trained[hardware] = load_file(model / "model.safetensors")
        model.rename(folder / f"models/{hardware}-{method}")
    before = load_file(folder / start / "model.safetensors")
    for name, one in trained["auto"].items():
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
            continue
        began = before.get(name, before.get(name.removeprefix("bert."), torch.zeros_like(one)))
        assert (one - trained["cpu2"][name]).norm() <= 1e-3 * (one - began).norm(), name
