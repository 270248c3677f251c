"""Stages run side by side: each as soon as it can, what takes times alone, and a failure stops what needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from nxm.environment import SHARED_GPU
from nxm.launch.project import Stage
from nxm.launch.schedule import Runner, default_jobs, side_by_side, stopped, that_need, work_left
from nxm.launch.worker import share

TIMEOUT = 20  # seconds, for what never happens where the test passes


class Calls:
    """Runs a stage by calling a function with its name and its slot."""

    def __init__(self, run: Callable[[str, int | None], bool]) -> None:
        self.run = run

    def start(self, name: str) -> Runner:
        return lambda slot, jobs: self.run(name, slot)

    def end(self, name: str, succeeded: bool) -> bool:
        return succeeded


def stages(**needs: str) -> dict[str, Stage]:
    return {name: Stage(name, frozenset(ups.split())) for name, ups in needs.items()}


GRAPH = stages(prepare="", dense="prepare", asp="prepare", distil="dense", student="distil", table="student asp")


def even(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def test_what_stands_before_the_most_work_goes_first():
    needs = {name: stage.needs for name, stage in GRAPH.items()}
    costs = even(*GRAPH) | {"asp": 2.5, "table": 0.0}
    assert work_left(needs, costs) == {
        "prepare": 4.0,
        "dense": 3.0,
        "asp": 2.5,
        "distil": 2.0,
        "student": 1.0,
        "table": 0.0,
    }
    order = []
    assert side_by_side(GRAPH, costs, 1, Calls(lambda name, slot: not order.append(name))) == set()
    assert order == ["prepare", "dense", "asp", "distil", "student", "table"]


def test_a_stage_starts_while_a_longer_one_of_its_rank_still_runs():
    started = threading.Event()

    def run(name: str, slot: int | None) -> bool:
        if name == "distil":
            started.set()
        return started.wait(TIMEOUT) if name == "asp" else True

    assert side_by_side(GRAPH, even(*GRAPH), 2, Calls(run)) == set()


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_than_jobs_run_and_what_takes_times_runs_alone(jobs):
    graph = stages(prepare="", a="prepare", b="prepare", c="prepare", benchmark="prepare", d="benchmark")
    lock, running, seen = threading.Lock(), set(), []

    def run(name: str, slot: int | None) -> bool:
        with lock:
            running.add((name, slot))
            seen.append(set(running))
        time.sleep(0.02)
        with lock:
            running.discard((name, slot))
        return True

    side_by_side(graph, even(*graph), jobs, Calls(run))
    assert {name for together in seen for name, _ in together} == set(graph)
    assert max(len(together) for together in seen) <= jobs
    assert [together for together in seen if ("benchmark", None) in together] == [{("benchmark", None)}]
    for together in seen:
        slots = [slot for _, slot in together if slot is not None]
        assert len(slots) == len(set(slots))
        assert set(slots) <= set(range(jobs))
        assert not slots or jobs > 1  # one alone has the machine


@pytest.mark.parametrize(
    ("failing", "lost"),
    [
        ({"distil"}, {"distil", "student"}),  # the table is made, and says what is missing
        ({"distil", "asp"}, {"distil", "student", "asp", "table"}),  # nothing is left to make it from
        ({"prepare"}, set(GRAPH)),
    ],
)
def test_a_failure_stops_what_cannot_do_without_it_and_nothing_else(failing, lost):
    ran = []

    def run(name: str, slot: int | None) -> bool:
        ran.append(name)
        return name not in failing

    assert side_by_side(GRAPH, even(*GRAPH), 2, Calls(run)) == lost
    assert set(ran) == set(GRAPH) - lost | failing
    assert len(ran) == len(set(ran))
    assert stopped(GRAPH, failing) == lost


def test_the_report_is_made_of_what_was_done_before_when_all_that_runs_fails():
    ran = []

    def run(name: str, slot: int | None) -> bool:
        ran.append(name)
        return name != "asp"

    assert side_by_side(GRAPH, even("asp", "table"), 1, Calls(run)) == {"asp"}
    assert ran == ["asp", "table"]


def test_what_does_not_run_is_taken_as_done():
    ran = []
    assert side_by_side(GRAPH, even("distil", "table"), 2, Calls(lambda name, slot: not ran.append(name))) == set()
    assert sorted(ran) == ["distil", "table"]


@pytest.mark.parametrize(("cores", "jobs", "width"), [(2, 2, 1), (3, 2, 1), (16, 3, 5), (8, 2, 4), (2, 4, 1)])
def test_every_share_has_as_many_cores_and_none_twice_while_there_are_enough(monkeypatch, cores, jobs, width):
    given = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(10, 10 + cores)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, own: given.append(set(own)), raising=False)
    monkeypatch.setattr(os, "environ", {})
    for slot in range(jobs):
        share(slot, jobs)
    assert [len(own) for own in given] == [width] * jobs
    if jobs <= cores:
        assert len(set().union(*given)) == width * jobs


@pytest.mark.parametrize(("jobs", "shared"), [(1, False), (2, False), (3, True)])
def test_a_job_knows_whether_its_gpu_is_its_own(monkeypatch, jobs, shared):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, own: None, raising=False)
    given = []
    for slot in range(jobs):
        monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "4,5"})
        share(slot, jobs)
        given.append(os.environ["CUDA_VISIBLE_DEVICES"])
        assert (SHARED_GPU in os.environ) == shared
    assert given == ["4", "5", "4"][:jobs]
    monkeypatch.setattr(os, "environ", {})  # nxm.launch.schedule names no GPU where there is one at most
    share(0, jobs)
    assert (SHARED_GPU in os.environ) == (jobs > 1)


def test_what_cannot_be_recorded_has_failed():
    """A stage whose command succeeds, and which did not make what it should, stops those that need it."""

    class Unrecorded(Calls):
        def end(self, name: str, succeeded: bool) -> bool:
            return succeeded and name != "distil"

    ran = []
    events = Unrecorded(lambda name, slot: not ran.append(name))
    assert side_by_side(GRAPH, even(*GRAPH), 1, events) == {"distil", "student"}
    assert set(ran) == set(GRAPH) - {"student"}


def test_what_needs_a_stage_is_found_through_others():
    graph = stages(a="", b="a", c="b", d="", e="d c")
    assert that_need(graph, {"b"}) == {"b", "c", "e"}
    assert that_need(graph, set()) == set()


def test_two_stages_run_side_by_side_on_a_cpu_of_two_cores_or_more(monkeypatch):
    monkeypatch.setattr("nxm.launch.schedule._has_gpu", lambda: False)
    monkeypatch.delenv("ACCELERATE_CONFIG", raising=False)
    for cores, jobs in ((1, 1), (2, 2), (16, 2)):
        monkeypatch.setattr("nxm.launch.schedule.cores", lambda cores=cores: cores)
        assert default_jobs() == jobs
    monkeypatch.setenv("ACCELERATE_CONFIG", "hardware/cpu2.yaml")  # several processes share the machine by themselves
    assert default_jobs() == 1
    monkeypatch.delenv("ACCELERATE_CONFIG")
    monkeypatch.setattr("nxm.launch.schedule._has_gpu", lambda: True)
    assert default_jobs() == 1


def test_a_launch_that_is_terminated_ends_its_stages(tmp_path):
    script = tmp_path / "launching.py"
    script.write_text(
        "import signal, subprocess, sys\n"
        "from nxm.launch.project import Stage\n"
        "from nxm.launch.schedule import end_with_stages, side_by_side\n"
        "signal.signal(signal.SIGTERM, end_with_stages)\n"
        "class Events:\n"
        "    def start(self, name):\n"
        "        return self.run\n"
        "    def run(self, slot, jobs):\n"
        "        stage = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "        print(stage.pid, flush=True)\n"
        "        return stage.wait() == 0\n"
        "    def end(self, name, succeeded):\n"
        "        return succeeded\n"
        "stages = {name: Stage(name, frozenset()) for name in ('asp@stsb-asp-seed0', 'nxm@stsb-nxm-seed0')}\n"
        "side_by_side(stages, dict.fromkeys(stages, 1.0), 1, Events())\n"
    )
    launching = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stage = psutil.Process(int(launching.stdout.readline()))
    launching.terminate()
    more, said = launching.communicate(timeout=60)
    assert launching.returncode == 128 + signal.SIGTERM
    assert "what is done is safe" in said
    assert not stage.is_running()
    assert not more  # the second stage was not started
