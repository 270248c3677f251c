"""Running a study: its pending stages, side by side, each as soon as those that it needs are done.

Plain DVC does the same, one stage after another: `dvc repro` in the study's folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

import psutil
import pynvml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nxm.config import read_yaml
from nxm.durations import say_duration
from nxm.environment import JOBS, PLAN, STARTED, cores
from nxm.errors import UserError
from nxm.launch.alone import alone, process_at_work
from nxm.launch.estimate import estimate_seconds, stage_units, timed_runs
from nxm.launch.project import Project, Stage
from nxm.study.plan import PLAN as PLAN_FILE
from nxm.study.plan import VALUES, write_plan
from nxm.study.settings import Study
from nxm.study.studies import studies, study_folder, write_study

LOGS = Path(".cache/logs")  # below the study's folder: the output of each stage, while the terminal shows progress
RECORD_EVERY = 20.0  # seconds: all of dvc.lock is written each time, so small stages share one writing
TAIL = 30  # lines of a failed stage's log that are shown

Runner = Callable[[int | None, int], bool]  # slot (None: the whole machine), jobs -> success


def repro(root: Path, name: str, jobs: int | None, *, allow_missing: bool = False) -> None:
    """Run the pending stages of a study in its folder.

    A stage that fails stops those that need it and no others; tables and figures are made without it. Stages that
    become pending as others finish run too.

    Args:
        jobs: the number of stages side by side; None: `default_jobs`.
        allow_missing: run stages that changed, not those whose data or model is missing on this machine.

    Raises:
        UserError: a stage failed, after all others have run; the study's settings are wrong; or another process runs
            the study.
    """
    study = enter(root, name)
    with alone(study.study):
        _repro(root, study, default_jobs() if jobs is None else jobs, allow_missing)


def _repro(root: Path, study: Study, jobs: int, allow_missing: bool) -> None:
    project = Project()
    project.refuse_other_dvc()
    pending = project.pending(allow_missing)
    announce(study, project, pending, jobs)
    if not pending:
        point_at_results()
        return
    signal.signal(signal.SIGTERM, end_with_stages)
    _name_hardware(root)
    failed, tried = set[str](), set[str]()
    while todo := set(pending) - tried - stopped(project.stages, failed):
        if "plan" in todo:  # it may change the list of stages
            todo = {"plan"}
        failed |= run_stages(study, project, project.with_makers(todo), jobs)
        if "plan" in failed:
            break
        tried = (tried - that_need(project.stages, todo)) | todo  # run a stage again if one that it needs has run since
        project.close()
        project = Project()
        pending = project.pending(allow_missing)
    project.close()
    if failed:
        raise UserError(
            f"study {study.study}: a stage failed (its message is above): {', '.join(sorted(failed))}. What is done is "
            "safe: the same command goes on from there, an interrupted training from its last checkpoint."
        )
    point_at_results()
    give_verdict(root, study.study)


def enter(root: Path, name: str) -> Study:
    """Update a study's generated files, make its folder the working directory, and return the study."""
    if not (root / "dvc.yaml").is_file() or not (root / "params.yaml").is_file():
        raise UserError(f"{root}: no study here (dvc.yaml and params.yaml are missing); start in the repository's root")
    study = write_study(root, name)
    if study.root != ".":
        os.chdir(root / "studies" / name)
    if not (_is_whole(Path(PLAN_FILE)) and _is_whole(Path(VALUES))):
        write_plan(study, Path())  # DVC reads the plan before it could run the stage that makes it
    return study


def _is_whole(path: Path) -> bool:
    """Return whether a generated file can be read: it may be missing, cut short, or have conflict marks."""
    try:
        read_yaml(path)  # JSON is YAML
    except UserError:
        return False
    return True


def default_jobs() -> int:
    """Return the number of stages to run side by side: 2 on a CPU, 1 on a GPU or with several processes.

    Two trainings on one core each are faster than one on two cores.
    """
    alone = _has_gpu() or "ACCELERATE_CONFIG" in os.environ or cores() < 2
    return 1 if alone else 2


def _has_gpu() -> bool:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0 and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    except pynvml.NVMLError:
        return False


def _name_hardware(root: Path) -> None:
    """Make the environment variables that stages read independent of the working directory."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (config := os.environ.get("ACCELERATE_CONFIG")) and (root / config).is_file():
        os.environ["ACCELERATE_CONFIG"] = str((root / config).resolve())
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        if (count := pynvml.nvmlDeviceGetCount()) > 1:
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))


def end_with_stages(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal to this process alone, as batch systems send it: end the running stages, then this process.

    Ctrl-C reaches the stages directly.
    """
    for stage in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            stage.terminate()
    print("terminated; what is done is safe, and the same command goes on from there", file=sys.stderr)
    sys.exit(128 + number)


# --- the graph -------------------------------------------------------------------------------------------------------


