"""`python -m nxm.launch [STUDY]`: run a study's stages that are not done yet, with a plan before and a summary after.

    python -m nxm.launch              the main study (params.yaml)
    python -m nxm.launch seeds        the study of profiles/seeds.yaml, in studies/seeds/
    python -m nxm.launch --plan seeds say what would run and about how long, and stop there

The plain DVC way is the same: `dvc repro` for the main study; for another `python -m nxm.launch --write seeds`, then
`dvc repro studies/seeds/dvc.yaml`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from nxm import cli
from nxm.errors import UserError
from nxm.results import read_study
from nxm.settings import Study, load_study
from nxm.study import MAIN, write_study
from nxm.timing import PLAN, STARTED, estimate_seconds, say_duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default=MAIN)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would run, and stop")
    what.add_argument("--write", action="store_true", help="only write the study's folder, and stop")
    args = parser.parse_args()

    root = Path.cwd()
    if not (root / "dvc.yaml").is_file() or not (root / "params.yaml").is_file():
        raise UserError(f"{root}: no study here (dvc.yaml and params.yaml are missing); start in the repository's root")
    folder = write_study(root, args.study)
    study = load_study(folder / "params.yaml")
    target = Path(os.path.relpath(folder / "dvc.yaml", root))
    if args.write:
        print(f"study {study.study}: {target.parent / 'params.yaml'} is written; run it by: dvc repro {target}")
        return
    pending = pending_stages(target)
    announce(study, pending)
    if args.plan or not pending:
        if not pending:
            point_at_results(study)
        return
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", str(target)],
        env=os.environ
        | {
            PLAN: "\n".join(pending),
            STARTED: str(time.time()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        check=False,
    ).returncode
    if status:
        raise UserError(
            f"study {study.study}: a stage failed (its message stands above). What is done is kept: the same command "
            "goes on from there, an interrupted training from its last checkpoint."
        )
    point_at_results(study)


def pending_stages(target: Path) -> list[str]:
    """Names of the stages that `dvc repro` would run, in the order of dvc.yaml: those changed, and what reads them.

    Where an output was never made, DVC's dry run gives up on the stages that need it and names them as skipped: those
    are pending too.

    Raises:
        UserError: DVC cannot read the study (its message is passed on).
    """
    dry = _dvc("repro", "--dry", "--allow-missing", "--keep-going", "--force-downstream", str(target))
    said = dry.stdout + dry.stderr
    found = re.findall(r"^(?:Running stage|ERROR: failed to reproduce) (.*)$", said, flags=re.MULTILINE)
    found += re.findall(r"^WARNING: Stages? (.*) will be skipped", said, flags=re.MULTILINE)
    pending = {name.rpartition(":")[2] for line in found for name in re.findall(r"'([^']+)'", line)}
    if dry.returncode and not pending:
        raise UserError(f"dvc cannot read {target}:\n{said.strip()}")
    listed = [line.rpartition(":")[2] for line in _dvc("stage", "list", "--name-only", str(target)).stdout.split()]
    return [name for name in listed if name in pending]


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def announce(study: Study, pending: list[str]) -> None:
    """Say what is to do, about how long it takes, and where results will lie."""
    if not pending:
        print(f"study {study.study}: nothing to do, everything is up to date")
        return
    kinds = Counter(name.partition("@")[0] for name in pending)
    print(
        f"study {study.study}: {len(pending)} stages to run: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
    )
    seconds = estimate_seconds(study, pending, read_study("results", study.study))
    if seconds is None:
        print("no run of this study has been timed yet; an estimate follows after the first training")
    else:
        print(f"about {say_duration(seconds)}, judging by the runs that have been timed (perhaps on another machine)")
    print(f"results: results/{study.study}  figures: figures/{study.study}  tables: paper_tables/{study.study}")


def point_at_results(study: Study) -> None:
    """Print Table 1 and say where the rest lies."""
    tables, figures = Path("paper_tables", study.study), Path("figures", study.study)
    table = tables / "table1.md"
    if table.is_file():
        print("\n" + table.read_text(encoding="utf-8").rstrip() + "\n")
    for folder in (tables, figures):
        names = sorted({path.stem for path in folder.glob("*.*") if not path.name.startswith(".")})
        print(f"{folder}/: {', '.join(names) or 'nothing'}")
    print(f"results/{study.study}/: every run's own file")


if __name__ == "__main__":
    cli.run(main)
