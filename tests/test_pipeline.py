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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import smoke_source
from copied import call, copy_repository, environment
from nxm.check import check
from nxm.config import read_yaml
from nxm.data.prepare import load_prepared
from nxm.data.tasks import TASKS, compute_metrics
from nxm.files import sha256_file
from nxm.launch.project import Project
from nxm.report.html.runs import anchor
from nxm.study.plan import trainings
from nxm.study.results import place_of, read_failures, read_result, read_study, same_apart_from_times
from nxm.study.settings import load_study

SMOKE = Path("studies/smoke")
NXM = SMOKE / "results/mnli/nxm/seed0.json"
NXM_STAGE = "nxm@mnli-nxm-seed0"
SCORES = "paper_tables/scores.json"
FIRST_LOG = "first-launch.log"  # beside the repository
pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]  # the first test waits for two launches


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Plain DVC in the study's folder, as a user may run it."""
    return call(folder / SMOKE, sys.executable, "-m", "dvc", *arguments, PYTHONPATH=str(folder / "src"))


def nxm(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return call(folder, sys.executable, "-m", "nxm", *arguments)


def launch(folder: Path, jobs: int = 1, log: IO | int = subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nxm", "repro", "smoke", "--jobs", str(jobs)],
        cwd=folder,
        env=environment(folder),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be killed as one
    )


def run_launch(folder: Path, jobs: int = 1, timeout: float = 900) -> tuple[int, str]:
    """Exit status and what was printed; a launch that takes too long is stopped whole, and disturbs no later test."""
    process = launch(folder, jobs)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def pending(folder: Path, monkeypatch: pytest.MonkeyPatch, allow_missing: bool = False) -> list[str]:
    monkeypatch.chdir(folder / SMOKE)
    project = Project()
    try:
        return project.pending(allow_missing)
    finally:
        project.close()


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
    checkpoints = repository / SMOKE / "checkpoints/mnli/nxm/seed0"
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
    assert not (repository / SMOKE / "models/mnli/nxm/seed0").exists()
    status, output = run_launch(repository)
    assert status == 0, output
    return repository, output


@pytest.fixture
def passing(finished) -> Iterator[tuple[Path, str]]:
    """The finished study for a test that changes it: afterwards it is as it was, without running any stage again."""
    study = finished[0] / SMOKE
    before = finished[0].with_name("smoke-before")  # beside the repository, where it is no study
    shutil.copytree(study, before)
    yield finished
    shutil.rmtree(study)
    before.rename(study)


def test_a_killed_study_goes_on_from_its_checkpoint_to_the_end(finished):
    folder, output = finished
    study = load_study(folder / SMOKE / "params.yaml")
    for name in study.figures:
        assert (folder / SMOKE / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / SMOKE / f"figures/{name}.png").stat().st_size > 10_000
    for name in study.tables:
        for ending in ("md", "csv", "tex"):
            assert (folder / SMOKE / f"paper_tables/{name}.{ending}").stat().st_size > 0
    results = read_study(folder / SMOKE)
    assert {(r.full_name, r.trial) for r in results} == {
        ("dense", None),
        ("asp", None),
        ("asp", "lr0.001"),
        ("asp", "lr0.003"),
        ("admm_unstructured", None),
        ("nxm", None),
        ("nxm/rho1.0", None),
        ("nxm/paper-rho0.01", None),
        ("nxm", "lr0.003"),
        ("distil", None),
        ("distil_nxm", None),
        ("distil_nxm_kd", None),
        ("nxm_plus", None),
        ("nxm_plus/permuted", None),
        ("nxm_plus", "lr0.003"),
        ("sr_ste_plus", None),
        ("dense_plus", None),
        ("cut50", None),
        ("cut50_nxm", None),
        ("distil_nxm_plus", None),
    }
    density = {
        "dense": 1.0,
        "dense_plus": 1.0,
        "distil": 1.0,
        "cut50": 1.0,  # of what is left
        "sr_ste_plus": 0.25,  # 1:4, by a pattern of its own
    }
    for result in results:
        assert set(result.metrics) == {"accuracy_m", "accuracy_mm"}
        assert result.sparsity.density == pytest.approx(density.get(result.name, 0.5))
        assert (result.structure is not None) == result.name.startswith("cut50")
    assert "training 1 of" in output
    assert any(line.startswith("studies/smoke/paper_tables/:") for line in output.splitlines()[-7:])  # where to look
    assert "studies/smoke/report.html: all of it on one page" in output
    text = (folder / SMOKE / "report.html").read_text()
    assert f"{len(results)} of {len(trainings(study))} planned trainings have a result" in text
    assert all(f'id="{anchor(place_of(result))}"' in text for result in results)
    assert not any((folder / SMOKE / "checkpoints").rglob("checkpoint-*"))


def test_the_killed_training_ended_as_one_that_was_not_killed(passing):
    """Also: two runs of a stage give equal results files apart from times."""
    folder, output = passing
    resumed = read_result(folder / NXM)
    first_epoch = re.compile(r"'loss': .*'epoch': '1'\}")
    after_the_kill = output.partition(f"'{NXM_STAGE}'")[2].partition("Running stage")[0]
    assert "nxm on mnli, seed 0" in after_the_kill
    assert not first_epoch.search(after_the_kill)  # it went on from the checkpoint
    done = dvc(folder, "repro", "--force", "--single-item", NXM_STAGE)
    assert done.returncode == 0, done.stderr
    assert first_epoch.search(done.stdout)  # this one began anew
    whole = read_result(folder / NXM)
    assert whole.provenance.model_sha256 == resumed.provenance.model_sha256
    assert same_apart_from_times(whole, resumed)


def test_every_method_learns(finished):
    """A constant answer scores the floor; the dense model is far above it, and what is pruned keeps part of that."""
    folder, _ = finished
    labels = np.array(load_prepared(folder / SMOKE / "data/prepared/mnli")["heldout"]["labels"])
    constant = np.full_like(labels, np.bincount(labels).argmax())
    floor = compute_metrics(TASKS["mnli"], constant, labels)["accuracy"]
    scores = {run.name: run.heldout.value for run in read_study(folder / SMOKE) if run.whole}
    assert scores["dense"] > floor + 25, scores
    for name in ("asp", "nxm", "nxm_plus"):
        assert scores[name] > floor + 15, scores


def test_every_sparse_model_on_disk_obeys(finished):
    folder, _ = finished
    methods = ("asp", "nxm", "distil_nxm", "distil_nxm_kd", "admm_unstructured")
    for method in (*methods, "nxm_plus", "sr_ste_plus", "cut50", "cut50_nxm", "distil_nxm_plus"):
        assert check(folder / SMOKE / f"models/mnli/{method}/seed0", None), method


def test_the_values_in_force_are_the_best_of_the_grid_on_rows_held_out(finished):
    folder, second = finished
    output = (folder.parent / FIRST_LOG).read_text() + second  # what the killed launch had chosen stays
    results = read_study(folder / SMOKE)
    for method in ("asp", "nxm", "nxm_plus"):
        cells = [run for run in results if run.name == method and run.trial]
        best = max(cells, key=lambda run: run.heldout.value).heldout.value
        winners = [run.hyperparameters["learning_rate"] for run in cells if run.heldout.value == best]
        (whole,) = (run for run in results if run.name == method and run.whole)
        assert whole.hyperparameters["learning_rate"] in winners
        chosen = json.loads((folder / SMOKE / f"results/chosen/mnli/{method}.json").read_text())
        assert chosen["values"] == {"learning_rate": whole.hyperparameters["learning_rate"]}
        assert f"{method} on mnli: learning_rate {whole.hyperparameters['learning_rate']:g}" in output


def test_several_jobs_run_what_is_missing_in_its_order(finished):
    folder, _ = finished
    for name in ("search/mnli/asp/lr0.003/seed9.json", "search/mnli/nxm/lr0.003/seed9.json", "mnli/asp/seed0.json"):
        (folder / SMOKE / "results" / name).unlink()
    status, output = run_launch(folder, jobs=2)
    assert status == 0, output
    assert (
        output.index("asp on mnli, lr0.003, seed 9")
        < output.index("asp on mnli: learning_rate")
        < output.index("asp on mnli, seed 0")
    )
    assert "everything is up to date" in nxm(folder, "plan", "smoke").stdout


def test_a_missing_model_is_trained_again_with_what_reads_it(finished):
    folder, _ = finished
    shutil.rmtree(folder / SMOKE / "models/mnli/dense")
    shutil.rmtree(folder / ".dvc/cache")
    (folder / SMOKE / "results/mnli/distil/seed0.json").unlink()
    only_changed = nxm(folder, "plan", "smoke", "--allow-missing")
    assert re.search(r"stages to run: .*1 x baseline.*1 x distil\b", only_changed.stdout)
    assert "are up to date, but what they made is not here" in only_changed.stdout
    status, output = run_launch(folder)  # with as many cores as before: the model is the same
    assert status == 0, output
    assert output.index("dense on mnli, seed 0") < output.index("distil on mnli, seed 0")
    again = nxm(folder, "plan", "smoke")
    assert "everything is up to date" in again.stdout, again.stdout


def test_a_stage_that_fails_stops_no_other_and_is_told(passing):
    folder, _ = passing
    path = folder / "src/nxm/report/figures/figure2.py"
    before = edited(path, "def draw(", "raise RuntimeError('no figure 2 today')\n\n\ndef draw(")
    try:
        for jobs in (1, 2):
            (folder / SMOKE / "figures/figure3.png").unlink()
            (folder / SMOKE / "paper_tables/table1.md").unlink()
            status, output = run_launch(folder, jobs)
            assert status == 1
            assert "no figure 2 today" in output
            assert "study smoke: a stage failed" in output
            assert "figure@figure2" in output
            assert (folder / SMOKE / "figures/figure3.png").exists()
            assert (folder / SMOKE / "paper_tables/table1.md").exists()
    finally:
        path.write_text(before)


def test_the_report_is_made_without_a_run_and_a_search_that_diverged_and_says_so(finished):
    folder, _ = finished
    settings, tables = folder / SMOKE / "study.yaml", folder / SMOKE / "paper_tables"
    whole = (tables / "table1.md").read_text()
    before = edited(settings, "distil_nxm_plus: {<<: *plus,", "distil_nxm_plus: {<<: *plus, learning_rate: 1e30,")
    try:
        edited(settings, "nxm: {values: {learning_rate: [3e-3, 1e30]}}", "nxm: {values: {learning_rate: [1e30]}}")
        status, output = run_launch(folder)
        assert status == 1
        assert "study smoke: a stage failed" in output
        assert "the search has chosen nothing for nxm on mnli" in output
        assert "| Student, NxM+ " in whole
        assert "| Student, NxM+ " not in (tables / "table1.md").read_text()
        assert "| Student, NxM " in (tables / "table1.md").read_text()
        rows = (tables / "table_tuning.md").read_text().splitlines()
        (row,) = [line for line in rows if line.startswith("| MNLI") and "| NxM " in line]
        assert "diverged" in row
    finally:
        settings.write_text(before)
    status, output = run_launch(folder)
    assert status == 0, output
    assert (tables / "table1.md").read_text() == whole


def test_a_second_launch_does_nothing_and_says_so(finished):
    status, output = run_launch(finished[0])
    assert status == 0
    assert "nothing to do, everything is up to date" in output


def test_without_data_and_models_a_fresh_clone_has_nothing_changed_and_everything_to_run(finished, monkeypatch):
    folder, _ = finished
    away = [folder / SMOKE / "data", folder / SMOKE / "models", folder / ".dvc/cache"]
    for path in away:
        path.rename(path.with_name(f"{path.name}-away"))
    try:
        done = dvc(folder, "repro", "--allow-missing", "--dry")
        assert done.returncode == 0, done.stderr
        assert "Running stage" not in done.stdout
        assert pending(folder, monkeypatch, allow_missing=True) == []
        assert {"fetch", NXM_STAGE, "table@table1"} <= set(pending(folder, monkeypatch))
    finally:
        for path in away:
            path.with_name(f"{path.name}-away").rename(path)


def edited(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return text


def test_editing_a_figure_reruns_that_figure_and_the_report_alone(finished, monkeypatch):
    folder, _ = finished
    path = folder / "src/nxm/report/figures/figure2.py"
    before = edited(path, "from __future__", "# edited\nfrom __future__")
    try:
        assert set(pending(folder, monkeypatch)) == {"figure@figure2", "report"}  # which has it on its page
    finally:
        path.write_text(before)


def test_a_changed_value_reruns_its_own_runs_in_one_plain_dvc_repro(passing):
    folder, _ = passing
    params = folder / SMOKE / "params.yaml"
    settings = read_yaml(params)
    settings["runs"]["sr_ste_plus"]["learning_rate"] = 2e-3
    params.write_text(json.dumps(settings))  # JSON is YAML
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stderr
    ran = set(re.findall(r"^Running stage '([^']*)'", done.stdout, flags=re.MULTILINE))
    trained = {name for name in ran if name.startswith(("baseline", "asp", "nxm", "distil", "compress", "trial"))}
    assert trained == {"compress@mnli-sr_ste_plus-seed0"}
    assert read_result(folder / SMOKE / "results/mnli/sr_ste_plus/seed0.json").hyperparameters["learning_rate"] == 2e-3


def test_a_mistyped_key_stops_every_command_with_its_name(finished):
    folder, _ = finished
    path = folder / SMOKE / "study.yaml"
    before = edited(path, "freeze_at: 0.7}", "freze_at: 0.7}")
    try:
        for done in (nxm(folder, "plan", "smoke"), nxm(folder, "repro", "smoke")):
            assert done.returncode == 1
            assert "run 'admm_unstructured' on mnli: unknown key 'freze_at'; did you mean 'freeze_at'?" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        path.write_text(before)
    assert "everything is up to date" in nxm(folder, "plan", "smoke").stdout


def test_a_diverging_training_stops_with_the_step_and_leaves_no_result(finished):
    folder, _ = finished
    params = folder / SMOKE / "params.yaml"
    before = edited(params, "seeds: [0]\n", "seeds: [7]\n")
    edited(params, "dense: {epochs: 3, learning_rate: 0.003", "dense: {epochs: 3, learning_rate: 1e30")
    try:
        script = ("stages/train.py", "baseline@mnli-dense-seed7")
        done = call(folder / SMOKE, sys.executable, f"../../{script[0]}", script[1], PYTHONPATH=str(folder / "src"))
    finally:
        params.write_text(before)
    assert done.returncode == 1
    assert "diverged; lower the learning rate" in done.stderr
    assert not (folder / SMOKE / "results/mnli/dense/seed7.json").exists()


def test_a_diverging_trial_has_left_its_reason_and_the_rest_went_on(finished):
    folder, _ = finished
    failures = read_failures(folder / SMOKE)
    assert [failure.name for failure in failures] == ["nxm", "nxm_plus"]
    for failure in failures:
        assert (failure.trial, failure.hyperparameters["learning_rate"]) == ("lr1e30", 1e30)
        assert "diverged" in failure.failure
        assert failure.failure in (folder / SMOKE / "paper_tables/table_tuning.md").read_text()


def test_nxm_plus_starts_from_the_dense_model_and_is_compared_with_its_variant(finished):
    folder, second = finished
    output = (folder.parent / FIRST_LOG).read_text() + second
    runs = {(run.full_name, run.trial): run for run in read_study(folder / SMOKE)}
    dense = folder / SMOKE / "models/mnli/dense/seed0/model.safetensors"
    for place in (("nxm_plus", None), ("nxm_plus", "lr0.003"), ("nxm_plus/permuted", None), ("sr_ste_plus", None)):
        assert runs[place].provenance.weights_sha256 == sha256_file(dense)
        assert runs[place].provenance.weights == "the fine-tuned dense model"
    plus, permuted = runs["nxm_plus", None], runs["nxm_plus/permuted", None]
    changed = {key for key, value in plus.hyperparameters.items() if permuted.hyperparameters[key] != value}
    assert changed == {"permute", "importance"}
    assert output.index("nxm_plus on mnli, lr0.003, seed 9") < output.index("nxm_plus on mnli: learning_rate")
    first_whole_run = re.search(r"(?<!distil_)nxm_plus on mnli, seed 0", output)  # the student does not wait for it
    assert output.index("nxm_plus on mnli: learning_rate") < first_whole_run.start()
    assert "permuted" in (folder / SMOKE / "paper_tables/table_ablation.md").read_text()


@pytest.mark.parametrize(
    ("stage", "start"),
    [
        ("nxm@mnli-nxm-seed1", "data/source/weights"),
        ("compress@mnli-nxm_plus-seed1", "models/mnli/dense/seed1"),
    ],
)
def test_two_processes_train_to_the_same_weights_as_one(stage, start, passing):
    """Same global batches, by gloo on the CPU, without dropout and noise, which each process draws; equal to rounding.

    NxM+ with a teacher's hidden states and the activations' norms, both sums over the tokens of all processes.
    """
    study = passing[0] / SMOKE
    if not (study / start).exists():
        shutil.copytree(study / "models/mnli/dense/seed0", study / start)
    config = study / start / "config.json"
    values = json.loads(config.read_text())
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.unlink()  # DVC's cache may be linked to it
    config.write_text(json.dumps(values))
    settings = read_yaml(study / "params.yaml")
    settings |= {"seeds": [1], "search": {"by": None, "seeds": [], "runs": {}}}
    settings["runs"]["nxm_plus"] |= {"importance": "activations", "schedule": "constant", "noise": 0.0}
    run = stage.split("-")[1]
    settings["runs"][run] |= {"learning_rate": 1e-3}  # higher rates blow up the rounding
    trained = {}
    (study / "params.yaml").write_text(json.dumps(settings))  # JSON is YAML
    for hardware in ("auto", "cpu2"):
        done = call(
            study,
            *("accelerate", "launch", "--config_file", f"../../hardware/{hardware}.yaml", "../../stages/train.py"),
            stage,
            ACCELERATE_USE_CPU="1",
        )
        assert done.returncode == 0, done.stderr[-3000:]
        model = study / f"models/mnli/{run}/seed1"
        trained[hardware] = load_file(model / "model.safetensors")
        model.rename(study / f"models/{hardware}-{run}")
    start_weights = load_file(study / start / "model.safetensors")
    for name, one in trained["auto"].items():
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
            continue
        began = start_weights.get(name, start_weights.get(name.removeprefix("bert."), torch.zeros_like(one)))
        assert (one - trained["cpu2"][name]).norm() <= 1e-3 * (one - began).norm(), name


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_a_remote_brings_data_and_models_and_tables_are_made_again_without_training(kind, finished, tmp_path):
    there, here, store = finished[0], tmp_path / "clone", tmp_path / "store"
    there = shutil.copytree(there, tmp_path / "there")
    for command in (["remote", "add", "--default", "store", str(store)], ["push"]):
        assert dvc(there, *command).returncode == 0
    shutil.copytree(there, here, ignore=shutil.ignore_patterns("cache", "data", "models", "checkpoints"))
    shutil.copytree(there / "src", here / "src", dirs_exist_ok=True)  # it has folders of these names
    assert not (here / SMOKE / "models").exists()
    with served(store) if kind == "http" else nullcontext(str(store)) as url:
        assert dvc(here, "remote", "modify", "store", "url", url).returncode == 0
        pulled = dvc(here, "pull")
        assert pulled.returncode == 0, pulled.stderr
    models = list((there / SMOKE / "models").rglob("*.safetensors"))
    assert models
    for path in models:
        assert sha256_file(here / path.relative_to(there)) == sha256_file(path)
    assert "up to date" in dvc(here, "status").stdout
    drawn = [SMOKE / "paper_tables/table1.md", SMOKE / "figures/figure2.png"]
    for path in (*drawn, SMOKE / "results/deployment/cpu.json"):
        (here / path).unlink()
    status, output = run_launch(here)
    assert status == 0, output
    assert "training 1 of" not in output
    for path in drawn:
        assert (here / path).read_bytes() == (there / path).read_bytes()
    assert any(
        "median_ms" in row for row in json.loads((here / SMOKE / "results/deployment/cpu.json").read_text())["rows"]
    )
    exported = nxm(here, "export", str(SMOKE / "models/mnli/nxm/seed0"), str(tmp_path / "nxm.onnx"), "--to", "onnx")
    assert exported.returncode == 0, exported.stderr


def test_an_experiment_of_dvc_runs_what_its_value_changes_and_is_shown_beside_the_commit(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "repository")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ([*git, "add", "-A"], [*git, "commit", "-qm", "before"]):
        subprocess.run(command, cwd=folder, check=True)
    before = (folder / SMOKE / SCORES).read_text()
    done = dvc(folder, "exp", "run", "--name", "slow", "-S", "runs.sr_ste_plus.learning_rate=1e-5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Ran experiment(s): slow" in done.stdout
    trained = [line for line in done.stdout.splitlines() if "stages/train.py" in line]
    assert len(trained) == 1
    assert trained[0].endswith("compress@mnli-sr_ste_plus-seed0")
    assert "up to date" in dvc(folder, "status").stdout
    assert read_result(folder / SMOKE / "results/mnli/sr_ste_plus/seed0.json").hyperparameters["learning_rate"] == 1e-5
    commit, experiment = (json.loads(text)["mnli"] for text in (before, (folder / SMOKE / SCORES).read_text()))
    assert {name for name in commit if commit[name] != experiment[name]} == {"sr_ste_plus"}
    found = json.loads(dvc(folder, "metrics", "diff", "--json").stdout)[SCORES]
    assert found["mnli.sr_ste_plus"]["old"] == commit["sr_ste_plus"]
    assert found["mnli.sr_ste_plus"]["new"] == experiment["sr_ste_plus"]
    shown = dvc(folder, "exp", "show", "--only-changed", "--csv").stdout
    assert "slow" in shown
    assert "runs.sr_ste_plus.learning_rate" in shown.splitlines()[0]
    page = dvc(folder, "plots", "diff", "HEAD", "--json")
    assert {"HEAD", "workspace"} <= set(re.findall(r'"rev": "(\w+)"', page.stdout))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by plain HTTP on this machine, and give its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
