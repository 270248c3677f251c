"""`python -m nxm.check DIR`: does a saved model obey its sparsity pattern, matrix by matrix?

The pattern is the one in the folder's config.json (written by nxm's callbacks), or `--pattern 2:4` for any model.
Exit status 0: every matrix obeys; 1: one does not, or the folder cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModel

from nxm import cli
from nxm.errors import UserError
from nxm.models.targets import find_targets
from nxm.sets.nm import NM
from nxm.sets.saved import load_config, load_matrices, read_pattern, report, stored_names


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
