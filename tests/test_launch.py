"""Stages run side by side: each as soon as it can, what takes times alone, and a failure stops what needs it."""

from __future__ import annotations

import threading
import time

import pytest

from nxm.launch import Stage, side_by_side, work_left

TIMEOUT = 20  # seconds, for what never happens where the test passes


def stages(**needs: str) -> dict[str, Stage]:
    return {name: Stage(frozenset(ups.split()), (), (), ()) for name, ups in needs.items()}


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
    assert side_by_side(GRAPH, costs, 1, lambda name, slot: not order.append(name)) == set()
    assert order == ["prepare", "dense", "asp", "distil", "student", "table"]


def test_a_stage_starts_while_a_longer_one_of_its_rank_still_runs():
    started = threading.Event()

    def run(name: str, slot: int | None) -> bool:
        if name == "distil":
            started.set()
        return started.wait(TIMEOUT) if name == "asp" else True

    assert side_by_side(GRAPH, even(*GRAPH), 2, run) == set()


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

    side_by_side(graph, even(*graph), jobs, run)
    assert {name for together in seen for name, _ in together} == set(graph)
    assert max(len(together) for together in seen) <= jobs
    assert [together for together in seen if ("benchmark", None) in together] == [{("benchmark", None)}]
    for together in seen:
        slots = [slot for _, slot in together if slot is not None]
        assert len(slots) == len(set(slots))
        assert set(slots) <= set(range(jobs))
        assert not slots or jobs > 1  # one alone has the machine


def test_a_failure_stops_what_needs_it_and_nothing_else():
    ran = []

    def run(name: str, slot: int | None) -> bool:
        ran.append(name)
        return name != "distil"

    assert side_by_side(GRAPH, even(*GRAPH), 2, run) == {"distil", "student", "table"}
    assert sorted(ran) == ["asp", "dense", "distil", "prepare"]


def test_what_does_not_run_is_taken_as_done():
    ran = []
    assert side_by_side(GRAPH, even("distil", "table"), 2, lambda name, slot: not ran.append(name)) == set()
    assert sorted(ran) == ["distil", "table"]
