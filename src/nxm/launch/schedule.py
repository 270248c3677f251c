"""`python -m nxm.launch.schedule [STUDY]`: run a study's stages that are not done yet, with a plan before and a
summary after.

    python -m nxm.launch.schedule              the main study (params.yaml)
    python -m nxm.launch.schedule seeds        the study of profiles/seeds.yaml, in studies/seeds/
    python -m nxm.launch.schedule --jobs 4 glue    four stages side by side, each on its share of the cores and GPUs
    python -m nxm.launch.schedule --plan seeds say what would run and about how long, and stop there

The plain DVC way is the same: `dvc repro` for the main study; for another `python -m nxm.launch.schedule --write
seeds`, then
`dvc repro studies/seeds/dvc.yaml`. A study that selects its values by a grid runs in two parts: the grid (`dvc repro
studies/glue/dvc.yaml:grid`), then, `--write` having put the chosen values into its params.yaml, the rest.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import torch
from dvc.repo import Repo

from nxm import cli
from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.launch.estimate import PLAN, STARTED, estimate_seconds, say_duration, stage_units, timed_runs
from nxm.machine import JOBS, SLOT, cores
from nxm.study.profiles import MAIN, chosen_values, planned_training, refresh_studies, write_study
from nxm.study.search import say_value
from nxm.study.settings import Study, load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default=MAIN)
    parser.add_argument("--jobs", type=int, help="stages side by side; default: 2 on a CPU")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would run, and stop")
    what.add_argument("--write", action="store_true", help="only write the study's folder, and stop")
    args = parser.parse_args()

    root = Path.cwd()
    if not (root / "dvc.yaml").is_file() or not (root / "params.yaml").is_file():
        raise UserError(f"{root}: no study here (dvc.yaml and params.yaml are missing); start in the repository's root")
    jobs = args.jobs if args.jobs is not None else default_jobs()
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give 1 or more")
    load_study(root / "params.yaml")  # what is wrong in it is said of it, not of a profile that builds on it
    refresh_studies(root)  # DVC reads them all, whichever is to run
    folder = write_study(root, args.study)
    study = load_study(folder / "params.yaml")
    target = Path(os.path.relpath(folder / "dvc.yaml", root))
    if args.write:
        print(f"study {study.study}: {target.parent / 'params.yaml'} is written; run it by: dvc repro {target}")
        return
    pending, stages = pending_stages(target), read_stages(target)
    plan = with_what_is_missing(stages, pending)
    announce(study, [name for name in stages if name in plan], len(plan - set(pending)), jobs)
    if args.plan or not pending:
        if not pending:
            point_at_results(study)
        return
    signal.signal(signal.SIGTERM, end_with_stages)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ |= {PLAN: "\n".join(sorted(plan)), STARTED: str(time.time()), JOBS: str(jobs)}
    failed, tried = set[str](), set[str]()
    said = say_chosen(study, root, ())
    while True:  # what a search decides runs after it, and so does what reads a model or result that was made again
        waiting = waiting_stages(study, stages, pending, root)
        todo = set(pending) - waiting - tried - stopped(stages, failed)
        if not todo:  # what still waits is for a search that cannot choose: the report is made without it
            reports = {name for name in waiting if is_report(name) and all(path.exists() for path in stages[name].deps)}
            todo = reports & set(pending) - tried - stopped(stages, failed)
        if not todo:
            break
        failed |= reproduce(study, target, todo, jobs)
        tried = (tried - that_need(stages, todo)) | todo  # again if what a stage needs has run since
        write_study(root, args.study)
        study = load_study(folder / "params.yaml")
        said = say_chosen(study, root, said)
        pending, stages = pending_stages(target), read_stages(target)
    lacking = chosen_values(study, root)[1]
    if failed or lacking:
        raise UserError("\n".join(complaints(study, failed, lacking)))
    point_at_results(study)


def end_with_stages(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal that only this process gets, as batch systems send it: end the stages that run, then this.

    (Ctrl-C reaches them by itself.)
    """
    for stage in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            stage.terminate()
    print("terminated; what is done is kept, and the same command goes on from there", file=sys.stderr)
    sys.exit(128 + number)


def waiting_stages(study: Study, stages: Mapping[str, Stage], pending: Collection[str], root: Path) -> set[str]:
    """The stages that wait, themselves or upstream, for values that a search has yet to choose.

    One that has chosen chooses anew when a cell of it is among the stages `pending`.
    """
    planned = {name: training for name in stages if (training := planned_training(study, name)) is not None}
    searching = {name for name in pending if name in planned and planned[name].searched}
    undecided = {*chosen_values(study, root)[1], *((planned[name].block, planned[name].task) for name in searching)}
    waiting = {name for name, one in planned.items() if not one.searched and (one.block, one.task) in undecided}
    return that_need(stages, waiting)