def that_need(stages: Mapping[str, Stage], names: Collection[str]) -> set[str]:
    """Return stages and all that need them, directly or not."""
    found = set(names)
    for name in _in_order(stages):
        if stages[name].needs & found:
            found.add(name)
    return found


def stopped(stages: Mapping[str, Stage], failed: Collection[str]) -> set[str]:
    """Return the stages that failed, and those that cannot run without them."""
    found = set(failed)
    for name in _in_order(stages):
        if is_stopped(stages[name], found):
            found.add(name)
    return found


def _in_order(stages: Mapping[str, Stage]) -> Iterable[str]:
    return TopologicalSorter({name: stage.needs & stages.keys() for name, stage in stages.items()}).static_order()


def is_stopped(stage: Stage, failed: Collection[str]) -> bool:
    """Return whether a stage cannot run: one that it needs failed, or, for the report, which marks gaps, all."""
    lost = [up in failed for up in stage.needs]
    return bool(lost) and (all(lost) if stage.is_report else any(lost))


def work_left(needs: Mapping[str, Collection[str]], costs: Mapping[str, float]) -> dict[str, float]:
    """Return for each stage the cost of the most expensive chain of stages that starts with it."""
    after = dict.fromkeys(costs, 0.0)
    for name in reversed(list(TopologicalSorter(needs).static_order())):
        for up in needs[name]:
            after[up] = max(after[up], after[name] + costs[name])
    return {name: after[name] + costs[name] for name in costs}


# --- side by side ----------------------------------------------------------------------------------------------------


class Events(Protocol):
    """The calls of `side_by_side` in the main thread as stages start and end."""

    def start(self, name: str) -> Runner:
        """Prepare a stage; return the function that runs it in a thread."""

    def end(self, name: str, succeeded: bool) -> bool:
        """Process the end of a stage; return whether it is done."""


