"""The origin of a results file: the place, values, data and code that it is of, and the pipeline that recorded it.

Four things are compared, none of which a copied file has right:

- its own words with its path and with params.yaml: study, task, run, seed, and every hyper-parameter;
- its bytes with dvc.lock, where the pipeline wrote down what each stage made;
- the code and the data that dvc.lock names for its stage with those on this machine, or with the committed dvc.lock;
- its scores with its predictions (`nxm.report.verdict.rescored`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from nxm.config import explain_all
from nxm.data.tasks import compute_metrics, get_task
from nxm.errors import UserError
from nxm.files import sha256_file
from nxm.study.bootstrap import Labels
from nxm.study.plan import Training, chosen_path, composed
from nxm.study.results import Failure, Result, place_of, read_chosen, read_result, result_path
from nxm.study.settings import Study

LOCK = "dvc.lock"
ROUNDING = 1e-4  # percent points: scores are stored to 4 decimals


class Status(Enum):
    """The verdict on one file. `good` ones agree with the committed result, or there is nothing to compare."""

    COMMITTED = "as committed"  # the very file: nothing was made here
    EQUAL = "equal"  # to the bit, apart from times and machine
    NOISE = "within noise"
    DIFFERENT = "different"  # beyond noise
    NEW = "new"  # no commit has it
    TIMES = "times"  # measured times, which no other machine repeats
    CHECKED = "checked"  # by --evidence
    UNCHECKED = "not checked"  # something that the check needs is not here
    UNPLANNED = "not planned"  # left by earlier settings; tables do not read it
    MISSING = "missing"
    DAMAGED = "damaged"
    FOREIGN = "another's"  # of another study, task, run or seed
    VALUES = "other values"
    DATA = "other data"
    CODE = "other code"
    EDITED = "edited"  # not what the pipeline recorded, or its score is not that of its predictions

    @property
    def good(self) -> bool:
        """False for what differs or cannot be trusted."""
        return self in _GOOD

    @property
    def trusted(self) -> bool:
        """False for a file that is not there, or not what its study made: no claim can rest on it."""
        return self not in (Status.MISSING, Status.DAMAGED, Status.FOREIGN, Status.EDITED)

    @property
    def comparable(self) -> bool:
        """False where values, data or code differ: the result is not a repetition of the committed one."""
        return self not in (Status.VALUES, Status.DATA, Status.CODE)


_GOOD = {
    Status.COMMITTED,
    Status.EQUAL,
    Status.NOISE,
    Status.NEW,
    Status.TIMES,
    Status.CHECKED,
    Status.UNCHECKED,
    Status.UNPLANNED,
}


@dataclass(frozen=True)
class Finding:
    """The verdict on one file or check of a study.

    Attributes:
        place: the file, below the study's folder, or the check.
        words: the reason; empty where the status says all.
        score, committed: dev scores in percent points, where there are any.
        limit: the difference up to which a score is within noise.
    """

    study: str
    place: str
    status: Status
    words: str = ""
    score: float | None = None
    committed: float | None = None
    limit: float | None = None

    @property
    def repeats(self) -> bool:
        """True for a training that was made here and agrees with the committed one."""
        return self.status in (Status.EQUAL, Status.NOISE) and Path(self.place).name.startswith("seed")


@dataclass(frozen=True)
class Lock:
    """The hashes in a dvc.lock: by path, those of outputs, and of the stage that made each its dependencies."""

    outs: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_lock(path: Path) -> Lock:
    """Read a dvc.lock; without the file an empty one. Raises UserError for a file that is not one."""
    try:
        stages = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
        outs, makers = {}, {}
        for stage in stages.values():
            deps = {dep["path"]: dep["md5"] for dep in stage.get("deps", [])}
            for out in stage.get("outs", []):
                outs[out["path"]] = out["md5"]
                makers[out["path"]] = deps
    except FileNotFoundError:
        return Lock()
    except (YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a dvc.lock, or cut short, or with conflict marks ({line})") from None
    return Lock(outs, makers)


def md5_of(path: Path) -> str:
    """Return the hash of a file or folder as dvc.lock has it."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listed = [{"md5": md5_of(file), "relpath": name} for name, file in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def is_code(path: str) -> bool:
    """Return whether a dependency is source code, or the checksums of the code that all trainings share."""
    return path.endswith(".py") or path in ("code/training.json", "code/teaching.json")


