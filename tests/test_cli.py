"""How commands end: bad input and a full disk are said in a line, a bug keeps its traceback."""

from __future__ import annotations

import errno

import pytest

from nxm import UserError, cli


def fails_with(error: Exception):
    def main() -> None:
        raise error

    return main


def test_success_exits_with_zero():
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: None)
    assert ended.value.code == 0


def test_bad_input_is_one_message_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(fails_with(UserError("seeds = 'x': should be numbers")))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: seeds = 'x': should be numbers\n"


def test_a_full_disk_is_named_with_the_file(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(fails_with(OSError(errno.ENOSPC, "No space left on device", "models/x")))
    assert ended.value.code == 1
    assert "no space left on the disk for models/x; make room and run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("bug"), PermissionError(errno.EACCES, "denied")])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(fails_with(error))
