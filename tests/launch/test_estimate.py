"""The time that a study takes, judged by runs that were timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nxm.environment import JOBS, PLAN, STARTED
from nxm.launch.estimate import estimate_seconds, planned, say_progress, stage_units, timed_runs
from nxm.study.plan import Training
from nxm.study.results import read_study, result_path, write_result
from nxm.study.settings import Study, load_study, parse_study
from nxm.study.studies import study_values
from records import ROOT, record

ASP, NXM = "asp@stsb-asp-seed0", "nxm@stsb-nxm-seed0"


@pytest.fixture
def embedded() -> Study:
    return load_study(ROOT / "params.yaml")


@pytest.fixture
def glue() -> Study:
    return parse_study(study_values(ROOT, "glue"), "glue")


def write(folder: Path, study: str, training: Training, **changes: object) -> None:
    write_result(result_path(folder, training), record(training, study, **changes))


def test_estimates_follow_epochs_and_jobs_and_need_a_timed_run(embedded):
    assert estimate_seconds(embedded, ["figure@figure1", "table@table1"], [], 1) == 0.0
    assert estimate_seconds(embedded, [ASP], [], 1) is None
    timed = read_study(ROOT)
    one, two = (estimate_seconds(embedded, [ASP, NXM], timed, jobs) for jobs in (1, 2))
    assert one == pytest.approx(2 * two)
    assert one == pytest.approx(2 * estimate_seconds(embedded, [ASP], timed, 1))
    longer = embedded.model_copy(update={"runs": embedded.runs | {"asp": embedded.runs["asp"] | {"epochs": 50}}})
    assert stage_units(longer, ASP) == pytest.approx(10 * stage_units(embedded, ASP), rel=0.1)


def test_a_student_takes_half_the_time_and_a_teacher_a_third_more(embedded):
    """distil_nxm: epochs as of the dense model, from the student; with a teacher: distil."""
    dense, student, taught = (
        stage_units(embedded, f"{stage}@stsb-{stage_run}-seed0")
        for stage, stage_run in (("baseline", "dense"), ("distil_nxm", "distil_nxm"), ("distil", "distil"))
    )
    assert student == pytest.approx(dense / 2)
    assert taught == pytest.approx(dense / 2 + dense / 3)


def test_measuring_sensitivities_counts_a_third_of_training_on_as_many_examples(embedded):
    mixed = {"bits": 2.8, "choices": ["2:4 int4", "2:4 int3", "dense"], "examples": 64}
    own = embedded.runs["nxm"] | {"start": "dense"}
    studies = [
        embedded.model_copy(update={"runs": embedded.runs | {"nxm": own | {"set": value}}}) for value in ("2:4", mixed)
    ]
    plain, measured = (stage_units(study, NXM) for study in studies)
    assert measured - plain == pytest.approx(36 * 2 * 64 / 3)


def test_a_task_goes_by_the_speed_of_its_own_runs_or_else_of_all(glue):
    slow, fast = (
        record(Training(task, "nxm", 0), "glue", wall_seconds=seconds)
        for task, seconds in (("rte", 300.0), ("cola", 100.0))
    )
    stages = [f"asp@{task}-asp-seed0" for task in ("rte", "cola", "mrpc")]
    rte, cola, mrpc = (estimate_seconds(glue, [stage], [slow, fast], 1) for stage in stages)
    assert rte == pytest.approx(estimate_seconds(glue, [stages[0]], [slow], 1))
    assert cola == pytest.approx(estimate_seconds(glue, [stages[1]], [fast], 1))
    assert mrpc < estimate_seconds(glue, [stages[2]], [slow], 1)
    assert mrpc > estimate_seconds(glue, [stages[2]], [fast], 1)
    assert estimate_seconds(glue, stages, [slow, fast], 1) == pytest.approx(rte + cola + mrpc)


def test_a_task_with_more_examples_than_others_takes_longer(glue):
    assert glue.prepare.train_examples_by_task == {"cola": None}
    capped = glue.prepare.model_copy(update={"train_examples_by_task": {}})
    other = glue.model_copy(update={"prepare": capped})
    cola, mrpc = "asp@cola-asp-seed0", "asp@mrpc-asp-seed0"
    assert stage_units(glue, cola) > 2 * stage_units(other, cola)
    assert stage_units(glue, mrpc) == stage_units(other, mrpc)


def test_a_study_without_runs_is_judged_by_others_of_the_same_weights(glue, tmp_path, monkeypatch):
    folder = tmp_path / "studies/glue"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert timed_runs(glue) == []
    other = record(Training("stsb", "nxm", 2)).provenance.model_copy(update={"weights": "bert-base-uncased (hub)"})
    write(tmp_path, "embedded", Training("stsb", "nxm", 1))
    write(tmp_path, "embedded", Training("stsb", "nxm", 2), provenance=other.model_dump())
    (tmp_path / "studies/seeds").mkdir()
    (tmp_path / "studies/seeds/study.yaml").touch()
    write(tmp_path / "studies/seeds", "seeds", Training("stsb", "asp", 3))
    assert [(result.study, result.seed) for result in timed_runs(glue)] == [("embedded", 1), ("seeds", 3)]
    write(folder, "glue", Training("rte", "nxm", 0))
    assert [result.study for result in timed_runs(glue)] == ["glue"]


def test_progress_counts_what_this_launch_has_done(embedded, monkeypatch, tmp_path):
    results = [result for result in read_study(ROOT) if result.name in ("dense", "asp")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PLAN, raising=False)
    assert say_progress(embedded, results) is None  # outside a launch
    stages = ["baseline@stsb-dense-seed0", ASP, NXM, "compress@stsb-distil_nxm_kd-seed0"]
    assert set(stages) <= planned(embedded).keys()
    monkeypatch.setenv(PLAN, "\n".join(["prepare@stsb", *stages, "benchmark"]))
    monkeypatch.setenv(STARTED, str(time.time() - 100))
    monkeypatch.setenv(JOBS, "2")
    monkeypatch.setenv("DVC_STAGE", NXM)
    first = say_progress(embedded, results)
    assert first.startswith(f"training 1 of 4: {NXM}; about ")
    for result in results:
        write_result(result_path("", Training("stsb", result.name, 0)), result)
    third = say_progress(embedded, results)
    assert third.startswith(f"training 3 of 4: {NXM}; about ")
    assert third.split("about ")[1] != first.split("about ")[1]
    assert os.environ["DVC_STAGE"] == NXM


@pytest.mark.parametrize(
    ("stage", "run", "epochs"),
    [
        ("baseline@stsb-dense-seed0", "dense", 4),
        ("trial@stsb-nxm-rho1_0-seed0", "nxm", 5),
        ("trial@stsb-nxm-paper-rho0_006-seed0", "nxm", 5),
        ("compress@stsb-distil_nxm_kd-seed0", "distil_nxm_kd", 4),
    ],
)
def test_what_a_stage_trains_is_known_from_its_name(embedded, stage, run, epochs):
    training = planned(embedded)[stage]
    assert (training.task, training.run, training.seed) == ("stsb", run, 0)
    assert embedded.run(run, "stsb", training.changes).epochs == epochs
    assert "figure@summary" not in planned(embedded)
    assert stage_units(embedded, "figure@summary") == 0.0
