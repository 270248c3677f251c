"""A repository of one study whose scores are those of its predictions, with git and a dvc.lock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from nxm import report
from nxm.data.tasks import compute_metrics, get_task
from nxm.files import sha256_file, write_text
from nxm.report import page
from nxm.report.evidence import read_evidence
from nxm.report.html import document
from nxm.report.scores import courses, scores
from nxm.report.table import write_table
from nxm.report.verdict.provenance import md5_of
from nxm.report.verdict.rescored import rescored_draws
from nxm.study.bootstrap import constant_scores
from nxm.study.plan import PLAN, trainings
from nxm.study.results import (
    Result,
    bootstrap_path,
    floor_path,
    place_of,
    predictions_path,
    read_predictions,
    read_result,
    read_study,
    result_path,
    write_floor,
    write_predictions,
    write_result,
)
from nxm.study.settings import load_study
from synthetic_study import make_params, make_result

TASK, ROWS, SEEDS = get_task("stsb"), 200, (0, 1)
NOISE = {"dense": 0.5, "asp": 1.6, "nxm": 0.9}  # of the predictions, which decides the score
OWN, SHARED = "src/nxm/methods/admm.py", "src/nxm/training/run.py"  # code of one method, and of all trainings
TEMPLATE = '# nxm\n\n{{ headline() }}\n\nNxM is {{ above("nxm", "asp") }}; rows: {{ examples("nxm") }}.\n'


class Repository:
    """A study in a folder; `make` writes results as its stages would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.labels = np.random.default_rng(1).uniform(0, 5, ROWS).round(1).astype(np.float32)

    def path(self, run: str, seed: int = 0) -> Path:
        return self.root / f"results/stsb/{run}/seed{seed}.json"

    def predictions(self, run: str, seed: int) -> np.ndarray:
        """Return logits (rows, 1) fp32, the same at every call."""
        noise = np.random.default_rng([seed, *run.encode()]).normal(size=ROWS)
        return (self.labels + NOISE[run] * noise).astype(np.float32)[:, None]

    def make(self, run: str, seed: int, logits: np.ndarray | None = None, **changes: object) -> None:
        """Write a result and its predictions; `changes` replace values of the result."""
        logits = self.predictions(run, seed) if logits is None else logits
        score = compute_metrics(TASK, logits, self.labels)["spearman"]
        values = make_result(run=run, seed=seed, score=score).model_dump(mode="json")
        values["provenance"] |= {"dev_examples": ROWS, "heldout_examples": 50}
        result = Result.model_validate(values | changes)
        write_result(self.path(run, seed), result)
        write_predictions(predictions_path(self.path(run, seed)), {"validation": logits})

    def again(self, run: str, seed: int, shift: float) -> None:
        """Make a result again, as on another machine: predictions differ by `shift` times noise, and all times."""
        noise = np.random.default_rng(seed).normal(size=(ROWS, 1))
        logits = (self.predictions(run, seed) + shift * noise).astype(np.float32)
        self.make(run, seed, logits, wall_seconds=1.0, train_seconds=0.5)

    def derive(self) -> None:
        """Make the bootstrap, tables and scores of the results that are here, and write dvc.lock."""
        labels, drawn = {"validation": self.labels}, {}
        for result in read_study(self.root):
            logits = read_predictions(predictions_path(result_path(self.root, place_of(result))))
            drawn.setdefault(result.name, {})[result.seed] = logits
        write_predictions(bootstrap_path(self.root, "stsb"), rescored_draws(TASK, labels, drawn))
        floor = constant_scores(TASK, labels)
        write_floor(floor_path(self.root, "stsb"), {"stsb": floor["validation"]})
        evidence = read_evidence(self.root)
        write_table(report.load("tables", "table1").make(evidence), self.root / "paper_tables/table1")
        write_text(self.root / "paper_tables/scores.json", scores(evidence))
        write_text(self.root / "paper_tables/courses.csv", courses(evidence))
        document.write(self.root)
        self.lock()

    def lock(self) -> None:
        """Write dvc.lock as if every file here was just made by its stage."""
        stages = {}
        code, data = [OWN, "code/training.json"], "data/source/glue"
        checksums = {SHARED: sha256_file(self.root / SHARED)}
        write_text(self.root / "code/training.json", json.dumps(checksums))
        for training in trainings(load_study(self.root / "params.yaml")):
            if result_path(self.root, training).is_file():
                name = result_path("", training).as_posix()
                outs = [name, predictions_path(name).as_posix()]
                stages[training.dvc_name] = self._entry([*code, data], outs)
        outs = [path.relative_to(self.root).as_posix() for path in (self.root / "results/bootstrap").iterdir()]
        stages["compare@stsb"] = self._entry([data], outs)
        stages["report"] = self._entry(["results"], [document.NAME])
        yaml = YAML()
        with (self.root / "dvc.lock").open("w") as file:
            yaml.dump({"schema": "2.0", "stages": stages}, file)

    def _entry(self, deps: list[str], outs: list[str]) -> dict[str, object]:
        return {
            part: [{"path": name, "hash": "md5", "md5": md5_of(self.root / name)} for name in names]
            for part, names in (("deps", deps), ("outs", outs))
            if all((self.root / name).exists() for name in names)
        }

    def edit(self, run: str, **changes: object) -> None:
        """Change values in a results file by hand."""
        path = self.path(run)
        path.write_text(json.dumps(read_result(path).model_dump(mode="json") | changes))

    def git(self, *words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "results")


def make_repository(root: Path) -> Repository:
    """Write the study into a folder and commit it."""
    made = Repository(root)
    params = make_params("embedded", ("stsb",), SEEDS, list(NOISE), tables=["table1"], figures=[])
    write_text(root / "params.yaml", json.dumps(params, indent=1))
    write_text(root / "dvc.yaml", "stages: {}\n")
    write_text(root / PLAN, "train: {}\n")
    write_text(root / ".gitignore", "/data/\n.cache/\n")
    for path in (OWN, SHARED):
        write_text(root / path, "trains = True\n")
    write_text(root / "docs/README.md.j2", TEMPLATE)
    table = pa.table({"sentence1": ["a"] * ROWS, "sentence2": ["b"] * ROWS, "label": made.labels, "idx": range(ROWS)})
    place = root / "data/source/glue/stsb/validation.parquet"
    place.parent.mkdir(parents=True)
    pq.write_table(table, place)
    for run in NOISE:
        for seed in SEEDS:
            made.make(run, seed)
    made.derive()
    page.write_pages(root)
    made.git("init", "--quiet")
    made.commit()
    return made
