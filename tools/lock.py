"""Write requirements.lock and requirements-cuda.lock: what pyproject.toml brings, with versions and hashes of files.

    make lock                        keep the versions that are pinned, as far as pyproject.toml allows them
    make lock UPGRADE=--upgrade      take the newest ones (`--upgrade-package NAME`: of one package)

uv resolves for all platforms and Pythons at once and lists the hash of every file on the package index, so that pip
refuses any other file. requirements-cuda.lock has what torch's build for CUDA needs besides: `make setup` installs it
where pip takes that build, and nowhere else, since it is 3 GB.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, CUDA_LOCK = "requirements.lock", "requirements-cuda.lock"
# Renewed by hand: results equal to the bit, the CUDA calls with an underscore and the exports hang on torch's version.
TORCH = "torch==2.13.0"
FOR_CUDA = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton)")
HEAD = "# Made by `make lock` from pyproject.toml: {what}, pinned, with the hashes of all their files.\n"


def run(*command: str, **kwargs) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT, **kwargs).stdout


def resolve(work: Path, upgrade: list[str]) -> list[str]:
    """Return one text per package: its name, version, marker and hashes."""
    run(sys.executable, "-m", "venv", str(work / "venv"))
    python = str(work / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "uv")
    (work / "extra.in").write_text("setuptools>=77\nwheel\n")  # the project itself is built without isolation
    (work / "torch.txt").write_text(TORCH + "\n")
    lock = work / "lock"  # uv keeps the versions that it finds in its output file
    lock.write_text("".join((ROOT / name).read_text() for name in (LOCK, CUDA_LOCK) if (ROOT / name).exists()))
    run(
        *(python, "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", str(work / "extra.in"), "--all-extras"),
        *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"),
        *("--constraint", str(work / "torch.txt"), "--output-file", str(lock), *upgrade),
    )
    return re.split(r"\n(?=\S)", lock.read_text().strip())


def hash_here(work: Path) -> str:
    """Return the hash of torch's file that pip takes on this machine.

    Where pip is set up for PyTorch's own builds for the CPU, it is none of those on the package index.
    """
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work / "torch"), TORCH)
    (file,) = (work / "torch").iterdir()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        packages = resolve(Path(folder), sys.argv[1:])
        digest = hash_here(Path(folder))
    torch = next(number for number, text in enumerate(packages) if text.startswith(TORCH))
    if digest not in packages[torch]:
        packages[torch] += f" \\\n    --hash=sha256:{digest}"
    cuda = [text for text in packages if FOR_CUDA.match(text)]
    others = [text for text in packages if not FOR_CUDA.match(text)]
    for name, what, texts in (
        (LOCK, "every package of the environment", others),
        (CUDA_LOCK, "the packages that torch's build for CUDA needs besides requirements.lock", cuda),
    ):
        (ROOT / name).write_text(HEAD.format(what=what) + "\n".join(texts) + "\n", encoding="utf-8")
        print(f"{name}: {len(texts)} packages")


if __name__ == "__main__":
    main()