def that_need(stages: Mapping[str, Stage], names: Collection[str]) -> set[str]:
    """These stages and all that need them, directly or not."""
    found = set(names)
    for name in TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order():
        if stages[name].needs & found:
            found.add(name)
    return found


def stopped(stages: Mapping[str, Stage], failed: Collection[str]) -> set[str]:
    """The stages that failed, and those that cannot run without them."""
    found = set(failed)
    for name in TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order():
        if is_stopped(name, stages[name].needs, found):
            found.add(name)
    return found


def is_stopped(name: str, needs: Collection[str], failed: Collection[str]) -> bool:
    """Whether a stage cannot run: one that it needs failed; of the report, which marks what is missing, all did."""
    lost = [up in failed for up in needs]
    return bool(lost) and (all(lost) if is_report(name) else any(lost))


def is_report(name: str) -> bool:
    """Whether a stage makes something of results files alone, of as many as there are."""
    return name.startswith(("compare", "figure", "table", "scores"))


def default_jobs() -> int:
    """Two one-core trainings side by side are faster than one on two cores; a GPU, or several processes, take one."""
    alone = torch.cuda.is_available() or "ACCELERATE_CONFIG" in os.environ or cores() < 2
    return 1 if alone else 2


def reproduce(study: Study, target: Path, names: set[str], jobs: int) -> set[str]:
    """Run stages of a study, and those they need whose outputs are not here; returns those that failed or were stopped.

    A stage starts as soon as what it needs is done and a share of the machine is free. One that fails stops those that
    need it and no others; tables and figures are made without it.
    """
    stages = read_stages(target)
    run = with_what_is_missing(stages, names)
    if jobs > 1 and torch.cuda.device_count() > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    costs = {name: stage_units(study, name) for name in run}
    return side_by_side(stages, costs, jobs, lambda name, slot: _run_stage(f"{target}:{name}", slot))


