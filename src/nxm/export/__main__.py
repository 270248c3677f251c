"""`python -m nxm.export DIR OUT --to FORMAT`: a trained model in the format it is deployed in.

    python -m nxm.export sparse-model model.onnx --to onnx
    python -m nxm.export sparse-model model.onnx --to onnx-int8
    python -m nxm.export sparse-model model.pt2 --to torch-int8 --texts texts.txt
    python -m nxm.export sparse-model packed --to torch-2of4 --auto --batch 32 --length 128

Asserts the pattern that the model claims, and writes nothing when the copy's outputs differ from the model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from nxm import cli
from nxm.errors import UserError
from nxm.export.semi_structured import DTYPES, is_faster, write_2of4
from nxm.export.trained import EXAMPLES, Example, Trained, load_trained

FORMATS = ("onnx", "onnx-int8", "torch-int8", "torch-2of4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a from_pretrained folder with its tokenizer")
    parser.add_argument("out", type=Path, help="the file to write; for torch-2of4 the folder")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument(
        "--texts", type=Path, help="compare on these (torch-int8: and calibrate): one a line, a tab between two"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="for torch-2of4: what is multiplied; default: bf16")
    parser.add_argument("--auto", action="store_true", help="torch-2of4: pack only what is faster packed, on this GPU")
    parser.add_argument("--batch", type=int, help="with --auto: sentences at a time")
    parser.add_argument("--length", type=int, help="with --auto: tokens in each")
    args = parser.parse_args()

    tokens = (args.batch or 0) * (args.length or 0)
    if args.auto and (args.to != "torch-2of4" or tokens <= 0):
        raise UserError("--auto goes with --to torch-2of4 and needs --batch and --length, each above 0")
    if not args.auto and (args.batch is not None or args.length is not None):
        raise UserError("--batch and --length say what --auto measures at; without it they would do nothing")
    if args.dtype and args.to != "torch-2of4":
        raise UserError(f"--dtype is for --to torch-2of4; {args.to} has its own")
    dtype = args.dtype or "bf16"
    examples = EXAMPLES if args.texts is None else read_examples(args.texts)
    trained = load_trained(args.folder)
    if args.to != "torch-2of4":
        error = _writer(args.to)(trained, args.out, examples)
        source = (args.folder / "model.safetensors").stat().st_size
        share = args.out.stat().st_size / source
        print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, {100 * share:.0f} % of the source")
        print(f"outputs agree with the model's on {len(examples)} examples to {error:.1e} (relative)")
        return
    only = lru_cache(partial(is_faster, tokens=tokens, dtype=dtype)) if args.auto else None
    dense = write_2of4(trained, args.out, dtype, only, examples)
    for name, reason in dense.items():
        print(f"{name} stays dense: {reason}")
    matrices = len(trained.pattern[1]) if trained.pattern else 0
    print(f"{args.out}: {matrices - len(dense)} of {matrices} matrices are packed when loaded by load_2of4")


def _writer(form: str) -> Callable[[Trained, Path, Sequence[Example]], float]:
    try:
        if form == "torch-int8":
            from nxm.export.x86 import write_x86

            return write_x86
        from nxm.export.onnx import write_int8, write_onnx

        return write_onnx if form == "onnx" else write_int8
    except ImportError as missing:
        raise UserError(f"--to {form} needs the package {missing.name}: pip install '.[export]' here") from None


def read_examples(path: Path) -> Sequence[Example]:
    """One example a line, a tab between two sentences. Raises UserError for a missing or empty file."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    if not lines:
        raise UserError(f"{path}: has no line with text")
    pairs = ["\t" in line for line in lines]
    if any(pairs) != all(pairs):
        raise UserError(f"{path}: some lines have a tab (two sentences) and some have none; give all or none one")
    return [(line.partition("\t")[0], line.partition("\t")[2]) if "\t" in line else line for line in lines]


if __name__ == "__main__":
    cli.run(main)
