"""Files and folders that are complete or absent, and their checksums."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nxm.errors import UserError
from nxm.files import (
    check_place,
    check_room,
    new_file,
    new_folder,
    sha256_tree,
    write_bytes,
    write_manifest,
    write_text,
)


def anything(folder) -> None:
    """Allow that any folder is replaced."""


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
        with new_folder(out, anything) as folder:
            (folder / "file").write_text(text)
            if failure:
                raise failure

    for former in (None, "whole"):
        if former:
            fill(former)
        with pytest.raises(raised):
            fill("half", error)
        assert [path.read_text() for path in tmp_path.rglob("file")] == ([former] if former else [])
        assert [path.name for path in tmp_path.rglob("*")] == (["deep", "out", "file"] if former else [])
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
    with new_folder(tmp_path / "out", anything) as folder:
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
    assert list(tmp_path.iterdir()) == []
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


def filled(folder, *names):
    for name in names:
        write_text(folder / name, name)
    return folder


def replace(out) -> None:
    with new_folder(out) as folder:
        (folder / "new").touch()


@pytest.mark.situation("saving", "the folder is one that a former run of the stage wrote", "works")
def test_a_folder_is_replaced_if_its_manifest_lists_all_that_it_holds(tmp_path):
    out = filled(tmp_path / "out", "a", "sub/b")
    write_manifest(out, {"a": "here", "sub/b": "here"}, {})
    replace(out)
    assert [path.name for path in out.iterdir()] == ["new"]
    (tmp_path / "empty").mkdir()
    replace(tmp_path / "empty")


@pytest.mark.situation("saving", "the folder holds files that a user put there", "refused")
def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    with pytest.raises(UserError, match=r"out: exists and has no MANIFEST.json of nxm; it is not replaced"):
        replace(filled(tmp_path / "out", "thesis.txt"))
    listed = filled(tmp_path / "listed", "a")
    write_manifest(listed, {"a": "here"}, {})
    filled(listed, "sub/thesis.txt")
    with pytest.raises(UserError, match=r"holds sub/thesis.txt, which its MANIFEST.json does not list"):
        replace(listed)
    (listed / "sub/thesis.txt").unlink()
    (listed / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds link,"):
        replace(listed)
    assert (tmp_path / "out/thesis.txt").read_text() == "thesis.txt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["listed", "out"]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        (".", "is the current folder or contains it"),
        ("..", "is the current folder or contains it"),
        ("/", "is the current folder or contains it"),
        ("source", "is or contains the folder .*source that is read"),
        ("source/..", "is or contains the folder .*source that is read|is the current folder or"),
        ("link", "is a link to source"),
        ("dangling", "is a link to nowhere"),
        ("/proc", "is a mount point"),
        ("file/out", "file is a file, not a folder"),
    ],
)
def test_places_that_are_no_place_are_refused_by_name(where, said, folder, tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    filled(inside / "source", "config.json")
    (inside / "file").touch()
    (inside / "link").symlink_to("source")
    (inside / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(inside)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said):
        check_place(Path(where), anything, inside / "source", folder=folder)
    if folder:
        with pytest.raises(UserError, match=said), new_folder(Path(where), anything, inside / "source"):
            pytest.fail("the block must not run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_no_place_for_a_folder_nor_a_folder_for_a_file_nor_a_device_for_either(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; expected a folder or nothing"):
        check_place(tmp_path / "file", anything, folder=True)
    with pytest.raises(UserError, match="is a folder; expected a file or nothing"):
        check_place(tmp_path, anything)
    os.mkfifo(tmp_path / "pipe")
    for device in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match=f"{device}: is a (device|mount point)"):
            check_place(device, anything)


def test_a_place_where_nothing_can_be_created_is_said_in_a_line():
    for new in (new_file, new_folder):
        with pytest.raises(UserError, match="/proc/nxm/out: cannot be written: "), new(Path("/proc/nxm/out")):
            pytest.fail("the block must not run")


def test_an_interruption_between_the_two_renames_brings_the_former_folder_back(tmp_path, monkeypatch):
    out, rename = filled(tmp_path / "out", "file"), os.rename

    def interrupted(old, new) -> None:
        if new == out and not str(old).endswith(".former"):
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(out, anything):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    filled(tmp_path / ".out.former", "file")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", anything):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_room_is_asked_for_before_it_is_needed(tmp_path):
    check_room(tmp_path / "deep/out", 1)
    with pytest.raises(UserError, match=r"out: needs about 1099511627776 MiB, its disk has \d+ MiB free; make room"):
        check_room(tmp_path / "deep/out", 2**60)
