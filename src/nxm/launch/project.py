"""A study's folder as a DVC project: its stages, which of them must run, and running and recording one.

A command reads DVC's index once. DVC's own commands read it again for each stage that runs and write the whole dvc.lock
after each, which in a large study costs more than a figure.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.scm import SCMError
from dvc.stage import PipelineStage

from nxm.config import read_yaml
from nxm.environment import JOBS, SLOT
from nxm.errors import UserError

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Stage:
    """A stage of a study: the stages that it needs, and the paths that it reads and makes.

    `deps` and `outs` are absolute paths; `recorded` are the outputs that are in git and not in DVC's cache.
    """

    name: str
    needs: frozenset[str]
    deps: tuple[Path, ...] = ()
    outs: tuple[Path, ...] = ()
    recorded: tuple[Path, ...] = ()

    @property
    def is_report(self) -> bool:
        """True for a stage that reads results files alone, as many as exist."""
        return self.name.startswith(("compare", "figure", "table", "scores", "report"))

    @property
    def is_timed(self) -> bool:
        """True for a stage that measures times: it runs alone, after all stages that do not need it."""
        return self.name.startswith(("bench", "deployment"))  # bench and benchmark


class Project:
    """The stages of the study in the working directory, from one reading of DVC's index.

    Raises:
        UserError: DVC cannot read the study. The message includes DVC's.
    """

    def __init__(self) -> None:
        try:
            self._repo = _open()
            graph = self._repo.index.graph
            self._stages: dict[str, PipelineStage] = {stage.name: stage for stage in self._repo.index.stages}
        except DvcException as error:
            messages = _messages(error)
            if LOCK in messages:
                raise UserError(f"{_say_lock_is_damaged(Path.cwd() / LOCK)} DVC says: {messages}") from None
            raise UserError(f"{Path.cwd()}: DVC cannot read the study: {messages}") from None
        needs = {name: {up.name for up in graph.successors(stage)} for name, stage in self._stages.items()}
        order = TopologicalSorter(needs).static_order()
        self.stages = {name: _described(self._stages[name], needs[name]) for name in order}
        self._unrecorded: list[PipelineStage] = []

    # --- stages to run ----------------------------------------------------------------------------------------------

    def pending(self, allow_missing: bool = False) -> list[str]:
        """Return the names of the stages to run, in order: those that changed and those that need one of them.

        Args:
            allow_missing: do not run a stage because its data or model is missing on this machine, as with
                `dvc repro --allow-missing`; missing results, figures and tables are made.
        """
        hashes = _Hashes()
        found: set[str] = set()
        for name, stage in self.stages.items():  # without DVC's lock, for which a study that runs would have to wait
            if stage.needs & found or self._changed(self._stages[name], hashes, allow_missing):
                found.add(name)
        return [name for name in self.stages if name in found]

    @staticmethod
    def _changed(stage: PipelineStage, hashes: _Hashes, allow_missing: bool) -> bool:
        if stage.changed_stage():  # another command, dependency or output
            return True
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                if hashes.params_changed(dep):
                    return True
            elif hashes.changed(dep, allow_missing=allow_missing):
                return True
        return any(hashes.changed(out, allow_missing=allow_missing and out.use_cache) for out in stage.outs)

    def with_makers(self, names: Iterable[str]) -> set[str]:
        """Return stages, with those that make their missing inputs."""
        found, todo = set(names), list(names)
        while todo:
            missing = [dep for dep in self.stages[todo.pop()].deps if not dep.exists()]
            makers = {
                name
                for name, stage in self.stages.items()
                if any(dep == out or dep.is_relative_to(out) for dep in missing for out in stage.outs)
            }
            todo += makers - found
            found |= makers
        return found

    def refuse_other_dvc(self) -> None:
        """Raise UserError if a DVC command is at work on the study, so that no stage could be recorded."""
        with self._locked():
            pass

    # --- running ----------------------------------------------------------------------------------------------------

    def start(self, name: str, log: Path | None = None) -> Callable[[int | None, int], bool]:
        """Prepare a stage and return a function that runs its command and returns whether it succeeded.

        The function's arguments are the slot (None: the whole machine) and the number of jobs. It may run in a thread;
        `start` and `finish` must run in the main thread.

        Args:
            log: a file for the output of the command; None: the output of this process.

        Raises:
            UserError: an input of the stage does not exist.
        """
        stage = self._stages[name]
        try:
            with self._locked():
                stage.save_deps()
                stage.remove_outs(ignore_remove=False, force=False)
        except DvcException as error:
            raise UserError(f"stage {name}: {_messages(error)}") from None
        environment = {"DVC_STAGE": stage.addressing, "DVC_ROOT": self._repo.root_dir}

        def run(slot: int | None, jobs: int) -> bool:
            own = environment | ({SLOT: str(slot), JOBS: str(jobs)} if slot is not None else {})
            command = [sys.executable, "-m", "nxm.launch.worker", stage.cmd]
            with log.open("w") if log else nullcontext() as output:
                done = subprocess.run(
                    command, cwd=stage.wdir, env=os.environ | own, stdout=output, stderr=output, check=False
                )
            return done.returncode == 0

        return run

    def finish(self, name: str) -> None:
        """Save a finished stage's outputs in DVC's cache; `record` writes it into dvc.lock.

        Raises:
            UserError: the stage did not make one of its outputs.
        """
        stage = self._stages[name]
        try:
            with self._locked():
                stage.save(run_cache=False)
                stage.commit()
        except DvcException as error:
            raise UserError(f"stage {name}: {_messages(error)}") from None
        self._unrecorded.append(stage)

    def record(self) -> None:
        """Write all finished stages into dvc.lock at once."""
        if self._unrecorded:
            with self._locked():
                self._unrecorded[0].dvcfile.dump_stages(self._unrecorded, update_pipeline=False)
            self._unrecorded = []

    def close(self) -> None:
        """Release DVC's files."""
        self._repo.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._repo.lock:
                yield
        except DvcException as error:
            if "lock" in str(error).lower():
                raise UserError(f"{Path.cwd()}: a DVC command is at work here; wait for its end: {error}") from None
            raise


