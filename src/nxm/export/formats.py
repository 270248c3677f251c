"""Export a trained model in a format for deployment: `nxm export FOLDER OUT --to FORMAT`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from nxm.errors import UserError
from nxm.export.images import (
    FORMATS,
    TrainedOnImages,
    load_with_processor,
    make_image_judge,
    noise,
    read_images,
    read_labelled_images,
    reads_images,
)
from nxm.export.packed import write_packed
from nxm.export.score import make_judge, read_labelled
from nxm.export.semi_structured import is_faster, write_2of4
from nxm.export.trained import EXAMPLES, Example, Judge, Trained, load_trained
from nxm.files import check_place
from nxm.models.packed import FILE, is_packed
from nxm.sets.saved import load_config, stored_tensors

FOLDERS = ("openvino", "openvino-int8", "torch-2of4", "packed")  # formats that are folders


def export(
    folder: Path,
    out: Path,
    to: str,
    *,
    texts: Path | None = None,
    images: Path | None = None,
    dtype: str | None = None,
    auto: bool = False,
    batch: int | None = None,
    length: int | None = None,
    data: Path | None = None,
    task: str | None = None,
    max_drop: float | None = None,
    force: bool = False,
) -> None:
    """Write the model in `folder` to `out` in the format `to` and print its size and the agreement of its outputs.

    Args:
        folder: a `from_pretrained` folder or a packed checkpoint.
        out: the file to write; for the formats in `FOLDERS` the folder.
        to: "onnx", "onnx-int8", "onnx-weight-only", "openvino", "openvino-int8", "torch-int8", "torch-2of4" or
            "packed".
        texts: examples on which outputs are compared ("torch-int8" and "openvino-int8": and activations calibrated),
            see `read_examples`; None: `nxm.export.trained.EXAMPLES`.
        images: a folder of images, the same for a model that reads images; None: noise, except for "openvino-int8",
            whose ranges would be those of noise.
        dtype: "torch-2of4" alone: the type of the products, "bf16" (the default), "fp16" or "int8".
        force: replace what is at `out`, if it is an earlier export in this format and nothing else.
        auto: "torch-2of4" alone: pack only matrices whose 2:4 product is faster on this GPU at `batch` x `length`.
        data: labelled examples, on which the export's score and the model's are printed; see `read_labelled`, for a
            model that reads images `nxm.export.images.read_labelled_images`.
        task: the task of `data`; None: the one that a prepared folder names.
        max_drop: the points (score x 100) by which the export's score on `data` may be lower than the model's; None:
            any number. Of "torch-2of4" the score is that of a dense copy with the same arithmetic on the CPU.

    Raises:
        UserError: the options contradict each other, there is something at `out`, it cannot be written, the model is
            not supported or leaves its pattern, its copy's outputs differ from its own, or its copy's score is too low;
            nothing is written then.
    """
    tokens = (batch or 0) * (length or 0)
    if auto and (to != "torch-2of4" or tokens <= 0):
        raise UserError("--auto goes with --to torch-2of4 and needs --batch and --length, each above 0")
    if not auto and (batch is not None or length is not None):
        raise UserError("--batch and --length are the size at which --auto measures; without it they have no effect")
    if dtype and to != "torch-2of4":
        raise UserError(f"--dtype is for --to torch-2of4; {to} has its own")
    if max_drop is not None and not (data is not None and max_drop >= 0):
        raise UserError("--max-drop is a number of points, 0 or more, and needs --data with labelled examples")
    if task and data is None:
        raise UserError("--task is the task of --data; without it it has no effect")
    if to == "packed" and (texts or images):
        option = "--texts" if texts else "--images"
        raise UserError(
            f"{option} is for exports whose outputs are compared; packed weights are the model's to the bit"
        )
    of_images = reads_images(load_config(folder))
    if of_images:
        _refuse_for_images(folder, to, texts, images, task)
    elif images:
        raise UserError(f"--images is for models that read images, and {folder} is none; for texts there is --texts")
    if data is not None:
        check_place(out, lambda existing: None, folder, folder=to in FOLDERS)  # before the model runs
    if to == "packed":
        judge = _judge(_load(folder), data, task, max_drop) if data is not None else None
        size = write_packed(folder, out, force=force, judge=judge)
        print(f"{out}: {size / 2**20:.2f} MiB, {100 * size / _bytes(folder):.0f} % of the source; the same weights")
        return
    if of_images:
        examples: Sequence[Any] = noise() if images is None else read_images(images)
    else:
        examples = EXAMPLES if texts is None else read_examples(texts)
    trained = _load(folder)
    judge = _judge(trained, data, task, max_drop)
    if to != "torch-2of4":
        error = writer(to)(trained, out, examples, force=force, judge=judge)
        size = sum(path.stat().st_size for path in (out.iterdir() if to in FOLDERS else [out]))
        print(f"{out}: {size / 2**20:.1f} MiB, {100 * size / _bytes(folder):.0f} % of the source")
        print(f"outputs agree with the model's on {len(examples)} examples to {error:.1e} (relative)")
        return
    only = lru_cache(partial(is_faster, tokens=tokens, dtype=dtype or "bf16")) if auto else None
    dense = write_2of4(trained, out, dtype or "bf16", only, examples, force=force, judge=judge)
    for name, reason in dense.items():
        print(f"{name} stays dense: {reason}")
    matrices = len(trained.sparse)
    print(f"{out}: {matrices - len(dense)} of {matrices} matrices are packed when loaded by load_2of4")


def _load(folder: Path) -> Trained:
    return load_with_processor(folder) if reads_images(load_config(folder)) else load_trained(folder)


def _judge(trained: Trained, data: Path | None, task: str | None, max_drop: float | None) -> Judge | None:
    if data is None:
        return None
    if isinstance(trained, TrainedOnImages):
        return make_image_judge(trained, read_labelled_images(data, trained), max_drop)
    return make_judge(trained, read_labelled(data, task, trained), max_drop)


def _refuse_for_images(folder: Path, to: str, texts: Path | None, images: Path | None, task: str | None) -> None:
    """Raise UserError for what models of images do not have."""
    if to not in (*FORMATS, "packed"):  # which says itself that names in the file must be those in memory
        raise UserError(
            f"{folder}: reads images, and --to {to} is for models of texts; models of images have {', '.join(FORMATS)}"
        )
    if texts:
        raise UserError(f"--texts is for models of texts, and {folder} reads images; for these there is --images")
    if task:
        raise UserError(f"--task is for texts; images, which {folder} reads, are scored by accuracy")
    if to == "openvino-int8" and images is None:
        raise UserError(
            "--to openvino-int8 measures the ranges of activations beforehand: give a folder of images like those that "
            "the model will see with --images"
        )


def _bytes(folder: Path) -> int:
    """Return the size of a model's files of weights."""
    files = [folder / FILE] if is_packed(folder) else set(stored_tensors(folder).values())
    return sum(path.stat().st_size for path in files)


