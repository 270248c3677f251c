"""The command nxm: its help, its start and its errors. (nxm check and nxm export have tests of their own.)"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

from nxm import UserError, cli


def nxm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nxm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)


def test_help_fits_a_screen_and_lists_every_command():
    done = nxm("--help", COLUMNS="80")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 40
    for command in cli.app.registered_commands:
        assert command.callback.__name__ in done.stdout


def test_help_imports_no_heavy_package():
    code = (
        "import sys; from nxm import cli\n"
        "try: cli.app(['--help'])\n"
        "finally: print('heavy:', *sorted({'torch', 'numpy', 'pandas', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_a_wrong_use_is_status_2():
    assert nxm("nonesuch").returncode == 2
    done = nxm("export", "model", "out", "--to", "nonesuch")
    assert done.returncode == 2
    assert "torch-2of4" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("seeds = 'x': should be numbers"), 1, "error: seeds = 'x': should be numbers"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is saved"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_in_a_command_end_it_as_those_of_a_stage_do(error, status, printed, monkeypatch, capsys):
    app = typer.Typer(cls=cli.app.info.cls)

    @app.callback()
    def options() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        app(["fail"])
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(printed)


def test_a_shell_completes_commands_and_formats():
    def completed(words: str, position: int) -> list[str]:
        request = {"_NXM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        return nxm(**request).stdout.split()

    assert completed("nxm ex", 1) == ["export"]
    assert completed("nxm export --to torch", 3) == ["torch-int8", "torch-2of4"]
