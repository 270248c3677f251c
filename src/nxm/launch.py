"""`python -m nxm.launch [STUDY]`: run a study's stages that are not done yet, with a plan before and a summary after.

    python -m nxm.launch              the main study (params.yaml)
    python -m nxm.launch seeds        the study of profiles/seeds.yaml, in studies/seeds/
    python -m nxm.launch --jobs 4 glue    four stages side by side, each on its share of the cores and GPUs
    python -m nxm.launch --plan seeds say what would run and about how long, and stop there

The plain DVC way is the same: `dvc repro` for the main study; for another `python -m nxm.launch --write seeds`, then
`dvc repro studies/seeds/dvc.yaml`. A study that selects its values by a grid runs in two parts: the grid (`dvc repro
studies/glue/dvc.yaml:grid`), then, `--write` having put the chosen values into its params.yaml, the rest.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

from nxm import cli
from nxm.errors import UserError
from nxm.glue import get_task
from nxm.job import SLOT
from nxm.results import read_study
from nxm.settings import Study, load_study
from nxm.study import MAIN, write_study
from nxm.timing import PLAN, STARTED, estimate_seconds, say_duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default=MAIN)
    parser.add_argument("--jobs", type=int, default=1, help="stages that run side by side (needs GNU xargs)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would run, and stop")
    what.add_argument("--write", action="store_true", help="only write the study's folder, and stop")
    args = parser.parse_args()

    root = Path.cwd()
    if not (root / "dvc.yaml").is_file() or not (root / "params.yaml").is_file():
        raise UserError(f"{root}: no study here (dvc.yaml and params.yaml are missing); start in the repository's root")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give 1 or more")
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
    os.environ |= {
        STARTED: str(time.time()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    cells = [name for name in pending if name.startswith("grid@")]
    failed = False
    if cells and study.selection != "params":
        failed = reproduce(target, upstream(target, cells) & set(pending), args.jobs)
        write_study(root, args.study)
        study = load_study(folder / "params.yaml")
        say_chosen(study)
        pending = pending_stages(target)
    failed |= reproduce(target, set(pending), args.jobs)
    if failed:
        raise UserError(
            f"study {study.study}: a stage failed (its message stands above). What is done is kept: the same command "
            "goes on from there, an interrupted training from its last checkpoint."
        )
    point_at_results(study)


def reproduce(target: Path, stages: set[str], jobs: int) -> bool:
    """Run stages of a study, those that do not need each other side by side; returns whether one failed.

    A stage that fails stops those that need it and no other.
    """
    os.environ[PLAN] = "\n".join(sorted(stages))
    if jobs == 1:
        names = [f"{target}:{name}" for name in sorted(stages)]
        return bool(names) and _call("-m", "dvc", "repro", "--keep-going", *names) != 0
    edges = _edges(target)
    sorter = TopologicalSorter({name: {up for up, down in edges if down == name and up in stages} for name in stages})
    sorter.prepare()
    failed: set[str] = set()
    while sorter.is_active():
        ready = sorter.get_ready()
        wave = [name for name in sorted(ready) if not any(up in failed for up, down in edges if down == name)]
        alone = [name for name in wave if name.startswith("benchmark")]  # what is timed has the machine to itself
        failed |= set(ready) - set(wave)
        for names, width in ((alone, 1), ([name for name in wave if name not in alone], jobs)):
            if names and _side_by_side([f"{target}:{name}" for name in names], width):
                failed |= set(names) & set(pending_stages(target))
        sorter.done(*ready)
    return bool(failed)


def _side_by_side(targets: list[str], width: int) -> bool:
    """Run DVC stages, `width` at a time, by xargs; returns whether one failed."""
    command = ["xargs", "--process-slot-var", SLOT, "-P", str(width), "-n", "1"]
    command += [sys.executable, "-m", "nxm.job", str(width)]
    return subprocess.run(command, input="\n".join(targets), text=True, check=False).returncode != 0


def upstream(target: Path, stages: Iterable[str]) -> set[str]:
    """Stages and all that they need."""
    edges = _edges(target)
    found, todo = set(stages), list(stages)
    while todo:
        name = todo.pop()
        new = {up for up, down in edges if down == name} - found
        found |= new
        todo += new
    return found


def _edges(target: Path) -> set[tuple[str, str]]:
    """Pairs of stages (needed, needing), of DVC's own graph."""
    said = _dvc("dag", "--dot", str(target)).stdout
    pairs = re.findall(r'^"(.+)" -> "(.+)";$', said, flags=re.MULTILINE)
    return {(up.rpartition(":")[2], down.rpartition(":")[2]) for up, down in pairs}


def _call(*arguments: str) -> int:
    return subprocess.run([sys.executable, *arguments], check=False).returncode


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


def say_chosen(study: Study) -> None:
    """Print the values that the grid has chosen."""
    print(f"\nchosen by the grid ({study.selection}), now in {study.params}:")
    for method, task in dict.fromkeys((cell.method, cell.task) for cell in study.cells.values()):
        block = getattr(study, method)[task].model_dump()
        searched = getattr(study.grid, get_task(task).group)[method].model_dump()
        print(
            f"  {method} on {task}: " + ", ".join(f"{key} {block[key]:g}" for key, tried in searched.items() if tried)
        )


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
