"""`python -m nxm.check DIR`: does a saved model obey its sparsity pattern, matrix by matrix?

The pattern is the one in the folder's config.json (written by nxm's callbacks), or `--pattern 2:4` for any model.
Exit status 0: every matrix obeys; 1: one does not, or the folder cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModel

from nxm import cli
from nxm.constraints import NM
from nxm.errors import UserError
from nxm.pattern import load_config, read_pattern, report
from nxm.targets import find_targets


def load_matrices(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named tensors of a model folder's model.safetensors.

    Raises:
        UserError: the file is missing or damaged, or has no such tensor.
    """
    path = folder / "model.safetensors"
    stored = set(stored_names(path))
    if missing := [name for name in names if name not in stored]:
        raise UserError(f"{path}: no tensor '{missing[0]}'; the config's targets are not this model's")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def stored_names(path: Path) -> list[str]:
    """The names of a safetensors file's tensors. Raises UserError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder saved by save_pretrained") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a saved model's sparsity pattern, matrix by matrix.")
    parser.add_argument("folder", type=Path, help="a from_pretrained folder with model.safetensors")
    parser.add_argument("--pattern", help="check this N:M pattern, such as 2:4, instead of the config's own")
    args = parser.parse_args()
    config = load_config(args.folder)
    if args.pattern:
        try:
            constraint = NM.parse(args.pattern)
        except ValueError as error:
            raise UserError(f"--pattern: {error}") from None
        with torch.device("meta"):
            skeleton = AutoModel.from_config(config)
        # A head's checkpoint prefixes the encoder's names; match them by their ends.
        stored = stored_names(args.folder / "model.safetensors")
        names = [
            full for name in find_targets(skeleton) for full in stored if full == name or full.endswith("." + name)
        ]
        if not names:
            raise UserError(f"{args.folder}: none of the model's matrices is in model.safetensors")
    else:
        claimed = read_pattern(config)
        if claimed is None:
            raise UserError(f"{args.folder}: config.json names no sparsity pattern; say which with --pattern 2:4")
        constraint, names = claimed
    try:
        matrices = report(load_matrices(args.folder, names), constraint)
    except ValueError as error:
        raise UserError(str(error)) from None
    table = pd.DataFrame(
        [
            {"matrix": m.name, "shape": "x".join(map(str, m.shape)), "density": f"{m.density:.4f}", "obeys": m.holds}
            for m in matrices
        ]
    )
    print(table.to_string(index=False))
    broken = sum(not m.holds for m in matrices)
    print(f"{args.folder}: {len(matrices) - broken} of {len(matrices)} matrices obey {constraint}")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
