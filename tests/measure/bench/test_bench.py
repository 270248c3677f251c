"""A bench's run: its budget, what a kill leaves, a kernel that breaks its process. Units here take no time.

A process that measures takes seconds to start: only tests of one that breaks have it, the others measure in their own.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nxm.cli import app
from nxm.errors import UserError
from nxm.measure.bench import run, worker
from nxm.measure.bench.run import PARTS, plan, run_bench
from nxm.measure.bench.unit import Care, Unit
from nxm.measure.bench.worker import BrokenError, Worker

PROVENANCE = {"machine": {"cpu": "some CPU", "cores": 2, "memory_gib": 8.0}, "versions": {"torch": "2"}}


class Here:
    """Measures in this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def provenance(self) -> dict:
        return json.loads(json.dumps(PROVENANCE))

    def measure(self, unit: Unit, care: Care) -> list[dict]:
        try:
            return worker._measured(unit, care, self._device)[1]
        except SystemExit as end:
            raise BrokenError(f"the measuring process ended with status {end.code}") from None

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(run, "Worker", Here)


@pytest.fixture
def in_its_own_process(monkeypatch, in_this_process):
    monkeypatch.setattr(run, "Worker", Worker)


@pytest.fixture
def code_changes(monkeypatch):
    return lambda: monkeypatch.setattr(run, "bench_code", lambda: "other code")


def told(folder: Path, name: str, care: Care) -> list[dict]:
    """Measure nothing, but leave a trace of the call and of the process."""
    with (folder / "calls").open("a") as file:
        file.write(f"{name} {os.getpid()} {dict(care)}\n")
    return [{"part": "products", "way": name, "dtype": "fp16", "care": care.get("fp16", 0)}]


def dies_unless_careful(folder: Path, needed: int, care: Care) -> list[dict]:
    rows = told(folder, "dies", care)
    if care.get("fp16", 0) < needed:
        os._exit(7)
    return rows


def ends(care: Care) -> list[dict]:
    raise SystemExit(7)


def fails(care: Care) -> list[dict]:
    raise RuntimeError("out of memory\nand more")


def unit(name: str, measure, seconds: float = 0.1, dtypes: tuple[str, ...] = ("fp16",)) -> Unit:
    return Unit("products", name, 1.0, seconds, dtypes, measure)


def bench(folder: Path, units: list[Unit], **more) -> dict:
    given = {"budget": 3600.0, "parts": list(PARTS), "units": units} | more
    run_bench(folder / "cpu.json", "cpu", **given)
    return json.loads((folder / "cpu.json").read_text())


def calls(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "calls").read_text().splitlines()]


def test_rows_provenance_and_what_did_not_fit_are_in_the_file(tmp_path):
    found = bench(tmp_path, [unit(name, partial(told, tmp_path, name)) for name in "ab"])
    assert [row["way"] for row in found["rows"]] == ["a", "b"]
    assert (found["device"], found["left_out"]) == ("cpu", [])
    assert found["provenance"] == PROVENANCE
    assert found["calls"] == {"1": {"code": run.bench_code()}}
    assert [row["unit"] for row in found["rows"]] == ["a", "b"]


def test_a_unit_beyond_the_budget_is_left_for_another_call_and_a_shorter_one_is_not(tmp_path):
    long = Unit("encoders", "long", 1.0, 5e5, (), partial(told, tmp_path, "long"))
    short = unit("short", partial(told, tmp_path, "short"))
    found = bench(tmp_path, [long, short], budget=5e4)  # far beyond any machine's start
    assert found["left_out"] == ["long"]
    assert calls(tmp_path) == ["short"]
    found = bench(tmp_path, [long, short], budget=1e6)
    assert (found["left_out"], calls(tmp_path)) == ([], ["short", "long"])
    assert {row["way"]: row["call"] for row in found["rows"]} == {"short": 1, "long": 2}


def test_a_failing_unit_is_a_row_with_its_reason_and_the_next_is_measured(tmp_path):
    found = bench(tmp_path, [unit("bad", fails), unit("good", partial(told, tmp_path, "good"))])
    bad, good = found["rows"]
    assert bad == {"unit": "bad", "call": 1, "part": "products", "absent": "RuntimeError: out of memory"}
    assert good["way"] == "good"


