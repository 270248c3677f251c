"""Exports never replace what they did not write, and leave nothing behind when they fail."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from nxm import NM, Integers, cli
from nxm.errors import UserError
from nxm.export import onnx as onnx_export
from nxm.export import semi_structured, x86
from nxm.export.formats import export
from nxm.export.trained import MARK, load_trained
from tiny_models import MODELS, NO_OPENVINO, save_model

FILES = ["onnx", "onnx-int8", "onnx-weight-only", "torch-int8"]
OPENVINO = pytest.param("openvino-int8", marks=pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed"))
FOLDERS = ["packed", "torch-2of4", OPENVINO]
FORMATS = [*FILES, *FOLDERS]
INTEGERS = ("packed", "onnx-weight-only")  # formats of models that were trained on integers alone


@pytest.fixture
def sparse(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A 2:4 model, with integers where the test's format needs them."""
    torch.manual_seed(0)
    to = getattr(request.node, "callspec", None) and request.node.callspec.params.get("to")
    return save_model(tmp_path / "model", MODELS["bert"](), Integers(4, NM(2, 4)) if to in INTEGERS else NM(2, 4))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder and the content of the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refuses(folder: Path, out: Path, to: str, said: str, below: Path, *, force: bool = False) -> None:
    before = tree(below)
    with pytest.raises(UserError, match=said):
        export(folder, out, to, force=force)
    assert tree(below) == before


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "OUT is a folder that holds other files", "refused")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("to", FOLDERS)
def test_a_folder_with_other_files_is_refused(sparse, tmp_path, to, force):
    out = tmp_path / "results"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    said = "results: exists and was not written by nxm export in this format; it is not replaced"
    refuses(sparse, out, to, said, tmp_path, force=force)


@pytest.mark.situation("export", "OUT is an earlier export, without --force", "refused")
@pytest.mark.situation("export", "OUT is an earlier export, with --force", "works")
@pytest.mark.situation("export", "OUT is an earlier export to which files were added, with --force", "refused")
@pytest.mark.parametrize("to", FOLDERS)
def test_an_earlier_export_is_replaced_by_force_unless_something_was_added(sparse, tmp_path, to):
    out = tmp_path / "packed"
    export(sparse, out, to)
    refuses(sparse, out, to, "packed: exists and .* an earlier export, which --force would", tmp_path)
    before = tree(out)
    tensors = load_file(sparse / "model.safetensors")
    save_file(tensors | {"classifier.bias": torch.ones(2)}, sparse / "model.safetensors", {"format": "pt"})
    export(sparse, out, to, force=True)
    after = tree(out)
    assert after.keys() == before.keys()
    assert after != before
    (out / "notes.md").write_text("mine")
    refuses(sparse, out, to, "packed: exists and was not written", tmp_path, force=True)


@pytest.mark.situation("export", "OUT is the model's own folder", "refused")
@pytest.mark.situation("export", "OUT is the folder above the model", "refused")
@pytest.mark.parametrize("to", FOLDERS)
@pytest.mark.parametrize("force", [False, True])
def test_the_model_itself_survives_whatever_is_asked(sparse, tmp_path, to, force):
    packed = tmp_path / "packed"
    export(sparse, packed, to)  # a source that looks like an export
    for source in (sparse, packed) if to == "torch-2of4" else (sparse,):
        for out in (source, source / ".", source / ".." / source.name, source.parent):
            refuses(source, out, to, "is or contains the folder .* that is read", tmp_path, force=force)
    (tmp_path / "alias").symlink_to(sparse)
    refuses(tmp_path / "alias", sparse, to, "is or contains the folder .*alias", tmp_path, force=force)


@pytest.mark.situation("export", "OUT is a new folder inside the model's folder", "works")
@pytest.mark.parametrize("to", FOLDERS)
def test_a_new_place_inside_the_model_destroys_nothing(sparse, to):
    before = tree(sparse)
    export(sparse, sparse / "deep" / "packed", to)
    assert before.items() <= tree(sparse).items()


@pytest.mark.situation("export", "OUT is the current folder", "refused")
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("out", [".", "..", "/"])
def test_the_current_folder_is_no_place(sparse, tmp_path, monkeypatch, to, out):
    inside = tmp_path / "inside" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    refuses(sparse, Path(out), to, "is the current folder or contains it", tmp_path, force=True)


@pytest.mark.situation("export", "OUT is a link to a file or folder", "refused")
@pytest.mark.parametrize("to", FORMATS)
def test_a_link_is_refused(sparse, tmp_path, to):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    refuses(sparse, tmp_path / "link", to, "link: is a link to .*target", tmp_path, force=True)