def side_by_side(
    stages: Mapping[str, Stage], costs: Mapping[str, float], jobs: int, run_stage: Callable[[str, int | None], bool]
) -> set[str]:
    """Call `run_stage(name, slot)` for the stages that have a cost, `jobs` at a time, each after those that it needs.

    Args:
        costs: what each stage takes, in any unit: what stands before the most work goes first.
        run_stage: returns whether the stage succeeded; its slot is None when it has the machine to itself.

    Returns:
        The stages that failed, and those that were not started since they need one that failed.
    """
    needs = {name: stages[name].needs & costs.keys() for name in costs}
    left = work_left(needs, costs)
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    ready, failed, free = list[str](), set[str](), set(range(jobs))
    running: dict[Future[bool], tuple[str, int]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while sorter.is_active():
            for name in sorter.get_ready():
                if is_stopped(name, stages[name].needs, failed):
                    failed.add(name)
                    sorter.done(name)
                else:
                    ready.append(name)
            ready.sort(key=lambda name: (is_timed(name), -left[name], name))
            while ready and free and not (is_timed(ready[0]) and running):
                name, slot = ready.pop(0), free.pop()
                shared = jobs > 1 and not is_timed(name)
                running[pool.submit(run_stage, name, slot if shared else None)] = (name, slot)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, slot = running.pop(future)
                free.add(slot)
                sorter.done(name)
                if not future.result():
                    failed.add(name)
    return failed


def is_timed(name: str) -> bool:
    """Whether a stage takes times: it then has the machine to itself, when all that can run without it is done."""
    return name.startswith(("benchmark", "matrices", "deployment"))


def work_left(needs: Mapping[str, Collection[str]], costs: Mapping[str, float]) -> dict[str, float]:
    """For each stage, the cost of the dearest chain of stages that starts with it."""
    after = dict.fromkeys(costs, 0.0)
    for name in reversed(list(TopologicalSorter(needs).static_order())):
        for up in needs[name]:
            after[up] = max(after[up], after[name] + costs[name])
    return {name: after[name] + costs[name] for name in costs}


def _run_stage(target: str, slot: int | None) -> bool:
    """Run one DVC stage, on its share of the machine where it has a slot; returns whether it succeeded."""
    environment = os.environ | ({SLOT: str(slot)} if slot is not None else {})
    return (
        subprocess.run([sys.executable, "-m", "nxm.launch.worker", target], env=environment, check=False).returncode
        == 0
    )


@dataclass(frozen=True)
class Stage:
    """A stage of a study as DVC knows it: the stages it needs, the paths it reads, those it makes.

    `kept` are the paths it makes that are kept in git, not in DVC's cache: results, figures, tables.
    """

    needs: frozenset[str]
    deps: tuple[Path, ...]
    outs: tuple[Path, ...]
    kept: tuple[Path, ...]


def read_stages(target: Path) -> dict[str, Stage]:
    """A study's stages by name, from DVC's own index."""
    with Repo() as repo:
        place = os.path.abspath(target)
        own = {stage.name: stage for stage in repo.index.stages if os.path.abspath(stage.path) == place}
        needs = {name: {up.name for up in repo.index.graph.successors(stage)} for name, stage in own.items()}
        return {
            name: Stage(
                frozenset(needs[name] & own.keys()),
                tuple(Path(dep.fs_path) for dep in stage.deps if dep.fs_path),
                tuple(Path(out.fs_path) for out in stage.outs),
                tuple(Path(out.fs_path) for out in stage.outs if not out.use_cache),
            )
            for name, stage in own.items()
        }


def with_what_is_missing(stages: Mapping[str, Stage], names: Iterable[str]) -> set[str]:
    """Stages, and those that make what they read and is not on disk (on a fresh clone: data and models)."""
    found, todo = set(names), list(names)
    while todo:
        missing = [dep for dep in stages[todo.pop()].deps if not dep.exists()]
        makers = {
            name
            for name, stage in stages.items()
            if any(dep.is_relative_to(out) for dep in missing for out in stage.outs)
        }
        todo += makers - found
        found |= makers
    return found


def pending_stages(target: Path) -> list[str]:
    """Names of the stages that `dvc repro` would run, in the order of dvc.yaml: those changed, and what reads them.

    Data and models that are not here (a fresh clone has none) make no stage pending; a result, figure or table does.
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
    stages = read_stages(target)
    pending |= {name for name, stage in stages.items() if not all(path.exists() for path in stage.kept)}
    listed = [line.rpartition(":")[2] for line in _dvc("stage", "list", "--name-only", str(target)).stdout.split()]
    for name in TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order():
        if stages[name].needs & pending:
            pending.add(name)
    return [name for name in listed if name in pending]


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def announce(study: Study, plan: list[str], again: int, jobs: int) -> None:
    """Say what is to do, about how long it takes, and where results will lie; `again`: stages done, but not here."""
    if not plan:
        print(f"study {study.study}: nothing to do, everything is up to date")
        return
    kinds = Counter(name.partition("@")[0] for name in plan)
    print(f"study {study.study}: {len(plan)} stages to run: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()))
    if again:
        print(f"({again} of them are up to date, but what they made is not here: data or models that the others need)")
    timed = timed_runs(Path(), study)
    seconds = estimate_seconds(study, plan, timed, jobs)
    if seconds is None:
        print("no run with these weights has been timed yet; an estimate follows after the first training")
    else:
        whose = "" if timed and timed[0].study == study.study else " in other studies"
        print(f"about {say_duration(seconds)}, judging by the runs timed{whose} (perhaps on another machine)")
    print(f"results: results/{study.study}  figures: figures/{study.study}  tables: paper_tables/{study.study}")


def say_chosen(study: Study, root: Path, said: Collection[tuple[str, str]]) -> Collection[tuple[str, str]]:
    """Print the values that the grid has chosen, those aside that were `said` before; returns what is said now."""
    chosen, _ = chosen_values(study, root)
    new = {pair: values for pair, values in chosen.items() if pair not in said}
    if new:
        print(f"\nchosen by the grid ({study.selection}), now in {study.params}:")
    for (method, task), values in new.items():
        searched = getattr(study.grid, get_task(task).group)[method].model_dump()
        words = ", ".join(f"{key} {say_value(values[key])}" for key, tried in searched.items() if tried)
        print(f"  {method} on {task}: {words}", flush=True)
    return chosen


def complaints(study: Study, failed: Collection[str], lacking: Iterable[tuple[str, str]]) -> list[str]:
    """A line for stages that failed, and one for methods and tasks for which a search has chosen nothing."""
    lines = []
    if failed:
        lines.append(
            f"study {study.study}: a stage failed (its message stands above). What is done is kept: the same command "
            "goes on from there, an interrupted training from its last checkpoint."
        )
    if pairs := ", ".join(f"{method} on {task}" for method, task in lacking):
        lines.append(
            f"study {study.study}: the grid has chosen nothing for {pairs}: a cell is not done (its message stands "
            "above), or every cell diverged (then other values are needed in the grid). The same command goes on."
        )
    return lines


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
