"""Export as a packed checkpoint: a few bits a weight on the disk, the same model to the bit when `nxm.load` loads it.

The layout is described in `nxm.models.packed`.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from nxm.errors import UserError
from nxm.export.trained import Judge, outputs, refusal
from nxm.files import check_room, new_folder, stray_files
from nxm.models.load import load
from nxm.models.packed import FILE, METADATA, VERSION, Shapes, checksum, is_packed, pack, read_packed
from nxm.models.save import MODEL_FILES
from nxm.sets.integers import Integers
from nxm.sets.saved import load_config, load_matrices, read_patterns, stored_tensors

# a saved model's files but for its weights; other files, such as a Trainer's pickled arguments, are not copied
_COPIED = tuple(name for name in MODEL_FILES if ".safetensors" not in name)


def write_packed(folder: Path, out: Path, *, force: bool = False, judge: Judge | None = None) -> int:
    """Write a saved model as a packed checkpoint, after comparing the weights that are read back with the model's.

    Matrices that config.json claims for no set of integers stay as they are stored.

    Args:
        folder: a `from_pretrained` folder whose config.json claims integers, in one set or in several.
        out: the folder to write.
        force: replace a packed checkpoint at `out`, if it holds nothing else.
        judge: raises UserError for a model that must not be written (`nxm.export.score.make_judge`).

    Returns: the size of packed.safetensors in bytes.

    Raises:
        UserError: the folder holds no such model, a matrix has left its set, there is something at `out`, or `judge`
            refuses; nothing is written then.
    """
    if is_packed(folder):
        raise UserError(f"{folder}: is a packed checkpoint already; copy it")
    claims = read_patterns(load_config(folder))
    integers = {name: constraint for constraint, names in claims if isinstance(constraint, Integers) for name in names}
    if not integers:
        found = "no set" if not claims else "the set " + ", ".join(str(constraint) for constraint, _ in claims)
        raise UserError(f"{folder}: config.json names {found}; a packed checkpoint stores integers such as 2:4 int4")
    tensors = load_matrices(folder, list(stored_tensors(folder)))
    if missing := integers.keys() - tensors.keys():
        raise UserError(
            f"{folder}: its files have no matrix '{min(missing)}', which config.json names: "
            "models that transformers saves under other names than they have in memory cannot be packed"
        )
    matrices = {name: tensors.pop(name) for name in integers}
    shapes: Shapes = {}
    for name, W in matrices.items():
        constraint = integers[name]
        if W.ndim != 2 or not constraint.contains(W):
            raise UserError(
                f"{folder}: {name}, {W.dtype}, is not {constraint}; was the model trained on after it was made so, or "
                "saved in another precision than fp32?"
            )
        tensors |= {f"{name}.{part}": tensor for part, tensor in pack(W, constraint).items()}
        shapes.setdefault(str(constraint), {})[name] = list(W.shape)
    described = {"version": VERSION, "shapes": shapes, "sha256": checksum(tensors, shapes)}
    with new_folder(out, refusal(is_own, force), source=folder) as written:
        check_room(out, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
        for path in folder.iterdir():
            if path.is_file() and any(fnmatchcase(path.name, name) for name in _COPIED):
                shutil.copy2(path, written)
        save_file(tensors, written / FILE, metadata={"format": "pt", METADATA: json.dumps(described)})
        again = read_packed(written)
        assert all(torch.equal(again[name], W) for name, W in matrices.items()), f"{out}: weights changed when packed"
        if judge is not None:
            judge(partial(outputs, load(written)))
        return (written / FILE).stat().st_size


def is_own(folder: Path) -> bool:
    """Return whether a folder is one that `write_packed` wrote, with nothing else in it."""
    known = (*_COPIED, FILE)
    strays = stray_files(folder, lambda name: any(fnmatchcase(name, pattern) for pattern in known))
    return (folder / FILE).is_file() and (folder / "config.json").is_file() and not strays
