"""Results made on this machine, compared with the committed ones.

Two trainings of the same values, seed, data and code differ where processors round differently. Their scores agree
*within noise* if they differ by no more than the largest of

- the half-width of the 95 % interval of the paired bootstrap over dev examples, of the score of the one's predictions
  less that of the other's: examples alone can make such a difference;
- 2.8 standard deviations over the seeds of the committed results (z of 95 % times the square root of 2: two seeds
  differ by so much), where there are several: at worst a rerun is like another seed;
- 0.1 points, the last digit that tables print.

Held-out scores, whose predictions are not stored, may differ by that times the square root of the ratio of rows.
Trials, which store none at all, may differ by as much as the trainings of their task. Sparsity and size must be equal,
and so must the epochs with their steps; a held-out score that only one of the two has is a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.report.verdict.committed import is_shallow, last_version
from nxm.report.verdict.provenance import (
    LOCK,
    Code,
    Finding,
    Lock,
    Status,
    is_code,
    md5_of,
    other_score,
    other_values,
    read_lock,
    read_record,
    say_changes,
    wrong_place,
)
from nxm.report.verdict.rescored import find_labels, row_counts, scorer
from nxm.study.bootstrap import DRAWS, Labels, interval
from nxm.study.plan import Training, trainings
from nxm.study.results import (
    TIMES,
    Failure,
    Result,
    bootstrap_path,
    floor_path,
    predictions_path,
    read_chosen,
    read_floor,
    read_predictions,
    result_path,
)
from nxm.study.settings import Study

Scorer = Callable[[Mapping[str, np.ndarray]], np.ndarray]
PRINTED = 0.1  # percent points: the last digit of tables
TWO_SEEDS = 1.96 * sqrt(2)
BENCH = "results/bench/"  # files of a device, which name no study
TIMED = ("results/benchmark.json", "results/deployment/", BENCH)


@dataclass(frozen=True)
class Comparison:
    """One study here and as committed.

    Attributes:
        folder: the study's folder.
        committed: a copy of what a revision has of the folder.
        root, revision, prefix: to look for files in earlier commits; `prefix` leads from the root to the folder.
    """

    study: Study
    root: Path
    folder: Path
    committed: Path
    revision: str
    prefix: str

    @cached_property
    def planned(self) -> dict[str, Training]:
        """Trainings by the path of their results below the folder."""
        return {result_path("", training).as_posix(): training for training in trainings(self.study)}

    @cached_property
    def lock(self) -> Lock:
        return read_lock(self.folder / LOCK)

    @cached_property
    def former_lock(self) -> Lock:
        return read_lock(self.committed / LOCK)

    @cached_property
    def _code(self) -> Code:
        return Code(self.root, self.folder)

    @cached_property
    def changed(self) -> list[str]:
        """Files of results/ that are not byte for byte the committed ones, without those that nobody has."""
        return [name for name in self.names if _bytes(self.folder / name) != _bytes(self.committed / name)]

    @cached_property
    def names(self) -> list[str]:
        """Files of results/ here or committed, relative to the folder."""
        found = {
            path.relative_to(folder).as_posix()
            for folder in (self.folder, self.committed)
            for path in (folder / "results").rglob("*")
            if path.is_file() and path.suffix in (".json", ".npz")
        }
        return sorted(found)

    def findings(self) -> list[Finding]:
        """Return the verdict on every result: a training's predictions count with its results file."""
        changed = set(self.changed)
        if changed:
            try:
                _ = self.lock, self.former_lock
            except UserError as error:
                return self._without_lock(changed, error)
        trained = [name for name in self.names if name in self.planned]
        others = [name for name in self.names if name not in trained and not self._is_predictions(name)]
        found = []
        for name in trained:
            if not changed & {name, predictions_path(name).as_posix()}:
                found.append(self._finding(name, Status.COMMITTED))
            else:
                found.append(self._training(name))
        found = self._judge_unpredicted(found)
        return found + [self._other(name, name in changed) for name in others]

    def _without_lock(self, changed: set[str], error: UserError) -> list[Finding]:
        """Return the verdict where a dvc.lock is damaged: no changed file can be trusted."""
        words = str(error).replace(f"{self.committed}/", "the committed ").replace(f"{self.folder}/", "")
        found = [self._finding(LOCK, Status.DAMAGED, words)]
        for name in self.names:
            if name not in changed:
                found.append(self._finding(name, Status.COMMITTED))
            elif not (self.folder / name).is_file():
                found.append(self._finding(name, Status.MISSING, "it is committed, but not here"))
            else:
                found.append(self._finding(name, Status.EDITED, f"{LOCK}, which would say who made it, is damaged"))
        return found

    def _is_predictions(self, name: str) -> bool:
        return name.endswith(".npz") and Path(name).with_suffix(".json").as_posix() in self.planned

    def _finding(self, name: str, status: Status, words: str = "", **numbers: float | None) -> Finding:
        return Finding(self.study.study, name, status, words, **numbers)

    # --- trainings --------------------------------------------------------------------------------------------------

    def _training(self, name: str) -> Finding:
        path, training = self.folder / name, self.planned[name]
        stored = training.compared and not training.trial
        if not path.is_file():
            return self._finding(name, Status.MISSING, "it is committed, but not here")
        try:
            record = read_record(path)
            predictions = read_predictions(predictions_path(path)) if stored else {}
        except UserError as error:
            lost = not predictions_path(path).is_file() and stored
            return self._finding(name, Status.MISSING if lost else Status.DAMAGED, _shortened(error, self.folder))
        if words := wrong_place(record, self.folder, path, self.study):
            return self._finding(name, Status.FOREIGN, words)
        former = self._former(name, stored)
        scores = {"score": _score(record), "committed": None if isinstance(former, str) else _score(former[0])}
        if words := other_values(record, training, self.study, self.folder):
            return self._finding(name, Status.VALUES, f"not the values of params.yaml: {words}", **scores)
        if problem := self._other_origin(name, stored):
            return replace(problem, **scores)
        labels = self._labels(training.task) if stored else None
        if isinstance(record, Result) and stored and (words := other_score(record, predictions, labels)):
            return self._finding(name, Status.EDITED, words, **scores)
        if isinstance(former, str):
            return self._finding(name, Status.NEW, former, **scores)
        return self._compared(name, training, record, predictions, *former)

    def _other_origin(self, name: str, stored: bool) -> Finding | None:
        """Compare bytes with dvc.lock, and code and data with the committed dvc.lock and the code here."""
        for own in (name, *([predictions_path(name).as_posix()] if stored else [])):
            if own not in self.lock.outs:
                return self._finding(name, Status.EDITED, f"{LOCK} does not know {own}: no stage here made it")
            if self.lock.outs[own] != md5_of(self.folder / own):
                words = f"{own} is not the file that its stage made, according to {LOCK}"
                return self._finding(name, Status.EDITED, f"{words} (or a run is at work)")
        now, former = self.lock.makers[name], self.former_lock.makers.get(name)
        if since := self._code.changed(now):
            return self._finding(name, Status.CODE, f"the code has changed since it was made: {', '.join(since)}")
        if former is None:
            return None
        differing = [dep for dep in sorted(now.keys() | former.keys()) if now.get(dep) != former.get(dep)]
        if code := [dep for dep in differing if is_code(dep)]:
            return self._finding(name, Status.CODE, f"committed with other code: {', '.join(code)}")
        if data := [dep for dep in differing if dep.startswith("data/")]:
            return self._finding(name, Status.DATA, f"committed with other data: {', '.join(data)}")
        return None

    def _former(self, name: str, stored: bool) -> str | tuple[Result | Failure, dict[str, np.ndarray], str]:
        """Return the committed record, its predictions and a note on its commit; or why there is none."""
        note = ""
        for own in (name, *([predictions_path(name).as_posix()] if stored else [])):
            place = self.committed / own
            if place.is_file():
                continue
            version = last_version(self.root, self.revision, self.prefix + own)
            if version is None:
                return "no commit has it" + (" of this shallow clone" if is_shallow(self.root) else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(version[1])
            note = f"last committed in {version[0][:7]}"
        try:
            record = read_record(self.committed / name)
            predictions = read_predictions(predictions_path(self.committed / name)) if stored else {}
        except UserError as error:
            return f"the committed file is damaged: {_shortened(error, self.committed)}"
        return record, predictions, note

    def _compared(
        self,
        name: str,
        training: Training,
        record: Result | Failure,
        predictions: Mapping[str, np.ndarray],
        former: Result | Failure,
        before: Mapping[str, np.ndarray],
        note: str,
    ) -> Finding:
        numbers = {"score": _score(record), "committed": _score(former)}
        if isinstance(record, Failure) or isinstance(former, Failure):
            same = isinstance(record, Failure) and isinstance(former, Failure)
            words = note if same else "it failed on one side alone: " + (_failure(record) or _failure(former))
            return self._finding(name, Status.EQUAL if same else Status.DIFFERENT, words, **numbers)
        if words := say_changes(former.hyperparameters, record.hyperparameters):
            return self._finding(name, Status.VALUES, f"committed with other values: {words}", **numbers)
        if words := self._other_data(record, former):
            return self._finding(name, Status.DATA, words, **numbers)
        if words := _other_size(record, former) or _other_course(record, former):
            return self._finding(name, Status.DIFFERENT, words, **numbers)
        words = "; ".join(filter(None, [note, _other_circumstances(record, former)]))
        if _essence(record) == _essence(former) and _same_arrays(predictions, before):
            return self._finding(name, Status.EQUAL, words, **numbers)
        limit = self._limit(training, predictions, before)
        finding = self._finding(name, Status.NOISE, words, **numbers, limit=limit)
        return finding if limit is None else _judged(finding, record, former)

    def _other_data(self, record: Result, former: Result) -> str | None:
        start = record.hyperparameters.get("start", "pretrained")
        fetched = start == "pretrained" or (start == "student" and self.study.student.source != "teacher")
        names = ["data_sha256", "train_examples", "dev_examples", "heldout_examples"]
        names += ["weights_sha256"] if fetched else []  # else they were trained here
        ours, theirs = record.provenance, former.provenance
        differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
        if not differing:
            return None
        versions = say_changes(theirs.versions, ours.versions)
        why = f" (or the same rows, written by other versions: {versions})" if versions else ""
        return f"made from other data or weights: {', '.join(differing)} differ{why}"

    def _limit(
        self, training: Training, predictions: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]
    ) -> float | None:
        """Return the difference up to which two scores agree within noise; None where no predictions are stored."""
        if not predictions:
            return None
        limits = [PRINTED, TWO_SEEDS * self._spread(training)]
        draw = self._scorer(training.task)
        if draw is not None and _same_shapes(predictions, before):
            low, high = interval(draw(predictions) - draw(before))
            limits.append((high - low) / 2)
        return max(limits)

    def _scorer(self, task: str) -> Scorer | None:
        """Return the function that scores predictions on resampled dev examples; None if their labels are not here."""
        if task not in self._scorers:
            labels = self._labels(task)
            self._scorers[task] = None if labels is None else resampling_scorer(task, labels)
        return self._scorers[task]

    @cached_property
    def _scorers(self) -> dict[str, Scorer | None]:
        return {}

    def _spread(self, training: Training) -> float:
        """Return the standard deviation over seeds of the committed scores of a training; 0.0 with one seed."""
        siblings = [
            self.committed / name
            for name, other in self.planned.items()
            if (other.task, other.name, other.trial) == (training.task, training.name, training.trial)
        ]
        scores = []
        for path in filter(Path.is_file, siblings):
            try:
                scores.append(_score(read_record(path)))
            except UserError:  # named where this file itself is compared
                continue
        known = [score for score in scores if score is not None]
        return float(np.std(known, ddof=1)) if len(known) > 1 else 0.0

    def _judge_unpredicted(self, found: list[Finding]) -> list[Finding]:
        """Judge trainings without predictions by the largest limit of their task, or by the seeds' spread alone."""
        judged = []
        for finding in found:
            if finding.status is not Status.NOISE or finding.limit is not None:
                judged.append(finding)
                continue
            training = self.planned[finding.place]
            others = [
                other.limit
                for other in found
                if other.limit is not None and self.planned[other.place].task == training.task
            ]
            limit = max([PRINTED, TWO_SEEDS * self._spread(training), *others])
            finding = replace(finding, limit=limit)
            pair = [read_record(folder / finding.place) for folder in (self.folder, self.committed)]
            judged.append(_judged(finding, *pair))  # type: ignore[arg-type]
        return judged

    def _labels(self, task: str) -> Labels | None:
        if task not in self._found_labels:
            self._found_labels[task] = find_labels(self.root, self.folder, get_task(task))
        return self._found_labels[task]

    @cached_property
    def _found_labels(self) -> dict[str, Labels | None]:
        return {}

    # --- other files ------------------------------------------------------------------------------------------------

    def _other(self, name: str, changed: bool) -> Finding:
        """Return the verdict on a file that is no training's: the search's choice, the bootstrap, measured times."""
        if not changed:
            return self._finding(name, Status.COMMITTED)
        path = self.folder / name
        if not path.is_file():
            return self._finding(name, Status.MISSING, "it is committed, but not here")
        if name not in self.lock.outs:
            known = (self.committed / name).is_file()
            words = f"{LOCK} does not know it" + ("" if known else ": no stage of this study makes it")
            return self._finding(name, Status.EDITED if known else Status.UNPLANNED, words)
        if self.lock.outs[name] != md5_of(path):
            return self._finding(name, Status.EDITED, f"not the file that its stage made, according to {LOCK}")
        try:
            return self._derived(name, path)
        except UserError as error:
            return self._finding(name, Status.DAMAGED, _shortened(error, self.folder))

    def _derived(self, name: str, path: Path) -> Finding:
        if name.startswith(TIMED):
            content = _read_object(path)
            if not name.startswith(BENCH) and content.get("study") != self.study.study:
                return self._finding(name, Status.FOREIGN, f"a result of study {content.get('study')}")
            return self._finding(name, Status.TIMES, "measured here; times are not compared")
        if not (self.committed / name).is_file():
            return self._finding(name, Status.NEW, f"{self.revision[:7]} does not have it")
        for task in self.study.tasks:
            if name == bootstrap_path("", task).as_posix():
                ours, theirs = (read_predictions(folder / name) for folder in (self.folder, self.committed))
                gap = max(
                    (float(np.abs(ours[run] - theirs[run]).max()) for run in ours.keys() & theirs.keys()), default=0
                )
                words = f"draws of what was made here, {gap:.2f} points apart at most; the claims are judged by them"
                return self._finding(name, Status.EQUAL if gap == 0 else Status.NOISE, words)
            if name == floor_path("", task).as_posix():
                same = read_floor(path) == read_floor(self.committed / name)
                return self._finding(name, Status.EQUAL if same else Status.DATA, "the best constant answer")
        if name.startswith("results/chosen/"):
            task, run = Path(name).parts[-2], Path(name).stem
            training = Training(task, run, self.study.seeds[0])
            ours, theirs = (read_chosen(folder / name, training) for folder in (self.folder, self.committed))
            words = say_changes(theirs, ours)
            return self._finding(name, Status.DIFFERENT if words else Status.EQUAL, words or "")
        return self._finding(name, Status.UNPLANNED, "no stage of this study makes it")


