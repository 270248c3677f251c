"""Checksums of the code that all trainings share: a training depends on one file instead of a dozen.

A study has hundreds of trainings, and dvc.lock lists the dependencies of each. The stage `code` depends on the files
below and writes their checksums; a training depends on these checksums, and on its own method and set.
"""

from __future__ import annotations

import json
from pathlib import Path

from nxm.files import sha256_file, write_text

# Name of the group -> source files, from the repository's root. Files that only check or record are not among them.
GROUPS = {
    "training": (
        "stages/train.py",
        "src/nxm/data/tasks.py",
        "src/nxm/methods/callback.py",
        "src/nxm/methods/evaluation.py",
        "src/nxm/methods/held.py",
        "src/nxm/methods/importance.py",
        "src/nxm/methods/state.py",
        "src/nxm/models/activations.py",
        "src/nxm/models/save.py",
        "src/nxm/models/student.py",
        "src/nxm/models/targets.py",
        "src/nxm/sets/allocation.py",
        "src/nxm/sets/base.py",
        "src/nxm/training/build.py",
        "src/nxm/training/load.py",
        "src/nxm/training/run.py",
        "src/nxm/training/trainer.py",
    ),
    "teaching": (  # trainings with a teacher
        "src/nxm/distillation/loss.py",
        "src/nxm/distillation/noise.py",
        "src/nxm/distillation/trainer.py",
    ),
    "activations": (  # trainings with integer activations
        "src/nxm/activations/callback.py",
    ),
    "allocation": (  # trainings with a set for each matrix, chosen by measured sensitivity
        "src/nxm/distillation/batches.py",
        "src/nxm/methods/allocation.py",
        "src/nxm/models/packed.py",
        "src/nxm/sets/integers.py",
        "src/nxm/sets/nm.py",
        "src/nxm/sets/unstructured.py",
        "src/nxm/training/sensitivity.py",
    ),
    "structure": (  # trainings that make or read a shrunk model
        "src/nxm/models/cost.py",
        "src/nxm/models/roles.py",
        "src/nxm/models/shrink.py",
        "src/nxm/models/structure.py",
    ),
}


def code_path(group: str) -> str:
    """Return the path of a group's checksums below the study's folder."""
    return f"code/{group}.json"


def write_code(root: Path, folder: Path) -> None:
    """Write the checksums of each group's files into the study's folder."""
    for group, files in GROUPS.items():
        checksums = {name: sha256_file(root / name) for name in files}
        write_text(folder / code_path(group), json.dumps(checksums, indent=1) + "\n")