def test_a_kernel_that_kills_its_process_is_tried_with_a_more_careful_search(tmp_path, in_its_own_process):
    units = [
        unit("first", partial(told, tmp_path, "first")),
        unit("dies", partial(dies_unless_careful, tmp_path, 1)),
        unit("later", partial(told, tmp_path, "later")),
    ]
    found = bench(tmp_path, units)
    assert found["provenance"].keys() == {"machine", "versions"}
    first, dies, later = found["rows"]
    assert first["care"] == 0
    assert dies["care"] == 1
    assert dies["broken_before"] == ["the measuring process ended with status 7"]
    assert later["care"] == 1  # once is enough to know it of a type
    assert calls(tmp_path) == ["first", "dies", "dies", "later"]
    processes = [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()]
    assert processes[0] == processes[1] != processes[2] == processes[3]


def test_a_kernel_that_kills_every_process_is_absent_with_the_reason(tmp_path):
    units = [unit("dies", ends), unit("good", partial(told, tmp_path, "good"))]
    dies, good = bench(tmp_path, units)["rows"]
    assert dies["absent"] == "the measuring process ended with status 7"
    assert len(dies["broken_before"]) == 3
    assert good["way"] == "good"


def test_after_a_kill_nothing_is_measured_twice(tmp_path, monkeypatch):
    units = [unit(name, partial(told, tmp_path, name)) for name in "abc"]
    honest = run.write_json

    def killed_at_the_second(path, content):
        honest(path, content)
        if len(content["rows"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_json", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path, units)
    monkeypatch.setattr(run, "write_json", honest)
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["left_out"] == ["c"]
    found = bench(tmp_path, units)  # without --force: what is there is not complete
    assert calls(tmp_path) == ["a", "b", "c"]
    assert [(row["way"], row["call"]) for row in found["rows"]] == [("a", 1), ("b", 1), ("c", 2)]


def test_another_machines_result_is_neither_mixed_with_this_ones_nor_lost(tmp_path):
    units = [unit(name, partial(told, tmp_path, name)) for name in "ab"]
    found = bench(tmp_path, units[:1])
    path = tmp_path / "cpu.json"
    found["provenance"]["machine"]["cpu"] = "another"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"cpu.json has a result of another machine or of other versions; --force"):
        bench(tmp_path, units)
    assert json.loads(path.read_text()) == found
    assert [row["call"] for row in bench(tmp_path, units, force=True)["rows"]] == [1, 1]


def test_rows_of_other_code_are_kept_and_named_and_measured_again_where_it_is_forced(tmp_path, capsys, code_changes):
    units = [unit(name, partial(told, tmp_path, name)) for name in "ab"]
    bench(tmp_path, units[:1])
    code_changes()
    found = bench(tmp_path, units)
    assert "rows of call 1 were made by other code; --force measures them again" in capsys.readouterr().out
    assert [(row["way"], row["call"]) for row in found["rows"]] == [("a", 1), ("b", 2)]
    assert found["calls"]["1"] != found["calls"]["2"] == {"code": "other code"}
    found = bench(tmp_path, units, force=True)
    assert calls(tmp_path) == ["a", "b", "a"]  # what this code made, it need not make again
    assert {row["way"]: row["call"] for row in found["rows"]} == {"a": 3, "b": 2}
    assert found["calls"] == {"2": {"code": "other code"}, "3": {"code": "other code"}}


def test_a_file_that_does_not_name_its_code_is_of_other_code(tmp_path, capsys):
    units = [unit(name, partial(told, tmp_path, name)) for name in "ab"]
    found = bench(tmp_path, units[:1])
    del found["calls"]
    (tmp_path / "cpu.json").write_text(json.dumps(found))
    found = bench(tmp_path, units)
    assert "rows of call 1 were made by other code" in capsys.readouterr().out
    assert found["calls"] == {"2": {"code": run.bench_code()}}
    bench(tmp_path, units, force=True)
    assert calls(tmp_path) == ["a", "b", "a"]


def test_the_code_is_that_of_the_bench_and_of_the_kernels(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(run, "sha256_file", lambda path: hashed.append(path.name) or "0")
    run.bench_code.__wrapped__()
    assert {"blocks.py", "worker.py", "timing.py", "replay.py", "fp8.py", "semi_structured.py"} <= set(hashed)


def test_force_drops_the_rows_of_the_chosen_units_alone_and_what_others_left_out_stays(tmp_path):
    a, b = (unit(name, partial(told, tmp_path, name)) for name in "ab")
    long = Unit("encoders", "long", 1.0, 5e5, (), partial(told, tmp_path, "long"))
    bench(tmp_path, [a, long])
    assert bench(tmp_path, [b])["left_out"] == ["long"]
    found = bench(tmp_path, [b], force=True)
    assert [(row["way"], row["call"]) for row in found["rows"]] == [("a", 1), ("b", 2)]
    assert calls(tmp_path) == ["a", "b", "b"]
    assert found["left_out"] == ["long"]
    assert bench(tmp_path, [long], budget=1e6)["left_out"] == []


@pytest.mark.parametrize("force", [False, True])
def test_a_budget_that_is_too_small_for_any_unit_changes_nothing(tmp_path, force):
    a = unit("a", partial(told, tmp_path, "a"), seconds=10.0)
    if force:
        bench(tmp_path, [a])
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="--budget: 5 s are too few for any of 1 units; nothing was written"):
        bench(tmp_path, [a], budget=5.0, force=force)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_unit_that_failed_as_a_whole_is_left_out_and_tried_again(tmp_path, capsys):
    good = unit("good", partial(told, tmp_path, "good"))
    assert bench(tmp_path, [unit("bad", fails), good])["left_out"] == ["bad"]
    again = f"nxm bench --device cpu --out {tmp_path} goes on with them"
    assert f"1 units failed or did not fit in the budget of 3600 s; {again}" in capsys.readouterr().out
    found = bench(tmp_path, [unit("bad", partial(told, tmp_path, "bad")), good])
    assert found["left_out"] == []
    assert [(row["way"], row["call"]) for row in found["rows"]] == [("good", 1), ("bad", 2)]


def test_a_place_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    (tmp_path / "cpu.json").mkdir()
    a = unit("a", partial(told, tmp_path, "a"))
    with pytest.raises(UserError, match=r"cpu.json: is a folder; expected a file"):
        bench(tmp_path, [a])
    with pytest.raises(UserError, match=r"cannot be written"):
        bench(Path("/proc/nothing"), [a])
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]