def resampling_scorer(task: str, labels: Labels, draws: int = DRAWS) -> Scorer:
    """Return a function from predictions to their score in each of some draws of the dev examples, (draws,).

    The draws are the same for all predictions, so that the difference of two scores is a paired one. With several
    evaluation splits the score is their mean.
    """
    known, random = get_task(task), np.random.default_rng(0)
    by_split = {}
    for split in known.evaluation:
        counts = np.stack([row_counts(random, len(labels[split])) for _ in range(draws)]).astype(float)
        by_split[split] = scorer(known, np.asarray(labels[split]), counts)
    return lambda predictions: np.mean([score(predictions[split]) for split, score in by_split.items()], axis=0)


def _judged(finding: Finding, record: Result, former: Result) -> Finding:
    """Return a finding with the status that its limit gives."""
    assert finding.limit is not None
    words = [finding.words] if finding.words else []
    different = abs(record.metric.value - former.metric.value) > finding.limit
    if record.heldout is not None and former.heldout is not None:
        rows = record.provenance.dev_examples / max(record.provenance.heldout_examples, 1)
        gap, limit = record.heldout.value - former.heldout.value, finding.limit * sqrt(max(rows, 1.0))
        if abs(gap) > limit:
            different = True
            words.append(f"held out {gap:+.2f} points, noise is {limit:.2f}")
    status = Status.DIFFERENT if different else Status.NOISE
    return replace(finding, status=status, words="; ".join(words))