def writer(to: str) -> Callable[..., float]:
    """Return the function that writes a loaded model in a format, such as `nxm.export.onnx.write_onnx`.

    Raises:
        UserError: it needs a package that is not installed.
    """
    try:
        if to == "torch-int8":
            from nxm.export.x86 import write_x86

            return write_x86
        if to.startswith("openvino"):
            from nxm.export import openvino

            return {"openvino": openvino.write_openvino, "openvino-int8": openvino.write_int8}[to]
        from nxm.export.onnx import write_int8, write_onnx, write_weight_only

        return {"onnx": write_onnx, "onnx-int8": write_int8, "onnx-weight-only": write_weight_only}[to]
    except ImportError as missing:
        raise UserError(f"--to {to} needs the package {missing.name}: pip install 'nxm[export]'") from None


def read_examples(path: Path) -> Sequence[Example]:
    """Read one example per line, a tab between its two sentences. Raises UserError for a missing or empty file."""
    try:
        # str.splitlines would also split at characters such as U+2028, which may occur in sentences
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    if not lines:
        raise UserError(f"{path}: has no line with text")
    pairs = ["\t" in line for line in lines]
    if any(pairs) != all(pairs):
        raise UserError(f"{path}: some lines have a tab (two sentences) and some have none; give all or none one")
    return [(line.partition("\t")[0], line.partition("\t")[2]) if "\t" in line else line for line in lines]