def side_by_side(stages: Mapping[str, Stage], costs: Mapping[str, float], jobs: int, events: Events) -> set[str]:
    """Run the stages that have a cost, `jobs` at a time, each after those that it needs.

    Args:
        costs: the cost of each stage, in any unit. Stages with the most work after them go first.

    Returns:
        The stages that failed, and those that were not started because they need one that failed.
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
                if is_stopped(stages[name], failed):
                    failed.add(name)
                    sorter.done(name)
                else:
                    ready.append(name)
            ready.sort(key=lambda name: (stages[name].is_timed, -left[name], name))
            while ready and free and not (stages[ready[0]].is_timed and running):
                name, slot = ready.pop(0), free.pop()
                shared = jobs > 1 and not stages[name].is_timed
                running[pool.submit(events.start(name), slot if shared else None, jobs)] = (name, slot)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, slot = running.pop(future)
                free.add(slot)
                sorter.done(name)
                if not events.end(name, future.result()):
                    failed.add(name)
    return failed


def run_stages(study: Study, project: Project, names: set[str], jobs: int) -> set[str]:
    """Run stages of a study while showing progress; return those that failed or were stopped."""
    plan = [name for name in project.stages if name in names]
    os.environ |= {PLAN: "\n".join(plan), JOBS: str(jobs)}
    os.environ.setdefault(STARTED, str(time.time()))
    costs = {name: stage_units(study, name) for name in plan}
    with _shown(study, project, plan, jobs) as events:
        return side_by_side(project.stages, costs, jobs, events)


@contextmanager
def _shown(study: Study, project: Project, plan: list[str], jobs: int) -> Iterator[_Display]:
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    if console.is_terminal:
        shutil.rmtree(LOGS, ignore_errors=True)
        LOGS.mkdir(parents=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        display = _Display(study, project, plan, jobs, progress)
        try:
            yield display
        finally:
            project.record()


class _Display:
    """Runs stages through a project and shows progress.

    On a terminal it shows a line of progress, and the output of a stage goes to a file in LOGS. Elsewhere stages print.
    """

    def __init__(self, study: Study, project: Project, plan: list[str], jobs: int, progress: Progress) -> None:
        self.study, self.project, self.plan, self.jobs, self.progress = study, project, plan, jobs, progress
        self.running: dict[str, float] = {}
        self.recorded = time.monotonic()
        self.done: list[str] = []
        self.timed = timed_runs(study)
        self.bar = progress.add_task("", total=len(plan))
        self._say()

    def start(self, name: str) -> Runner:
        self.running[name] = time.monotonic()
        if not self.logged:
            print(f"Running stage '{name}'", flush=True)
        self._say()
        try:
            return self.project.start(name, self._log(name) if self.logged else None)
        except UserError as error:
            self._complain(error)
            return lambda slot, jobs: False

    def end(self, name: str, succeeded: bool) -> bool:
        seconds = time.monotonic() - self.running.pop(name)
        self.done.append(name)
        if not self.timed and succeeded:
            self.timed = timed_runs(self.study)
        if succeeded:
            try:
                self.project.finish(name)
            except UserError as error:
                self._complain(error)
                succeeded = False
        if time.monotonic() - self.recorded > RECORD_EVERY:
            self.project.record()
            self.recorded = time.monotonic()
        if self.logged:
            outcome = "done" if succeeded else "[red]failed[/red]"
            self.progress.console.print(f"{name}: {outcome} ({say_duration(seconds)})", highlight=False)
            if not succeeded and self._log(name).exists():
                lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
                self.progress.console.print("\n".join(lines), markup=False, highlight=False)
        self.progress.advance(self.bar)
        self._say()
        return succeeded

    def _complain(self, error: UserError) -> None:
        self.progress.console.print(f"error: {error}", markup=False, highlight=False)

    @property
    def logged(self) -> bool:
        return not self.progress.disable

    @staticmethod
    def _log(name: str) -> Path:
        return LOGS / f"{name}.log"

    def _say(self) -> None:
        waiting = [name for name in self.plan if name not in self.done]
        seconds = estimate_seconds(self.study, waiting, self.timed, self.jobs)
        left = f", about {say_duration(seconds)}" if seconds else ""
        running = f" ({', '.join(self.running)})" if self.running else ""
        done = f"{len(self.done)} of {len(self.plan)} done"
        text = f"{done}, {len(self.running)} running{running}, {len(waiting)} left{left}"
        self.progress.update(self.bar, description=text)


# --- words -----------------------------------------------------------------------------------------------------------


def announce(study: Study, project: Project, pending: list[str], jobs: int) -> None:
    """Print the stages to run and about how long they take."""
    if not pending:
        print(f"study {study.study}: nothing to do, everything is up to date")
        return
    again = project.with_makers(pending) - set(pending)
    plan = [name for name in project.stages if name in again or name in pending]
    kinds = Counter(name.partition("@")[0] for name in plan)
    print(f"study {study.study}: {len(plan)} stages to run: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()))
    if again:
        print(f"({len(again)} of them are up to date, but what they made is not here: data or models that others need)")
    timed = timed_runs(study)
    seconds = estimate_seconds(study, plan, timed, jobs)
    if seconds is None:
        print("no run with these weights has been timed yet; an estimate follows after the first training")
    elif seconds:
        whose = "" if timed and timed[0].study == study.study else " in other studies"
        print(f"about {say_duration(seconds)}, judging by the runs timed{whose} (perhaps on another machine)")


def show(root: Path, name: str) -> None:
    """Print the committed results of a study, without running anything."""
    enter(root, name)
    print(f"study {name}: committed results; nothing was run (`nxm repro {name}` runs it)")
    point_at_results()


def point_at_results() -> None:
    """Print Table 1 and the paths of the other results."""
    tables, figures, here = Path("paper_tables"), Path("figures"), Path.cwd()
    table = tables / "table1.md"
    if table.is_file():
        print("\n" + table.read_text(encoding="utf-8").rstrip() + "\n")
    place = "" if (here / "Makefile").exists() else f"studies/{here.name}/"
    for folder in (tables, figures):
        names = sorted({path.stem for path in folder.glob("*.*") if not path.name.startswith(".")})
        print(f"{place}{folder}/: {', '.join(names) or 'nothing'}")
    print(f"{place}results/: every run's own file")
    if Path("report.html").is_file():
        print(f"{place}report.html: all of it on one page, for a browser")


def give_verdict(root: Path, name: str) -> None:
    """Print the verdict on a study's results (`nxm.report.verdict`), or why there is none.

    Raises:
        UserError: repetitions of the committed runs came out differently, or contradict a claim. (Runs with other
            values, data or code are no repetitions.)
    """
    from nxm.report import verdict  # imports torch, which commands without work to do must not wait for

    print()
    try:
        found = verdict.verify(root, [name])
    except UserError as error:
        print(f"no verdict: {error}")
        return
    verdict.print_verdict(found)
    if problem := verdict.save_verdict(root, found):
        print(problem)
    if found.contradicts:
        raise UserError(f"study {name}: all stages are done, but {verdict.conclusion(found)}")


def plan(root: Path, name: str, jobs: int | None, *, allow_missing: bool = False) -> None:
    """Print the stages that `repro` would run, and about how long they take."""
    study = enter(root, name)
    if process := process_at_work():
        print(f"process {process} runs this study now; a stage that has begun there counts as still to run")
    project = Project()
    pending = project.pending(allow_missing)
    if "plan" in pending:  # what is pending depends on it; this also checks what only the plan checks, such as sets
        write_plan(study, Path())
        project.close()
        project = Project()
        pending = project.pending(allow_missing)
    announce(study, project, pending, default_jobs() if jobs is None else jobs)
    project.close()


def write_all(root: Path) -> None:
    """Bring params.yaml, dvc.yaml, plan.yaml and values.json of all studies up to date."""
    for name in studies(root):
        write_plan(write_study(root, name), study_folder(root, name))
    print(f"{len(studies(root))} studies: their generated files are up to date")
