"""One `nxm repro` at a time in a study; other commands go on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nxm import UserError
from nxm.launch.alone import alone, process_at_work


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.situation("commands", "a second `nxm repro` of a study while the first runs", "refused")
def test_a_second_run_is_refused_with_the_process_that_holds_the_first():
    assert process_at_work() is None
    with alone("glue"):
        assert process_at_work().startswith(f"{os.getpid()} on ")
        with (
            pytest.raises(
                UserError, match=rf"study glue: process {os.getpid()} on .* runs it already: wait for its end"
            ),
            alone("glue"),
        ):
            pass
        assert process_at_work() is not None  # the attempt has not taken the lock away
    assert process_at_work() is None
    with alone("glue"):
        pass


@pytest.mark.situation("commands", "`nxm repro` after one that was killed", "works")
def test_a_process_that_was_killed_holds_nothing():
    code = (
        "import time; from nxm.launch.alone import alone\n"
        "with alone('glue'):\n    print('holds', flush=True)\n    time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "holds\n"
    assert process_at_work().startswith(f"{other.pid} on ")
    other.kill()
    other.wait()
    assert process_at_work() is None
    with alone("glue"):
        assert process_at_work().startswith(f"{os.getpid()} on ")