def _open() -> Repo:
    """Open the project in the working directory; without git if there is no repository, as in a downloaded archive."""
    try:
        return Repo()
    except SCMError:
        return Repo(config={"core": {"no_scm": True}})


def _say_lock_is_damaged(path: Path) -> str:
    if re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE):
        return f"{path} has git's conflict marks: take the entries of both sides, and remove the marks."
    return (
        f"{path} is damaged, perhaps by an interruption: `git checkout {path}` brings back the committed one. If "
        "none is committed, delete it, and every stage runs again."
    )


class _Hashes:
    """The hashes of files on disk, each computed once, for comparison with those in dvc.lock."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._params = functools.cache(_read_params)

    def changed(self, file: Output, allow_missing: bool) -> bool:
        if not file.exists:
            return not (allow_missing and file.hash_info)
        if file.fs_path not in self._found:
            self._found[file.fs_path] = file.get_hash()
        return bool(self._found[file.fs_path] != file.hash_info)

    def params_changed(self, dep: ParamsDependency) -> bool:
        recorded = dep.hash_info.value if dep.hash_info else {}
        now = self._params(dep.fs_path)
        return any(name not in (recorded or {}) or recorded[name] != _look_up(now, name) for name in dep.params)


def _read_params(path: str) -> dict[str, Any]:
    if path.endswith(".json"):
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    return read_yaml(Path(path))


def _look_up(values: Mapping[str, Any], name: str) -> Any:
    """Return the value at a path such as `runs.dense`; None if it does not exist."""
    found: Any = values
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def _described(stage: PipelineStage, needs: Collection[str]) -> Stage:
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    return Stage(
        stage.name,
        frozenset(needs),
        tuple(Path(dep.fs_path) for dep in files),
        tuple(Path(out.fs_path) for out in stage.outs),
        tuple(Path(out.fs_path) for out in stage.outs if not out.use_cache),
    )


def _messages(error: BaseException) -> str:
    """Return the messages of an error and of its causes."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__  # type: ignore[assignment]
    return ": ".join(dict.fromkeys(found))
