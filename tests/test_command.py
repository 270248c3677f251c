"""Bad input and a full disk end a command with one line; a bug keeps its traceback."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from nxm import UserError
from nxm.command import run


def fails_with(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_success_exits_with_zero():
    with pytest.raises(SystemExit) as ended:
        run(lambda: None)
    assert ended.value.code == 0


def test_bad_input_is_one_message_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        run(fails_with(UserError("seeds = 'x': should be numbers")))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: seeds = 'x': should be numbers\n"


def test_a_full_disk_is_named_with_the_file(capsys):
    with pytest.raises(SystemExit) as ended:
        run(fails_with(OSError(errno.ENOSPC, "No space left on device", "models/x")))
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "no space left on the disk for models/x, or a limit on it is reached" in printed
    assert "make room and run the same command again" in printed


@pytest.mark.parametrize(
    "write",
    [
        "import torch; run(lambda: torch.save(torch.zeros(10**6), 'a.pt'))",
        "import torch; from safetensors.torch import save_file\n"
        "run(lambda: save_file({'a': torch.zeros(10**6)}, 'a.safetensors'))",
        "run(lambda: open('a.txt', 'w').write('x' * 10**7))",
    ],
    ids=["torch", "safetensors", "python"],
)
def test_a_disk_that_fills_up_is_named_whoever_writes(tmp_path, write):
    """A limit on the size of files stands in for a full disk: the errors differ in their number alone."""
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\nfrom nxm.command import run\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited + write], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk")
    assert "Traceback" not in done.stderr


def test_an_interrupted_command_says_that_it_can_be_continued(capsys):
    with pytest.raises(SystemExit) as ended:
        run(fails_with(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert "interrupted; finished work is saved" in capsys.readouterr().err


def test_a_reader_that_has_gone_gets_no_traceback():
    code = "from nxm.command import run; run(lambda: [print(i) for i in range(100_000)])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("error", [RuntimeError("bug"), PermissionError(errno.EACCES, "denied")])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(fails_with(error))
