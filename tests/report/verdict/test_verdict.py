"""`nxm verify`: what agrees with the committed results, what differs, and what is not taken for good."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from committed_study import OWN, SHARED
from nxm import UserError
from nxm.cli import app
from nxm.files import write_text
from nxm.report.verdict import FILES, Verdict, conclusion, print_verdict, save_verdict, verify
from nxm.report.verdict.compare import _other_circumstances, resampling_scorer
from nxm.report.verdict.provenance import Finding, Status, md5_of
from nxm.study.bootstrap import interval
from nxm.study.results import predictions_path
from synthetic_study import make_allocated


def finding(verdict: Verdict, place: str) -> Finding:
    return next(one for one in verdict.findings if one.place == place)


def statuses(verdict: Verdict) -> set[Status]:
    return {one.status for one in verdict.findings}


NXM = "results/stsb/nxm/seed0.json"


# --- what agrees -----------------------------------------------------------------------------------------------------


def test_the_committed_files_themselves_are_not_taken_for_a_reproduction(repository):
    verdict = verify(repository.root)
    assert verdict.good
    assert not verdict.made
    assert statuses(verdict) == {Status.COMMITTED}
    assert "nothing was made here" in conclusion(verdict)


def test_a_result_that_differs_in_times_alone_is_equal(repository):
    repository.again("nxm", 0, shift=0.0)
    repository.lock()
    verdict = verify(repository.root)
    assert finding(verdict, NXM).status is Status.EQUAL
    assert len(verdict.made) == 1
    assert verdict.good


def test_results_that_differ_by_rounding_are_within_noise_and_all_claims_hold(repository):
    for run in ("dense", "asp", "nxm"):
        for seed in (0, 1):
            repository.again(run, seed, shift=0.002)
    repository.derive()
    verdict = verify(repository.root)
    assert verdict.good
    made = [one for one in verdict.made if one.place.endswith("seed0.json")]
    assert [one.status for one in made] == [Status.NOISE] * 3
    assert all(abs(one.score - one.committed) <= one.limit for one in made)
    assert "reproduced: 6 trainings made here agree" in conclusion(verdict)
    assert {claim.words.partition("(")[0] for claim in verdict.claims} == {
        "headline: retention",
        "headline: points",
        "above",
        "examples",
    }


def test_the_limit_of_noise_is_the_paired_interval_where_it_is_the_largest(repository):
    """With predictions that differ much at random, by as many points as examples alone can make."""
    repository.again("asp", 0, shift=2.0)
    repository.lock()
    found = finding(verify(repository.root), "results/stsb/asp/seed0.json")
    draw = resampling_scorer("stsb", {"validation": repository.labels})
    now = np.load(predictions_path(repository.path("asp")))["validation"]
    low, high = interval(draw({"validation": now}) - draw({"validation": repository.predictions("asp", 0)}))
    assert found.limit == pytest.approx((high - low) / 2)
    assert found.limit > 0.1


# --- what differs ----------------------------------------------------------------------------------------------------


def test_a_result_beyond_noise_differs_and_the_claim_that_it_contradicts_does_not_hold(repository):
    for seed in (0, 1):
        repository.again("nxm", seed, shift=4.0)
    repository.derive()
    verdict = verify(repository.root)
    assert finding(verdict, NXM).status is Status.DIFFERENT
    assert not verdict.good
    assert verdict.contradicts
    assert "2 files are not as they should be: 2 different" in conclusion(verdict)
    failed = [claim.words for claim in verdict.failed_claims]
    assert 'above("nxm", "asp")' in failed
    assert 'headline: retention("asp") (stsb)' not in failed


def test_a_held_out_score_beyond_noise_differs(repository):
    repository.make("nxm", 0, heldout={"name": "spearman", "value": 80.0})
    repository.commit()
    repository.make("nxm", 0, heldout={"name": "spearman", "value": 50.0})
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.DIFFERENT
    assert "held out -30.00 points" in found.words


@pytest.mark.situation("verify", "a result that lost its held-out score or its epochs", "refused")
@pytest.mark.parametrize("side", ["here", "committed"])
def test_a_held_out_score_that_only_one_side_has_differs(repository, side):
    score = {"name": "spearman", "value": 80.0}
    repository.make("nxm", 0, heldout=score if side == "committed" else None, wall_seconds=3.0)
    repository.commit()
    repository.make("nxm", 0, heldout=score if side == "here" else None)
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.DIFFERENT
    lost = "the committed one has a held-out score, this one has none"
    assert found.words == (lost if side == "committed" else "this one has a held-out score, the committed one has none")


def test_epochs_that_are_missing_or_at_other_steps_differ(repository):
    epochs = json.loads(repository.path("nxm").read_text())["epochs"]
    assert epochs
    last = epochs[-1]
    moved = [*epochs[:-1], last | {"step": last["step"] + 1}]
    for changed, words in (
        ([], f"0 epochs, the committed one has {len(epochs)}"),
        (moved, f"-> epoch {last['epoch']:g}"),
    ):
        repository.make("nxm", 0, epochs=changed)
        repository.lock()
        found = finding(verify(repository.root), NXM)
        assert found.status is Status.DIFFERENT
        assert words in found.words


def test_a_network_of_another_sparsity_differs_though_its_score_is_the_same(repository):
    sparsity = json.loads(repository.path("nxm").read_text())["sparsity"]
    repository.make("nxm", 0, sparsity=sparsity | {"density": 0.6})
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert (found.status, found.words) == (Status.DIFFERENT, "density 0.5 -> 0.6")


def lock_stage(repository, stage: str, name: str) -> None:
    """Add to dvc.lock a stage that just made a file."""
    path = repository.root / "dvc.lock"
    lock = YAML(typ="safe").load(path.read_text())
    entry = {"path": name, "hash": "md5", "md5": md5_of(repository.root / name)}
    lock["stages"][stage] = {"outs": [entry]}
    with path.open("w") as file:
        YAML().dump(lock, file)


def test_times_measured_again_are_no_result_of_another_study(repository):
    """A bench file names its device and no study; benchmark.json names its study."""
    for name, content in (
        ("results/bench/cpu.json", {"device": "cpu", "rows": [{"part": "card"}]}),
        ("results/benchmark.json", {"study": "embedded", "seconds": 1.0}),
    ):
        path = repository.root / name
        write_text(path, json.dumps(content))
        repository.commit()
        write_text(path, json.dumps(content | {"again": 1}))
        lock_stage(repository, "times", name)
        found = finding(verify(repository.root), name)
        assert (found.status, found.words) == (Status.TIMES, "measured here; times are not compared")


@pytest.mark.situation("verify", "measured times of another study, or a file of them that was cut short", "refused")
@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("results/benchmark.json", '{"study": "glue"}', Status.FOREIGN),
        ("results/bench/cpu.json", '{"device": "cp', Status.DAMAGED),
        ("results/bench/cpu.json", "[]", Status.DAMAGED),
    ],
)
def test_times_that_are_not_as_they_should_be_are_named(repository, name, text, status):
    write_text(repository.root / name, text)
    lock_stage(repository, "times", name)
    verdict = verify(repository.root)
    assert finding(verdict, name).status is status
    assert not verdict.good


# --- bad situations --------------------------------------------------------------------------------------------------


@pytest.mark.situation("verify", "a results file that was cut short or has conflict marks", "refused")
def test_a_damaged_result_is_named(repository):
    repository.path("nxm").write_text('{"study": "embedded", "ta')
    verdict = verify(repository.root)
    found = finding(verdict, NXM)
    assert found.status is Status.DAMAGED
    assert "cut short" in found.words
    assert not verdict.good
    assert NXM in verdict.stopped


@pytest.mark.situation("verify", "damaged predictions", "refused")
def test_damaged_predictions_are_named(repository):
    path = predictions_path(repository.path("nxm"))
    path.write_bytes(path.read_bytes()[:100])
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.DAMAGED
    assert "seed0.npz: not a file of predictions" in found.words


@pytest.mark.situation("verify", "a committed result, or its predictions, that is missing", "refused")
@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_a_missing_file_is_named(repository, ending):
    repository.path("nxm").with_suffix(ending).unlink()
    verdict = verify(repository.root)
    assert finding(verdict, NXM).status is Status.MISSING
    assert not verdict.good


@pytest.mark.situation("verify", "a run that the pages are about and that is missing altogether", "refused")
def test_a_claim_about_a_run_without_results_does_not_hold(repository):
    shutil.rmtree(repository.path("asp").parent)
    verdict = verify(repository.root)
    assert finding(verdict, "results/stsb/asp/seed0.json").status is Status.MISSING
    reasons = {claim.words: claim.reason for claim in verdict.claims if not claim.made}
    assert "no run of asp; it has dense and nxm" in reasons['above("nxm", "asp")']
    assert verdict.differences == ()


@pytest.mark.situation("verify", "a score edited by hand", "refused")
def test_an_edited_score_is_named_by_the_lock(repository):
    repository.edit("nxm", metric={"name": "spearman", "value": 99.0}, metrics={"spearman": 99.0})
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.EDITED
    assert "not the file that its stage made" in found.words


def test_no_claim_holds_that_rests_on_a_file_which_cannot_be_trusted(repository):
    repository.edit("asp", hyperparameters={"epochs": 1, "learning_rate": 1.0, "batch_size": 1})
    assert any(claim.holds for claim in verify(repository.root).claims)  # other values: an experiment
    repository.make("asp", 0, wall_seconds=3.0)  # and no lock that knows it
    verdict = verify(repository.root)
    assert not any(claim.holds for claim in verdict.claims)
    assert "it rests on results/stsb/asp/seed0.json" in verdict.claims[0].reason


@pytest.mark.situation("verify", "a score edited by hand, and dvc.lock with it", "refused")
@pytest.mark.parametrize("keys", [("metric", "metrics"), ("metric",)])
def test_a_score_that_is_not_that_of_its_predictions_is_named(repository, keys):
    changes = {"metric": {"name": "spearman", "value": 99.0}, "metrics": {"spearman": 99.0}}
    repository.edit("nxm", **{key: changes[key] for key in keys})
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.EDITED
    assert "99.0" in found.words


@pytest.mark.situation("verify", "a result copied from another study", "refused")
def test_a_result_of_another_study_is_named(repository):
    repository.edit("nxm", study="glue")
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert (found.status, found.words) == (Status.FOREIGN, "a result of study glue")


@pytest.mark.situation("verify", "a result copied from another run or seed of the study", "refused")
@pytest.mark.parametrize(("run", "seed"), [("asp", 0), ("nxm", 1)])
def test_a_result_of_another_training_is_named(repository, run, seed):
    for of in (Path, predictions_path):
        shutil.copy(of(repository.path(run, seed)), of(repository.path("nxm")))
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert (found.status, found.words) == (Status.FOREIGN, f"a result of results/stsb/{run}/seed{seed}.json")


@pytest.mark.situation("verify", "a result of other values than params.yaml has", "refused")
def test_a_result_of_other_values_is_named(repository):
    values = json.loads(repository.path("nxm").read_text())["hyperparameters"]
    repository.make("nxm", 0, hyperparameters=values | {"rho": 0.7})
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.VALUES
    assert "rho 0.35 -> 0.7" in found.words


@pytest.mark.situation(
    "verify", "a result of changed values in params.yaml, compared with committed ones of others", "refused"
)
def test_a_result_of_changed_params_is_no_reproduction(repository):
    params = json.loads((repository.root / "params.yaml").read_text())
    params["runs"]["nxm"]["rho"] = 0.7
    write_text(repository.root / "params.yaml", json.dumps(params))
    for seed in (0, 1):
        values = json.loads(repository.path("nxm", seed).read_text())["hyperparameters"]
        noisy = repository.predictions("nxm", seed) + 4 * np.random.default_rng(seed).normal(size=(200, 1))
        repository.make("nxm", seed, noisy.astype(np.float32), hyperparameters=values | {"rho": 0.7})
    repository.derive()
    verdict = verify(repository.root)
    found = finding(verdict, NXM)
    assert (found.status, found.words) == (Status.VALUES, "committed with other values: rho 0.35 -> 0.7")
    assert not verdict.good
    assert not verdict.contradicts  # an experiment, whose result may differ


@pytest.mark.situation("verify", "a result of other data", "refused")
def test_a_result_of_other_data_is_named(repository):
    provenance = json.loads(repository.path("nxm").read_text())["provenance"]
    repository.make("nxm", 0, provenance=provenance | {"data_sha256": "3" * 64})
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.DATA
    assert "data_sha256" in found.words


@pytest.mark.situation(
    "verify", "a result of other code than the committed one, or of code that was changed since", "refused"
)
@pytest.mark.parametrize(("code", "listed"), [(OWN, OWN), (SHARED, "code/training.json")])
def test_a_result_of_other_code_is_named(repository, code, listed):
    repository.again("nxm", 0, shift=0.002)
    repository.lock()
    (repository.root / code).write_text("trains = False\n")
    found = finding(verify(repository.root), NXM)
    assert (found.status, found.words) == (Status.CODE, f"the code has changed since it was made: {code}")
    assert found.score is not None
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert (found.status, found.words) == (Status.CODE, f"committed with other code: {listed}")


@pytest.mark.situation("verify", "a result that no stage here made", "refused")
def test_a_result_without_a_record_in_the_lock_is_named(repository):
    repository.again("nxm", 0, shift=0.002)
    (repository.root / "dvc.lock").unlink()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.EDITED
    assert "dvc.lock does not know" in found.words


@pytest.mark.situation("verify", "a damaged dvc.lock", "refused")
@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nstages: {}\n", "stages: [", "", "stages:\n  a: 1\n"])
def test_a_damaged_lock_is_named(repository, text):
    repository.again("nxm", 0, shift=0.002)
    (repository.root / "dvc.lock").write_text(text)
    verdict = verify(repository.root)
    found = finding(verdict, "dvc.lock")
    assert found.status is Status.DAMAGED
    assert found.words.startswith("dvc.lock: not a dvc.lock, or cut short, or with conflict marks")
    assert finding(verdict, NXM).status is Status.EDITED
    assert finding(verdict, "results/stsb/asp/seed0.json").status is Status.COMMITTED
    assert not verdict.good
    assert not any(claim.holds for claim in verdict.claims)


def test_a_result_that_only_an_earlier_commit_has_is_compared_with_that(repository):
    for path in (repository.path("nxm"), predictions_path(repository.path("nxm"))):
        path.unlink()
    repository.commit()
    repository.again("nxm", 0, shift=0.002)
    repository.lock()
    found = finding(verify(repository.root), NXM)
    assert found.status is Status.NOISE
    assert "last committed in" in found.words


def test_a_result_that_no_commit_has_is_new(repository):
    params = json.loads((repository.root / "params.yaml").read_text()) | {"seeds": [0, 1, 2]}
    write_text(repository.root / "params.yaml", json.dumps(params))
    repository.make("nxm", 2)
    repository.lock()
    verdict = verify(repository.root)
    found = finding(verdict, "results/stsb/nxm/seed2.json")
    assert (found.status, found.words) == (Status.NEW, "no commit has it")
    assert verdict.good
    assert "no training that is committed was made here" in conclusion(verdict)


def test_a_result_of_a_seed_that_params_no_longer_has_is_not_planned(repository):
    repository.make("nxm", 2)
    verdict = verify(repository.root)
    assert finding(verdict, "results/stsb/nxm/seed2.json").status is Status.UNPLANNED
    assert finding(verdict, "results/stsb/nxm/seed2.npz").status is Status.UNPLANNED


@pytest.mark.situation(
    "verify", "a downloaded archive, which is no git repository: `--evidence` works there", "refused"
)
def test_without_git_there_is_nothing_to_compare_with(repository):
    shutil.rmtree(repository.root / ".git")
    with pytest.raises(UserError, match=r"no git repository .* `nxm verify --evidence` needs no git"):
        verify(repository.root)


def test_git_that_is_not_installed_is_named(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository.root))
    with pytest.raises(UserError, match="git is not installed"):
        verify(repository.root)


@pytest.mark.situation("verify", "a repository without a commit, or without the revision that is asked for", "refused")
def test_a_missing_revision_is_named(repository):
    with pytest.raises(UserError, match="git has no revision v9"):
        verify(repository.root, against="v9")
    shutil.rmtree(repository.root / ".git")
    repository.git("init", "--quiet")
    with pytest.raises(UserError, match="git has no revision HEAD"):
        verify(repository.root)


@pytest.mark.situation("verify", "a shallow clone", "works")
def test_a_shallow_clone_has_what_is_needed(repository, tmp_path):
    write_text(repository.root / "later.txt", "later")
    repository.commit()
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", "--depth", "1", f"file://{repository.root}", str(clone)],
        check=True,
        capture_output=True,
    )
    assert verify(clone).good
    shutil.copytree(repository.root / "data", clone / "data")
    copy = type(repository)(clone)
    copy.again("nxm", 0, shift=0.002)
    copy.lock()
    assert finding(verify(clone), NXM).status is Status.NOISE


@pytest.mark.situation("verify", "a result that a shallow clone has in no commit", "works")
def test_what_a_shallow_clone_lacks_is_named(repository, tmp_path):
    for path in (repository.path("nxm"), predictions_path(repository.path("nxm"))):
        path.unlink()
    repository.commit()
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", "--depth", "1", f"file://{repository.root}", str(clone)],
        check=True,
        capture_output=True,
    )
    copy = type(repository)(clone)
    shutil.copytree(repository.root / "data", clone / "data")
    copy.make("nxm", 0)
    copy.lock()
    found = finding(verify(clone), NXM)
    assert (found.status, found.words) == (Status.NEW, "no commit has it of this shallow clone")


@pytest.mark.situation("verify", "a folder that cannot be written: the verdict is printed and not saved", "works")
def test_a_verdict_that_cannot_be_saved_is_given_all_the_same(repository, monkeypatch):
    shutil.rmtree(repository.root / ".cache", ignore_errors=True)
    (repository.root / ".cache").write_text("in the way")
    monkeypatch.chdir(repository.root)
    before = {path: path.stat().st_mtime_ns for path in repository.root.rglob("*") if ".git" not in path.parts}
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 0
    assert "nothing was made here" in done.stdout
    assert "the verdict is not saved" in done.output
    assert before == {path: path.stat().st_mtime_ns for path in repository.root.rglob("*") if ".git" not in path.parts}


@pytest.mark.situation("verify", "two `nxm verify` at once", "works")
def test_two_at_once_give_the_same_verdict(repository):
    repository.again("nxm", 0, shift=0.002)
    repository.derive()

    def give(_: int) -> Verdict:
        verdict = verify(repository.root)
        assert save_verdict(repository.root, verdict) is None
        return verdict

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(give, range(2))
    assert first == second
    saved = json.loads((repository.root / FILES["results"]).read_text())
    assert saved["good"] is True
    assert [path.name for path in (repository.root / ".cache").iterdir()] == ["verdict.json"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_exit_status_is_the_verdict(repository, monkeypatch):
    monkeypatch.chdir(repository.root)
    assert CliRunner().invoke(app, ["verify", "embedded"]).exit_code == 0
    repository.path("nxm").unlink()
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 1
    assert "it is committed, but not here" in done.stdout
    saved = json.loads((repository.root / FILES["results"]).read_text())
    assert saved["good"] is False
    assert saved["conclusion"] in done.stdout


def test_an_unknown_study_is_named(repository):
    with pytest.raises(UserError, match="there is no study 'own'"):
        verify(repository.root, ["own"])
    with pytest.raises(UserError, match="start in the repository's root"):
        verify(repository.root / "src")


def test_what_is_printed_has_the_results_the_claims_and_the_differences(repository, capsys):
    repository.again("nxm", 0, shift=4.0)
    repository.derive()
    print_verdict(verify(repository.root))
    printed = capsys.readouterr().out
    assert NXM in printed
    assert "different" in printed
    assert "differences that the pages show" in printed
    assert "NxM - ASP" in printed


def test_other_sets_by_matrix_are_named_as_a_circumstance():
    former = next(run for run in make_allocated() if run.allocation is not None)
    assert former.allocation is not None
    first, *others = former.allocation.matrices
    moved = first.model_copy(update={"choice": "dense"})
    allocation = former.allocation.model_copy(update={"matrices": (moved, *others)})
    words = _other_circumstances(former.model_copy(update={"allocation": allocation}), former)
    assert words == f"1 of 36 matrices have another set, first {first.matrix}"
    assert _other_circumstances(former, former) == ""