def _essence(result: Result) -> dict[str, object]:
    """Return all of a result that repeats to the bit on an equal machine: no times, machine and versions."""
    values = result.model_dump(mode="json", exclude={*TIMES, "hyperparameters"})
    kept = {"data_sha256", "weights_sha256", "model_sha256", "precision"}
    return values | {"provenance": {name: values["provenance"][name] for name in sorted(kept)}}


def _other_size(record: Result, former: Result) -> str | None:
    ours, theirs = record.sparsity.model_dump(), former.sparsity.model_dump()
    exact = {name: value for name, value in theirs.items() if name not in ("density", "nonzero_parameters")}
    words = say_changes(exact | former.model.model_dump(), ours | record.model.model_dump())
    if words is None and abs(ours["density"] - theirs["density"]) > 1e-4:  # a weight may be 0 by chance
        words = f"density {theirs['density']} -> {ours['density']}"
    return words


def _other_course(record: Result, former: Result) -> str | None:
    """Return why one of two results has scores or epochs that the other lacks; None if both have the same ones."""
    if (record.heldout is None) != (former.heldout is None):
        has, lacks = ("the committed one", "this one") if record.heldout is None else ("this one", "the committed one")
        return f"{has} has a held-out score, {lacks} has none"
    if len(record.epochs) != len(former.epochs):
        return f"{len(record.epochs)} epochs, the committed one has {len(former.epochs)}"
    for ours, theirs in zip(record.epochs, former.epochs, strict=True):
        if (ours.epoch, ours.step) != (theirs.epoch, theirs.step):
            return f"epoch {theirs.epoch:g} at step {theirs.step} -> epoch {ours.epoch:g} at step {ours.step}"
    return None


def _other_circumstances(record: Result, former: Result) -> str:
    """Return what differs without being a result's fault, and may explain a difference.

    That is machine, precision and versions, and sets by matrix, which tiny differences of measured losses may decide.
    """
    theirs, ours = (
        {"cpu": one.machine.cpu, "device": one.machine.device, "precision": one.precision} | one.versions
        for one in (former.provenance, record.provenance)
    )
    changes = say_changes(theirs, ours)
    words = [f"made with {changes}"] if changes else []
    ours, theirs = (
        {} if one.allocation is None else {own.matrix: own.choice for own in one.allocation.matrices}
        for one in (record, former)
    )
    if other := [name for name in theirs if ours.get(name) != theirs[name]]:
        words.append(f"{len(other)} of {len(theirs)} matrices have another set, first {other[0]}")
    return "; ".join(words)


def _score(record: Result | Failure) -> float | None:
    return record.metric.value if isinstance(record, Result) else None


def _failure(record: Result | Failure) -> str:
    return record.failure if isinstance(record, Failure) else ""


def _same_shapes(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    return {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}


def _same_arrays(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    return _same_shapes(ours, theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object of JSON")
    return content


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _shortened(error: UserError, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "")
