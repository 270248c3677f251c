"""A killed measurement continues after its last complete unit, and never with rows of another one."""

from __future__ import annotations

from nxm.measure.journal import Journal

SETTINGS = {"repeats": 3}


def test_rows_are_there_again_and_those_cut_off_are_not(tmp_path):
    journal = Journal(tmp_path / "log", SETTINGS)
    assert journal.get("a") is None
    journal.add("a", [{"ms": 1.5}])
    journal.add("b", [])
    (path,) = (tmp_path / "log").iterdir()
    with path.open("a") as file:
        file.write('{"unit": "c", "ro')  # the kill
    again = Journal(tmp_path / "log", SETTINGS)
    assert again.get("a") == [{"ms": 1.5}]
    assert again.get("b") == []
    assert again.get("c") is None
    again.add("c", [{"ms": 2.0}])
    assert Journal(tmp_path / "log", SETTINGS).get("c") == [{"ms": 2.0}]


def test_rows_of_other_settings_are_dropped(tmp_path):
    Journal(tmp_path / "log", SETTINGS).add("a", [{"ms": 1.5}])
    other = Journal(tmp_path / "log", {"repeats": 4})
    assert other.get("a") is None
    other.add("a", [])
    assert len(list((tmp_path / "log").iterdir())) == 1
    other.clear()
    assert not (tmp_path / "log").exists()