def test_a_measuring_process_that_cannot_start_is_an_error_with_its_reason(tmp_path, monkeypatch):
    def ended(self):
        raise BrokenError("the measuring process ended with status 1")

    monkeypatch.setattr(Here, "provenance", ended)
    with pytest.raises(UserError, match="nothing can be measured on cpu: the measuring process ended with status 1"):
        bench(tmp_path, [unit("a", partial(told, tmp_path, "a"))])


def test_a_machine_whose_memory_grows_is_the_same(tmp_path):
    units = [unit(name, partial(told, tmp_path, name)) for name in "ab"]
    found = bench(tmp_path, units[:1])
    found["provenance"]["machine"]["memory_gib"] += 1.0
    (tmp_path / "cpu.json").write_text(json.dumps(found))
    assert [row["call"] for row in bench(tmp_path, units)["rows"]] == [1, 2]


NO_CALL = {"provenance": PROVENANCE, "rows": [{"unit": "x", "part": "card"}]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}', json.dumps(NO_CALL)])
def test_a_file_that_is_no_result_is_not_replaced_unasked(tmp_path, text):
    (tmp_path / "cpu.json").write_text(text)
    units = [unit("a", partial(told, tmp_path, "a"))]
    with pytest.raises(UserError, match=r"cpu.json: is no result of nxm bench; --force replaces it"):
        bench(tmp_path, units)
    assert (tmp_path / "cpu.json").read_text() == text
    bench(tmp_path, units, force=True)


def test_an_earlier_result_is_not_replaced_unasked(tmp_path):
    units = [unit("a", partial(told, tmp_path, "a"))]
    bench(tmp_path, units)
    with pytest.raises(UserError, match=r"cpu.json has a complete earlier result; --force replaces it, --out OTHER"):
        bench(tmp_path, units)
    bench(tmp_path, units, force=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "prodcts"], "--parts: 'prodcts' is no part of the bench; known: proof, card, products"),
        (["--budget", "0"], "--budget is the number of seconds to spend; it must be above 0, not 0"),
    ],
)
def test_bad_options_are_named(arguments, said, tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        app(["bench", "--device", "cpu", "--out", str(tmp_path), *arguments], standalone_mode=False)
    assert end.value.code == 1
    assert said in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured_and_the_way_out_is_named():
    with pytest.raises(UserError, match="PyTorch finds no CUDA device here; --device cpu measures this machine's"):
        plan("cuda", ["products"])


def test_a_dry_run_lists_what_fits_and_measures_nothing(tmp_path):
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", "--dry-run", "--budget", "30", "--out", str(tmp_path)])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0].startswith("proof ")
    assert any(line.endswith("beyond the budget") for line in lines)
    assert not list(tmp_path.iterdir())


def test_units_run_in_the_order_of_their_worth():
    worth = [unit.worth for unit in plan("cpu", list(PARTS))]
    assert worth == sorted(worth, reverse=True)
