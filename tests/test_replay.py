"""Calls timed without their launches. No test on a CPU compares times."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from nxm.replay import Replay, fastest

CPU = torch.device("cpu")


def test_on_a_cpu_all_calls_run_and_the_seconds_are_those_of_one(monkeypatch):
    clock = iter([10.0, 16.0])
    made: list[str] = []
    replay = Replay([lambda: made.append("a"), lambda: made.append("b"), lambda: made.append("c")], CPU)
    made.clear()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert replay.seconds() == 2.0
    assert made == ["a", "b", "c"]
    assert replay.refused is None


def test_the_fastest_is_the_least_median(monkeypatch):
    """One slow round does not decide."""
    seconds = {"steady": [9.0, 2.0, 2.0, 2.0], "disturbed": [9.0, 1.0, 50.0, 1.0]}
    left = {name: iter(own) for name, own in seconds.items()}
    monkeypatch.setattr(Replay, "seconds", lambda self: next(left[self.calls[0]()]))
    found = fastest({name: [lambda name=name: name] for name in seconds}, CPU, rounds=3)
    assert found == {"steady": 2.0, "disturbed": 1.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_hosts_time_does_not_count_and_a_replay_writes_its_output():
    device = torch.device("cuda")
    x = torch.ones(16, 16, device=device)

    def call() -> torch.Tensor:
        time.sleep(1e-3)  # a host that is slow to launch
        return x * 2.0

    replay = Replay([call] * 3, device)
    assert replay.refused is None
    assert np.median([replay.seconds() for _ in range(20)]) < 1e-4
    x.fill_(3.0)
    replay.run()
    assert bool((replay.output == 6.0).all())
