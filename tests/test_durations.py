"""Durations in words."""

from nxm.durations import say_duration


def test_durations_are_in_the_unit_that_reads_best():
    assert [say_duration(seconds) for seconds in (5, 95, 600, 9000)] == ["5 s", "95 s", "10 min", "2.5 h"]
