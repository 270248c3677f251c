"""Export a trained model in a format for deployment: `nxm export FOLDER OUT --to FORMAT`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from nxm.errors import UserError
from nxm.export.semi_structured import is_faster, write_2of4
from nxm.export.trained import EXAMPLES, Example, load_trained
from nxm.sets.saved import stored_tensors


def export(
    folder: Path,
    out: Path,
    to: str,
    *,
    texts: Path | None = None,
    dtype: str | None = None,
    auto: bool = False,
    batch: int | None = None,
    length: int | None = None,
    force: bool = False,
) -> None:
    """Write the model in `folder` to `out` in the format `to` and print its size and the agreement of its outputs.

    Args:
        out: the file to write; for "torch-2of4" the folder.
        to: "onnx", "onnx-int8", "torch-int8" or "torch-2of4".
        texts: examples on which outputs are compared ("torch-int8": and activations calibrated), see `read_examples`;
            None: `nxm.export.trained.EXAMPLES`.
        dtype: "torch-2of4" alone: the type of the products, "bf16" (the default), "fp16" or "int8".
        force: replace what is at `out`, if it is an earlier export in this format and nothing else.
        auto: "torch-2of4" alone: pack only matrices whose 2:4 product is faster on this GPU at `batch` x `length`.

    Raises:
        UserError: the options contradict each other, there is something at `out`, it cannot be written, the model is
            not supported or leaves its pattern, or its copy's outputs differ from its own; nothing is written then.
    """
    tokens = (batch or 0) * (length or 0)
    if auto and (to != "torch-2of4" or tokens <= 0):
        raise UserError("--auto goes with --to torch-2of4 and needs --batch and --length, each above 0")
    if not auto and (batch is not None or length is not None):
        raise UserError("--batch and --length are the size at which --auto measures; without it they have no effect")
    if dtype and to != "torch-2of4":
        raise UserError(f"--dtype is for --to torch-2of4; {to} has its own")
    dtype = dtype or "bf16"
    examples = EXAMPLES if texts is None else read_examples(texts)
    trained = load_trained(folder)
    if to != "torch-2of4":
        error = _writer(to)(trained, out, examples, force=force)
        source = sum(path.stat().st_size for path in set(stored_tensors(folder).values()))
        share = out.stat().st_size / source
        print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, {100 * share:.0f} % of the source")
        print(f"outputs agree with the model's on {len(examples)} examples to {error:.1e} (relative)")
        return
    only = lru_cache(partial(is_faster, tokens=tokens, dtype=dtype)) if auto else None
    dense = write_2of4(trained, out, dtype, only, examples, force=force)
    for name, reason in dense.items():
        print(f"{name} stays dense: {reason}")
    matrices = len(trained.sparse)
    print(f"{out}: {matrices - len(dense)} of {matrices} matrices are packed when loaded by load_2of4")


def _writer(to: str) -> Callable[..., float]:
    try:
        if to == "torch-int8":
            from nxm.export.x86 import write_x86

            return write_x86
        from nxm.export.onnx import write_int8, write_onnx

        return write_onnx if to == "onnx" else write_int8
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
