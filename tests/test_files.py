"""Files and folders that are complete or absent, and their checksums."""

from __future__ import annotations

import errno
import os

import pytest

from nxm.errors import UserError
from nxm.files import new_file, new_folder, sha256_tree, write_bytes, write_text


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (FileNotFoundError(errno.ENOENT, "a bug"), FileNotFoundError),
    ],
)
def test_a_folder_is_whole_or_as_it_was(error, raised, tmp_path):
    out = tmp_path / "deep" / "out"

    def fill(text: str, failure: BaseException | None = None) -> None:
        with new_folder(out) as folder:
            (folder / "file").write_text(text)
            if failure:
                raise failure

    for former in (None, "whole"):
        if former:
            fill(former)
        with pytest.raises(raised):
            fill("half", error)
        assert [path.read_text() for path in out.parent.rglob("file")] == ([former] if former else [])
        assert [path.name for path in out.parent.iterdir()] == (["out"] if former else [])
    fill("new")
    assert (out / "file").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_sha256_tree_sees_names_and_contents_only(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("x")
    first = sha256_tree(tmp_path / "a")
    os.utime(tmp_path / "b/sub/file", (0, 0))
    assert sha256_tree(tmp_path / "b") == first
    (tmp_path / "b/sub/file").rename(tmp_path / "b/sub/other")
    assert sha256_tree(tmp_path / "b") != first
    (tmp_path / "a/sub/file").write_text("y")
    assert sha256_tree(tmp_path / "a") != first
    with pytest.raises(UserError, match="no such file or folder"):
        sha256_tree(tmp_path / "c")


def test_leftovers_of_a_killed_process_are_neither_mixed_in_nor_left(tmp_path):
    for name in (".out.partial", ".out.former"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_is_complete_or_unchanged(error, tmp_path):
    path = tmp_path / "deep" / "file"

    def write(text: str, failure: BaseException | None = None) -> None:
        with new_file(path) as partial:
            partial.write_text(text)
            if failure:
                raise failure

    with pytest.raises(type(error)):
        write("half", error)
    assert list(path.parent.iterdir()) == []
    write("whole")
    with pytest.raises(type(error)):
        write("half", error)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_text_and_bytes_are_written_whole_into_folders_that_are_made(tmp_path):
    write_text(tmp_path / "a" / "text", "ä\n")
    write_bytes(tmp_path / "b" / "bytes", b"\x00")
    assert (tmp_path / "a/text").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b/bytes").read_bytes() == b"\x00"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a/text").stat().st_mode & 0o777 == 0o666 & ~umask
