"""Check matrix by matrix whether a saved model obeys its sparsity pattern: `nxm check FOLDER`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModel, PretrainedConfig

from nxm.errors import UserError
from nxm.models.targets import find_targets
from nxm.sets import parse_set
from nxm.sets.saved import load_config, load_matrices, read_pattern, report, stored_names


def check(folder: Path, pattern: str | None = None) -> bool:
    """Print for every target matrix its shape, its density and whether it obeys the pattern.

    Args:
        folder: a from_pretrained folder with model.safetensors.
        pattern: a constraint set such as "2:4" or "50 %", to check any model; None: the set in the folder's
            config.json, which nxm's callbacks write.

    Returns: whether every matrix obeys.

    Raises:
        UserError: the folder cannot be read, names no pattern, or has a matrix whose shape does not fit the pattern.
    """
    config = load_config(folder)
    if pattern is not None:
        try:
            constraint = parse_set(pattern)
        except UserError as error:
            raise UserError(f"--pattern: {error}") from None
        names = _stored_targets(folder, config)
    else:
        claimed = read_pattern(config)
        if claimed is None:
            raise UserError(f"{folder}: config.json names no sparsity pattern; give one with --pattern 2:4")
        constraint, names = claimed
    try:
        matrices = report(load_matrices(folder, names), constraint)
    except ValueError as error:
        raise UserError(str(error)) from None
    table = pd.DataFrame(
        [
            {"matrix": m.name, "shape": "x".join(map(str, m.shape)), "density": f"{m.density:.4f}", "obeys": m.holds}
            for m in matrices
        ]
    )
    print(table.to_string(index=False))
    obeying = sum(m.holds for m in matrices)
    print(f"{folder}: {obeying} of {len(matrices)} matrices obey {constraint}")
    return obeying == len(matrices)


def _stored_targets(folder: Path, config: PretrainedConfig) -> list[str]:
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    # The checkpoint of a model with a head has a prefix before the encoder's names: compare their ends.
    stored = stored_names(folder / "model.safetensors")
    names = [full for name in find_targets(skeleton) for full in stored if full == name or full.endswith("." + name)]
    if not names:
        raise UserError(f"{folder}: none of the model's matrices is in model.safetensors")
    return names
