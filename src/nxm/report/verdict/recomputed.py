"""The committed evidence of a study, computed again from the stored predictions, without training and without git.

| what                              | from                                                                      |
|-----------------------------------|---------------------------------------------------------------------------|
| scores of runs and variants       | their predictions and the labels of the dev set                           |
| draws of the bootstrap, constants | the same, by other code (`nxm.report.verdict.rescored`)                   |
| the search's choices              | the scores of the trials                                                  |
| tables, scores.json, courses.csv  | the results files: they are made again, and must be equal to the byte     |
| report.html                       | the same, but for the drawings on it                                      |
| figures, drawings of report.html  | dvc.lock: drawn by the code that is here from the results that are here   |
| README, findings                  | their templates: rendered again, and must be equal to the byte            |

Scores of trials and on held-out rows have no stored predictions: they count as recorded, and dvc.lock shows whether a
file was edited since.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nxm import report
from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.html import document
from nxm.report.scores import courses, scores
from nxm.report.verdict.compare import TIMED
from nxm.report.verdict.provenance import (
    LOCK,
    ROUNDING,
    Code,
    Finding,
    Status,
    md5_of,
    other_score,
    other_values,
    read_lock,
    read_record,
    wrong_place,
)
from nxm.report.verdict.rescored import find_labels, rescored_draws
from nxm.study.bootstrap import Labels, constant_scores
from nxm.study.plan import Training, chosen_path, trainings
from nxm.study.results import (
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
from nxm.study.search import choose
from nxm.study.settings import Study

_TABLES, _FIGURES = "paper_tables", "figures"


@dataclass
class Recomputation:
    """The checks of one study's folder.

    Attributes:
        download: fetch labels from the package index where they are not here.
    """

    study: Study
    root: Path
    folder: Path
    download: bool = True

    def findings(self) -> Iterator[Finding]:
        """Yield the verdict on every file, in the order in which they depend on each other."""
        try:
            self.lock = read_lock(self.folder / LOCK)
        except UserError as error:
            yield self._finding(LOCK, Status.DAMAGED, str(error))
            return
        self.results: dict[Training, Result] = {}
        self.failures: dict[Training, Failure] = {}
        self.predictions: dict[str, dict[str, dict[int, Mapping[str, np.ndarray]]]] = {}  # task, name, seed
        plan = trainings(self.study)
        for training in plan:
            yield from self._training(training)
        for task in self.study.tasks:
            yield from self._bootstrap(task)
        if self.study.search.by is not None:
            for task in self.study.tasks:
                for run in self.study.search.runs:
                    yield from self._choice(task, run)
        known = {result_path("", training).as_posix() for training in plan}
        for path in sorted((self.folder / "results").glob("*/**/seed*.json")):
            name = path.relative_to(self.folder).as_posix()
            if name not in known:
                yield self._finding(name, Status.UNPLANNED, "params.yaml does not name it, so that no table has it")
        yield from self._measurements()
        if self.results or any(name.startswith(TIMED) for name in self.lock.outs):
            yield from self._report()

    def _finding(self, name: str, status: Status, words: str = "", score: float | None = None) -> Finding:
        return Finding(self.study.study, name, status, words, score)

    def _recorded(self, name: str) -> Finding | None:
        """Compare a file with dvc.lock; None if it is the one that its stage made."""
        path = self.folder / name
        if not path.is_file():
            return self._finding(name, Status.MISSING, f"{LOCK} has it") if name in self.lock.outs else None
        if name not in self.lock.outs:
            return self._finding(name, Status.EDITED, f"{LOCK} does not know it: no stage made it")
        if md5_of(path) != self.lock.outs[name]:
            return self._finding(name, Status.EDITED, f"not the file that its stage made, according to {LOCK}")
        return None

    def _other_code(self, name: str) -> Finding | None:
        changed = self._code.changed(self.lock.makers.get(name, {}))
        if not changed:
            return None
        return self._finding(name, Status.CODE, f"made by other code than is here: {', '.join(changed)}")

    @functools.cached_property
    def _code(self) -> Code:
        return Code(self.root, self.folder)

    @functools.cached_property
    def _results_md5(self) -> str:
        return md5_of(self.folder / "results")

    @functools.cached_property
    def _labels(self) -> Callable[[str], Labels | None]:
        return functools.cache(lambda task: find_labels(self.root, self.folder, get_task(task), download=self.download))

    # --- results ----------------------------------------------------------------------------------------------------

    def _training(self, training: Training) -> Iterator[Finding]:
        path = result_path(self.folder, training)
        name = path.relative_to(self.folder).as_posix()
        stored = training.compared and not training.trial
        files = [name, *([predictions_path(name).as_posix()] if stored else [])]
        if not path.is_file() and name not in self.lock.outs:
            return  # planned, and not run yet
        try:
            record = read_record(path)
            predictions = read_predictions(predictions_path(path)) if stored else {}
        except UserError as error:
            there = all((self.folder / file).is_file() for file in files)
            words = str(error).replace(f"{self.folder}/", "")
            yield self._finding(name, Status.DAMAGED if there else Status.MISSING, words)
            return
        if words := wrong_place(record, self.folder, path, self.study):
            yield self._finding(name, Status.FOREIGN, words)
            return
        # what follows is checked with this record, whatever the verdict on it: one fault is one finding
        if isinstance(record, Failure):
            self.failures[training] = record
        else:
            self.results[training] = record
            if stored:
                runs = self.predictions.setdefault(training.task, {})
                runs.setdefault(training.name, {})[training.seed] = predictions
        if words := other_values(record, training, self.study, self.folder):
            yield self._finding(name, Status.VALUES, f"not the values of params.yaml: {words}")
        elif problem := next(filter(None, [*map(self._recorded, files), self._other_code(name)]), None):
            yield problem
        elif isinstance(record, Failure):
            yield self._finding(name, Status.CHECKED, f"failed: {record.failure}")
        else:
            yield self._scored(name, training, record, predictions if stored else None)

    def _scored(
        self, name: str, training: Training, record: Result, predictions: Mapping[str, np.ndarray] | None
    ) -> Finding:
        if predictions is None:
            return self._finding(name, Status.CHECKED, "no predictions are stored", record.metric.value)
        labels = self._labels(training.task)
        if labels is None:
            return self._finding(name, Status.UNCHECKED, self._no_labels(training.task), record.metric.value)
        words = other_score(record, predictions, labels)
        return self._finding(name, Status.EDITED if words else Status.CHECKED, words or "", record.metric.value)

    def _no_labels(self, task: str) -> str:
        label = get_task(task).label
        return f"its score is as recorded: the labels of {label} are not here (put GLUE's tables into .cache/glue)"

    def _bootstrap(self, task: str) -> Iterator[Finding]:
        draws, floor = bootstrap_path(self.folder, task), floor_path(self.folder, task)
        labels = self._labels(task) if draws.is_file() else None
        for path, check in ((draws, self._other_draws), (floor, self._other_floor)):
            name = path.relative_to(self.folder).as_posix()
            if problem := self._recorded(name):
                yield problem
            elif path.is_file():
                try:
                    if labels is None:
                        read_predictions(path) if path == draws else read_floor(path)
                        yield self._finding(name, Status.UNCHECKED, self._no_labels(task))
                        continue
                    words = check(task, path, labels)
                    yield self._finding(name, Status.EDITED if words else Status.CHECKED, words or "")
                except UserError as error:
                    yield self._finding(name, Status.DAMAGED, str(error).replace(f"{self.folder}/", ""))

    def _other_draws(self, task: str, path: Path, labels: Labels) -> str | None:
        stored, found = read_predictions(path), self._drawn(task, labels)
        if stored.keys() != found.keys():
            return f"draws of {_listed(stored.keys() - found.keys())} without predictions, or the other way round"
        gaps = {run: float(np.abs(stored[run] - found[run]).max()) for run in stored}
        wrong = [f"{run} by {gap:.4f} points" for run, gap in gaps.items() if not gap <= ROUNDING]
        return f"draws differ from those of the predictions: {', '.join(wrong)}" if wrong else None

    def _drawn(self, task: str, labels: Labels) -> dict[str, np.ndarray]:
        return rescored_draws(get_task(task), labels, self.predictions.get(task, {}))

    def _other_floor(self, task: str, path: Path, labels: Labels) -> str | None:
        known = get_task(task)
        found = {task + known.evaluation[split]: score for split, score in constant_scores(known, labels).items()}
        stored = read_floor(path)
        same = stored.keys() == found.keys() and all(abs(stored[name] - found[name]) <= ROUNDING for name in found)
        return None if same else f"the best constant answer scores {found}, not {stored}"

    def _choice(self, task: str, run: str) -> Iterator[Finding]:
        path = self.folder / chosen_path(Training(task, run, 0))
        name = path.relative_to(self.folder).as_posix()
        if problem := self._recorded(name):
            yield problem
        elif path.is_file():
            try:
                stored = read_chosen(path, Training(task, run, 0))
            except UserError as error:
                yield self._finding(name, Status.DAMAGED, str(error).replace(f"{self.folder}/", ""))
                return
            by = str(self.study.search.by)
            best = choose(self.study, task, run, self.results.values(), self.failures.values(), by)
            if best is None:
                yield self._finding(name, Status.UNCHECKED, "a trial is missing or could not be checked")
            elif dict(best.values) != stored:
                yield self._finding(name, Status.EDITED, f"the best trial is {best.trial}, with {dict(best.values)}")
            else:
                yield self._finding(name, Status.CHECKED)

    def _measurements(self) -> Iterator[Finding]:
        for name in sorted(out for out in self.lock.outs if out.startswith(TIMED)):
            yield self._recorded(name) or self._finding(name, Status.TIMES, "as recorded")

    # --- what is made from results ----------------------------------------------------------------------------------

    def _report(self) -> Iterator[Finding]:
        try:
            evidence = read_evidence(self.folder)
        except UserError as error:
            yield self._finding(_TABLES, Status.DAMAGED, f"they cannot be made again: {error}")
            return
        for name in self.study.tables:
            made = functools.partial(self._made_table, evidence, name)
            yield from self._equal({f"{_TABLES}/{name}.{ending}": ending for ending in ("md", "csv", "tex")}, made)
        yield from self._equal(
            {f"{_TABLES}/scores.json": "scores", f"{_TABLES}/courses.csv": "courses"},
            lambda: {"scores": scores(evidence), "courses": courses(evidence)},
        )
        for name in self.study.figures:
            for ending in ("pdf", "png"):
                yield self._figure(f"{_FIGURES}/{name}.{ending}")
        yield self._page(evidence)

    def _page(self, evidence: Evidence) -> Finding:
        """Compare report.html with what the results give, apart from its drawings, which count as figures do."""
        path = self.folder / document.NAME
        if not path.is_file():
            return self._finding(document.NAME, Status.MISSING)
        try:
            made = document.render(self.folder, evidence, draw=False)
        except UserError as error:
            return self._finding(document.NAME, Status.DAMAGED, f"it cannot be made again: {error}")
        if document.unchanging(path.read_text(encoding="utf-8", errors="replace")) != document.unchanging(made):
            return self._finding(document.NAME, Status.EDITED, "not what the code makes of the results")
        return self._figure(document.NAME)

    @staticmethod
    def _made_table(evidence: Evidence, name: str) -> dict[str, str]:
        table = report.load("tables", name).make(evidence)
        return {"md": table.markdown(), "csv": table.csv(), "tex": table.latex(name)}

    def _equal(self, files: dict[str, str], make: Callable[[], dict[str, str]]) -> Iterator[Finding]:
        made: dict[str, str] = make()
        for name, key in files.items():
            path = self.folder / name
            if not path.is_file():
                yield self._finding(name, Status.MISSING)
            elif path.read_bytes() != made[key].encode():
                yield self._finding(name, Status.EDITED, "not what the code makes of the results")
            else:
                yield self._finding(name, Status.CHECKED)

    def _figure(self, name: str) -> Finding:
        if not (self.folder / name).is_file():
            return self._finding(name, Status.MISSING)
        if problem := self._recorded(name) or self._other_code(name):
            return problem
        if self.lock.makers[name].get("results") != self._results_md5:
            return self._finding(name, Status.EDITED, f"drawn from other results than are here, according to {LOCK}")
        return self._finding(name, Status.CHECKED)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