class Code:
    """The source code that is here, compared with what dvc.lock has of a stage. Each file is read once.

    Args:
        root: the repository's root, to which the paths in code/*.json are relative.
        folder: the study's, to which those in dvc.lock are.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._changed = functools.cache(self._read)

    def changed(self, deps: Mapping[str, str]) -> list[str]:
        """Return the dependencies that are code and not the code that is here; of shared code the single files."""
        return sorted({name for dep, md5 in deps.items() if is_code(dep) for name in self._changed(dep, md5)})

    def _read(self, dep: str, md5: str) -> list[str]:
        path = self._folder / dep
        if not path.is_file() or md5_of(path) != md5:
            return [dep]
        if not dep.endswith(".json"):
            return []
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [name for name, sha256 in listed.items() if not self._is_here(name, sha256)]

    def _is_here(self, name: str, sha256: str) -> bool:
        return (self._root / name).is_file() and sha256_file(self._root / name) == sha256


def read_record(path: Path) -> Result | Failure:
    """Return the result or the failure in a file. Raises UserError for any other, and for a damaged file."""
    try:
        return read_result(path)
    except UserError:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            content = {}
        if not (isinstance(content, dict) and "failure" in content):
            raise
    try:
        return Failure.model_validate(content)
    except ValidationError as error:
        raise UserError(explain_all(path, error, Failure)) from None


def wrong_place(record: Result | Failure, folder: Path, path: Path, study: Study) -> str | None:
    """Return why a record cannot be that of its path in a study; None if it can."""
    if record.study != study.study:
        return f"a result of study {record.study}"
    if (own := result_path(folder, place_of(record))) != path:
        return f"a result of {own.relative_to(folder).as_posix()}"
    return None


def other_values(record: Result | Failure, training: Training, study: Study, folder: Path) -> str | None:
    """Return the hyper-parameters that differ from what params.yaml and the search give; None if none does.

    (Former results lack values that did not exist yet.)
    """
    try:
        chosen = read_chosen(folder / chosen_path(training), training) if training.chosen else None
    except UserError as error:
        return f"the values that the search chose cannot be read: {error}"
    now = composed(study, training, chosen).model_dump(mode="json")
    return say_changes(now, record.hyperparameters)


def say_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the values that differ, among those that both have, such as `rho 0.25 -> 0.5`; None if none does."""
    changed = [name for name, value in after.items() if name in before and before[name] != value]
    return ", ".join(f"{name} {before[name]!r} -> {after[name]!r}" for name in changed) or None


def other_score(result: Result, predictions: Mapping[str, np.ndarray], labels: Labels | None) -> str | None:
    """Return why a result's scores are not those of its predictions; None if they are, or labels are not here."""
    task = get_task(result.task)
    if labels is None:
        return None
    found: dict[str, float] = {}
    for split, suffix in task.evaluation.items():
        if split not in predictions or len(predictions[split]) != len(labels[split]):
            shapes = {name: len(array) for name, array in predictions.items()}
            return f"predictions for {shapes or 'no rows'}; the dev set has {len(labels[split])} of {split}"
        try:
            metrics = compute_metrics(task, predictions[split], labels[split])
        except UserError as error:
            return str(error)
        found |= {name + suffix: value for name, value in metrics.items()}
    wrong = [
        f"{name} is {result.metrics[name]:.4f}, of the predictions {value:.4f}"
        for name, value in found.items()
        if name in result.metrics and abs(value - result.metrics[name]) > ROUNDING
    ]
    if not wrong and found and abs(_paper_value(result) - result.metric.value) > ROUNDING:
        wrong = [f"metric is {result.metric.value:.4f}, metrics have {_paper_value(result):.4f}"]
    return "; ".join(wrong) or None


def _paper_value(result: Result) -> float:
    task = get_task(result.task)
    return float(np.mean([result.metrics[task.metric + suffix] for suffix in task.evaluation.values()]))