@pytest.mark.situation("export", "OUT is a file where a folder is to be written, or a folder for a file", "refused")
@pytest.mark.parametrize("to", FORMATS)
def test_a_file_for_a_folder_and_a_folder_for_a_file_are_refused(sparse, tmp_path, to):
    out, said = tmp_path / "out", "out: is a folder; expected a file"
    if to not in FILES:
        out.write_text("mine")
        said = "out: is a file; expected a folder"
    else:
        out.mkdir()
    refuses(sparse, out, to, said, tmp_path, force=True)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "OUT is an existing file of another kind, also with --force", "refused")
@pytest.mark.situation("export", "OUT is one of the model's own files", "refused")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("to", FILES)
def test_a_file_that_no_export_wrote_is_refused(sparse, tmp_path, to, force):
    (tmp_path / "thesis.txt").write_text("years of work")
    shutil.make_archive(str(tmp_path / "archive"), "zip", sparse)
    graph = helper.make_graph([], "foreign", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    onnx.save(helper.make_model(graph), tmp_path / "foreign.onnx")
    for name in ("thesis.txt", "archive.zip", "foreign.onnx", "model/model.safetensors", "model/config.json"):
        refuses(sparse, tmp_path / name, to, f"{name}: exists and was not written by nxm", tmp_path, force=force)


@pytest.mark.parametrize("to", FILES)
def test_a_device_is_refused(sparse, tmp_path, to):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a device, socket or pipe"):
        export(sparse, tmp_path / "pipe", to, force=True)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match=r"/dev/null: is a (device|mount point)"):
        export(sparse, Path("/dev/null"), to, force=True)
    assert Path("/dev/null").is_char_device()


def test_an_earlier_file_is_replaced_by_force_alone(sparse, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    source = load_trained(sparse)
    onnx_export.write_onnx(source, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"model.onnx: exists and was written by an earlier export, which --force"):
        onnx_export.write_onnx(source, path)
    monkeypatch.setattr(onnx_export, "ONNX_TOLERANCE", 0.0)
    with pytest.raises(UserError, match="outputs of the ONNX model differ"):
        onnx_export.write_onnx(source, path, force=True)
    assert path.read_bytes() == before
    monkeypatch.setattr(onnx_export, "ONNX_TOLERANCE", 1.0)
    with torch.no_grad():
        source.model.classifier.bias.add_(1.0)
    onnx_export.write_onnx(source, path, force=True)
    assert path.read_bytes() != before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.onnx"]


def test_a_program_is_known_by_its_mark(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    torch.export.save(program, tmp_path / "own.pt2", extra_files={MARK: "1"})
    assert not x86.is_own(tmp_path / "foreign.pt2")
    assert x86.is_own(tmp_path / "own.pt2")


def test_force_is_an_option_of_the_command(sparse, tmp_path, monkeypatch, capsys):
    def nxm(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["nxm", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err.splitlines()[-1]

    arguments = (sparse, tmp_path / "packed", "--to", "torch-2of4")
    assert nxm(*arguments)[0] == 0
    status, message = nxm(*arguments)
    assert status == 1
    assert message.startswith(f"error: {tmp_path / 'packed'}: exists and was written by an earlier export")
    assert nxm(*arguments, "--force")[0] == 0


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.situation("export", "OUT is in a place where nothing can be written", "refused")
@pytest.mark.parametrize("to", FORMATS)
def test_a_place_that_cannot_be_written_is_said_in_a_line(sparse, to):
    for out in (Path("/proc/out"), Path("/proc/deep/out")):
        with pytest.raises(UserError, match=f"{out}: (cannot be written|needs about)"):
            export(sparse, out, to)


@pytest.mark.situation("export", "the disk has too little room", "refused")
@pytest.mark.parametrize("to", FORMATS)
def test_room_is_checked_first(sparse, tmp_path, monkeypatch, to):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000))
    refuses(sparse, tmp_path / "deep" / "out", to, r"out: needs about \d+ MiB, its disk has 0 MiB free", tmp_path)


@pytest.mark.situation("export", "Ctrl-C, a full disk or an error while writing: nothing is left", "works")
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
        (RuntimeError("a bug in a package"), UserError),
    ],
)
@pytest.mark.parametrize("to", FILES)
def test_nothing_is_left_of_a_file_that_fails(sparse, tmp_path, monkeypatch, to, error, raised):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(onnx_export, "_to_onnx", fail)
    monkeypatch.setattr(x86, "_quantised", fail)
    before = tree(tmp_path)
    with pytest.raises(raised):
        export(sparse, tmp_path / "deep" / "out", to)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
    ],
)
def test_nothing_is_left_of_a_folder_that_fails(sparse, tmp_path, monkeypatch, error, raised):
    source = load_trained(sparse)
    semi_structured.write_2of4(source, tmp_path / "former")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(type(source.tokenizer), "save_pretrained", fail)
    before = tree(tmp_path)
    for out in (tmp_path / "deep" / "packed", tmp_path / "former"):
        with pytest.raises(raised):
            semi_structured.write_2of4(source, out, force=True)
        assert tree(tmp_path) == before
