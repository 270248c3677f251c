"""The settings of a study: params.yaml as frozen, validated objects.

An unknown key is an error that names it and the nearest known one, so a mistyped hyper-parameter is never ignored.

A run is composed of a start, a teacher, a constraint set, a method and their values. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, ValidationError, create_model, model_validator

from nxm.activations.settings import Activations
from nxm.config import (
    Count,
    Distinct,
    NonNegative,
    Positive,
    PositiveInt,
    RegularExpression,
    Seed,
    Settings,
    Share,
    explain_all,
    listed,
    read_yaml,
)
from nxm.data.settings import Prepare, Source
from nxm.data.tasks import TASKS, get_task
from nxm.distillation.settings import Distillation
from nxm.errors import UserError
from nxm.methods import METHODS, settings_class, takes_set

RunName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
VariantName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*/[a-z0-9][A-Za-z0-9._-]*$")]
Seeds = Annotated[list[Seed], Distinct]
Tryable = str | int | float | bool | None  # what a trial can be named after
Values = Annotated[list[Tryable], Field(min_length=1), Distinct]  # to try
_REPORT = Path(__file__).parents[1] / "report"  # its folders `figures` and `tables` have a module for each
STARTS = ("pretrained", "student")  # or the name of a run


class Targets(Settings):
    """The Linear layers of the Transformer blocks to compress: regular expressions on the module's name."""

    include: Annotated[list[RegularExpression], Distinct] = []  # empty: all of them
    exclude: Annotated[list[RegularExpression], Distinct] = []


class Trainer(Settings):
    """The settings that all trainings of the study share."""

    warmup_ratio: Share = 0.1
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    mean_label_bias: bool = True  # regression: the head's bias starts at the mean label, which saves the first epoch
    evaluate_every: PositiveInt = 1  # epochs
    eval_batch_size: PositiveInt = 64


class Allocate(Settings):
    """A set for each matrix, chosen by measured sensitivity under a budget (`nxm.methods.allocation`).

    It is measured when a training starts, on `examples` rows of the training split, evenly spread: as the distance to
    the teacher's logits where the run has a teacher, else as the task's loss.
    """

    bits: Positive  # the budget: stored bits per weight over all targets, with codes, positions and scales
    # Sets to choose from, in the notation of `set`; "dense" leaves a matrix dense, at 32 bits
    choices: Annotated[list[str], Field(min_length=2), Distinct]
    examples: PositiveInt = 256

    def __str__(self) -> str:
        """Return it as the set of a run: `mixed, 1.8 bits`."""
        return f"mixed, {self.bits:g} bits"


def _form_of_set(value: Any) -> str:
    return "member-allocation" if isinstance(value, Mapping | Allocate) else "member-text"


# The notation of a set such as "2:4 int4", or {bits: 1.8, choices: ["2:4 int4", int4]}
SetOfRun = Annotated[
    Annotated[str, Tag("member-text")] | Annotated[Allocate, Tag("member-allocation")], Discriminator(_form_of_set)
]


class Run(Settings):
    """One run of a study on one task: a start, a teacher, a set, a method, and their values.

    The method's values, such as those of `nxm.methods.admm.settings`, are further attributes; `method_settings` is the
    object that the method takes.
    """

    method: str | None = None  # null: fine-tuning without a constraint
    # The constraint set: "2:4", "50 %"; or a set for each matrix, `Allocate`; null for a method without one
    set: SetOfRun | None = None
    start: str = "pretrained"  # the pretrained weights, the student, or the trained model of another run
    teacher: str | None = None  # the run whose trained model teaches; null: none
    epochs: Count  # 0: the start, projected on the set and not trained
    learning_rate: Positive
    batch_size: PositiveInt  # global, over all processes
    distillation: Distillation | None = None  # weights of the terms of the loss with a teacher
    # during training; null: the model's own
    dropout: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] | None = None
    noise: Share = 0.0  # share of tokens replaced in half of each batch; the teacher labels the changed sentences
    # the inputs of the matrices rounded to integers as well; null: real
    activations: Annotated[Activations | None, Field(exclude_if=lambda own: own is None)] = None
    permute: bool = False  # reorder inner channels first, so that N:M retains more (`nxm.models.permute`)

    @property
    def method_settings(self) -> Settings | None:
        """The method's values as its settings object; None without a method."""
        if self.method is None:
            return None
        kind = settings_class(self.method)
        return kind.model_validate({name: getattr(self, name) for name in kind.model_fields})

    @model_validator(mode="after")
    def _method_and_set_belong_together(self) -> Run:
        if self.method is not None and not takes_set(self.method):
            if self.set is not None:
                raise ValueError(
                    f"set = '{self.set}': method '{self.method}' takes no set, since it removes whole units: leave the "
                    "set out; a further run that starts from this one can train what is left into it"
                )
        elif (self.method is None) != (self.set is None):
            raise ValueError(f"a method needs a set and a set needs a method: method {self.method}, set {self.set}")
        if self.permute and self.set is None:
            raise ValueError("permute = true prepares for a set, and this run has none: set false")
        return self

    @model_validator(mode="after")
    def _ranges_of_activations_are_tracked(self) -> Run:
        if self.activations is not None and self.epochs == 0:
            raise ValueError("activations need training, which tracks their ranges, and epochs = 0: leave them out")
        if self.activations is not None and self.method == "structured":
            raise ValueError(
                "activations with method 'structured': it ends with another, smaller model; give activations to a run "
                "that starts from this one"
            )
        return self

    @model_validator(mode="after")
    def _an_allocation_is_measured_on_a_trained_model(self) -> Run:
        if isinstance(self.set, Allocate) and self.start == "pretrained":
            raise ValueError(
                "set: sensitivities are measured on the model that the run starts from, and 'pretrained' has no "
                "trained head: start from a run, such as dense"
            )
        return self

    @model_validator(mode="after")
    def _teacher_teaches(self) -> Run:
        if (self.teacher is None) != (self.distillation is None):
            raise ValueError(
                "a teacher needs 'distillation' (the weights of the loss's terms) and 'distillation' needs a teacher: "
                f"teacher {self.teacher}, distillation {'null' if self.distillation is None else 'given'}"
            )
        if self.noise > 0 and self.teacher is None:
            raise ValueError(f"noise = {self.noise:g} needs a teacher to answer for the changed sentences: set 0")
        return self


@functools.cache
def run_class(method: str | None) -> type[Run]:
    """Return the class of runs with a method: `Run` with the method's values."""
    if method is None:
        return Run
    bases: Any = (settings_class(method), Run)
    kind: Any = (Literal[method], method)
    return create_model(f"Run_{method}", __base__=bases, method=kind)


def parse_run(values: Mapping[str, Any]) -> Run:
    """Return a run from its values on one task.

    Raises:
        ValidationError: a key is unknown or a value impossible.
        ValueError: the method is unknown.
    """
    method = values.get("method")
    if method is not None and method not in METHODS:
        raise ValueError(f"method '{method}' is unknown; known are {', '.join(METHODS)}, or null for fine-tuning alone")
    return run_class(method).model_validate(values)


class Variant(Settings):
    """A run with some values changed, whose result is saved and whose model is not.

    It is compared with its own run, or with the variant or run that `against` names. With null it is compared with
    nothing, as a point of a sweep, and saves no predictions.
    """

    values: dict[str, JsonValue]
    against: str | None = "run"  # "run": the variant's own
    tasks: Annotated[list[str], Field(min_length=1), Distinct] | None = None  # null: all tasks of the study
    seeds: Annotated[Seeds, Field(min_length=1)] | None = None  # null: all seeds of the study


class Tried(Settings):
    """Values to try for one run: every combination is a trial. `large` replaces them on MNLI, QNLI and SST-2."""

    values: dict[str, Values]
    large: dict[str, Values] | None = None

    def on(self, task: str) -> dict[str, list[Tryable]]:
        """Return the values to try on a task."""
        return self.large if self.large is not None and get_task(task).group == "large" else self.values

    def combinations(self, task: str) -> list[dict[str, Tryable]]:
        """Return every combination of the values to try on a task."""
        values = self.on(task)
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


class Search(Settings):
    """Values to try, by run. The run takes the values of the trial with the best score.

    `by` names the score: `dev`, as in the paper, which is optimistic; `heldout`, on rows of the training split that no
    run trains on; null runs the trials and leaves the run's values unchanged. `seeds` are those of the trials; if they
    differ from the study's, no values are chosen by a seed's luck.
    """

    by: Literal["dev", "heldout"] | None = None
    seeds: Seeds = []
    runs: dict[RunName, Tried] = {}

    @model_validator(mode="after")
    def _has_seeds(self) -> Search:
        if bool(self.seeds) != bool(self.runs):
            raise ValueError("'search' needs both 'seeds' and 'runs', or neither")
        return self


class Benchmark(Settings):
    """The numbers of timings of training steps and projections; see `nxm.measure.step`."""

    seeds: Annotated[Seeds, Field(max_length=1)]  # of the dense model to continue training; []: no measurement
    warmup: PositiveInt
    repeats: PositiveInt


Pair = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


class Bench(Settings):
    """Devices to measure, what and how long; see `nxm.measure.bench`."""

    devices: Annotated[list[Literal["cpu", "cuda"]], Distinct]  # []: none
    parts: Annotated[list[Literal["proof", "card", "products", "encoders", "blocks"]], Field(min_length=1), Distinct]
    budget: Positive  # seconds


MODELS_DEPLOYED = 10  # at most: the stage's dependencies have as many places


class Deployment(Settings):
    """Forms of trained models and devices to measure; see `nxm.measure.forms`."""

    devices: Annotated[list[Literal["cpu", "cuda"]], Distinct]  # []: none
    seeds: Annotated[Seeds, Field(min_length=1, max_length=1)]  # of the models measured
    models: Annotated[list[str], Field(max_length=MODELS_DEPLOYED), Distinct]  # runs; dense is what they compare with
    forms: Annotated[
        list[Literal["fp32", "bf16", "fp16", "compiled", "onnx", "int8", "openvino", "openvino_int8"]], Distinct
    ]
    batch_sizes: Annotated[list[PositiveInt], Distinct]
    lengths: Annotated[list[PositiveInt], Distinct]  # tokens
    scores: bool  # measure the score on dev in each form too
    warmup: PositiveInt
    repeats: PositiveInt


class Study(Settings):
    """The content of params.yaml."""

    root: str = "."  # path from the study's folder to the repository's root
    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    tasks: Annotated[list[str], Field(min_length=1), Distinct]
    seeds: Seeds  # []: only variants and trials run
    weights: Source
    student: Source
    data: Source
    prepare: Prepare
    targets: Targets
    trainer: Trainer
    runs: dict[RunName, dict[str, Any]]  # values by run; its `by_task` has those that differ on a task
    variants: dict[VariantName, Variant] = {}
    search: Search = Search()
    benchmark: Benchmark
    bench: Bench
    deployment: Deployment
    figures: Annotated[list[str], Distinct]
    tables: Annotated[list[str], Distinct]

    def run(self, name: str, task: str, changes: Mapping[str, Any] | None = None) -> Run:
        """Return a run on a task: its values, replaced by those for the task and then by `changes`.

        Args:
            changes: the values of a variant or of a trial.

        Raises:
            UserError: the run is not in the study, a key is unknown or a value impossible.
        """
        if name not in self.runs:
            raise UserError(f"run '{name}' is not in the study {self.study}; its runs are {', '.join(self.runs)}")
        values = dict(self.runs[name])
        by_task = values.pop("by_task", {})
        values |= by_task.get(task, {})
        values |= changes or {}
        where = f"params: run '{name}' on {task}"
        try:
            run = parse_run(values)
            self._refuse_short_training(run, task)
            if refuse := getattr(run, "refuse_targets", None):  # of a method that takes no single matrices
                refuse(self.targets.include, self.targets.exclude)
            return run
        except ValidationError as error:
            kind = run_class(values.get("method"))
            raise UserError(explain_all(where, error, kind)) from None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None

    def _refuse_short_training(self, run: Run, task: str) -> None:
        """Raise ValueError if a run has no step, or its method no projection, on the study's examples of a task."""
        rows = self.train_rows(task)
        if rows is None:
            return
        if run.batch_size > rows:
            raise ValueError(f"batch_size = {run.batch_size} is more than the {rows} training examples: set it lower")
        if isinstance(run.set, Allocate) and run.set.examples > rows:
            raise ValueError(
                f"set.examples = {run.set.examples} is more than the {rows} training examples: set it lower"
            )
        steps = rows // run.batch_size  # an incomplete last batch is left out
        if refuse := getattr(run, "refuse_short_training", None):  # of a method that projects now and then
            refuse(run.epochs * steps, steps)

    def train_rows(self, task: str) -> int | None:
        """Return the number of a task's training examples; None where the data decides, which may be a folder's."""
        most = self.prepare.most_examples(task)
        if self.data.source == "local":
            return most
        left = get_task(task).rows["train"] - self.prepare.heldout_examples
        return min(most or left, left)

    def against(self, variant: str) -> str | None:
        """Return the name of the variant or run that a variant is compared with; None for no comparison."""
        named = self.variants[variant].against
        return variant.partition("/")[0] if named == "run" else named

    def tasks_of(self, variant: str) -> list[str]:
        """Return the tasks of a variant."""
        return self.variants[variant].tasks or self.tasks

    def start_seed(self, seed: int) -> int:
        """Return the seed of the start and teacher of a training: its own seed, or the study's first.

        The seeds of trials are not the study's, and all trials start from one model.
        """
        return seed if seed in self.seeds or not self.seeds else self.seeds[0]

    @model_validator(mode="after")
    def _tasks_are_known(self) -> Study:
        named = {
            "tasks": (self.tasks, list(TASKS)),
            "prepare.train_examples_by_task": ([*self.prepare.train_examples_by_task], self.tasks),
            **{f"variants.{name}.tasks": (own.tasks or [], self.tasks) for name, own in self.variants.items()},
        }
        for key, (tasks, known) in named.items():
            if strange := set(tasks) - set(known):
                raise ValueError(f"'{key}' names {listed(strange)}; known here are {', '.join(known)}")
        for name, values in self.runs.items():
            by_task = values.get("by_task", {})
            if not isinstance(by_task, dict) or not all(isinstance(own, dict) for own in by_task.values()):
                raise ValueError(f"'runs.{name}.by_task' must be mappings of values by task, not {by_task!r}")
            if strange := set(by_task) - set(TASKS):
                raise ValueError(f"'runs.{name}.by_task' names {listed(strange)}; known are {', '.join(TASKS)}")
        for task in self.tasks:
            rows = get_task(task).rows["train"]
            if self.data.source != "local" and self.prepare.heldout_examples >= rows:
                raise ValueError(
                    f"prepare.heldout_examples = {self.prepare.heldout_examples}, but {task} has {rows} training rows: "
                    "hold out fewer"
                )
        if self.weights.source == "teacher" or self.data.source == "teacher":
            raise ValueError("source 'teacher' is for 'student' alone")
        return self

    @model_validator(mode="after")
    def _figures_and_tables_are_known(self) -> Study:
        for kind, names in {"figures": self.figures, "tables": self.tables}.items():
            known = {path.stem for path in (_REPORT / kind).glob("*.py")} - {"__init__"}
            if strange := set(names) - known:
                raise ValueError(f"'{kind}' names {listed(strange)}; known are {listed(known)}")
        return self

    @model_validator(mode="after")
    def _runs_are_possible(self) -> Study:
        problems = []
        for name, task in itertools.product(self.runs, self.tasks):
            try:
                run = self.run(name, task)
            except UserError as error:
                problems += _reasons(error)
                continue
            needed = {"start": run.start} if run.start not in STARTS else {}
            needed |= {"teacher": run.teacher} if run.teacher else {}
            for key, other in needed.items():
                if other not in self.runs or other == name:
                    known = listed(set(self.runs) - {name})
                    also = f" or {' or '.join(STARTS)}" if key == "start" else ""
                    problems.append(f"run '{name}': {key} = '{other}' is no other run of the study ({known}){also}")
            if run.start == "student" and self.student.source == "teacher" and run.teacher is None:
                problems.append(f"run '{name}': the student is made of its teacher's layers, and it has no teacher")
            if isinstance(run.set, Allocate) and run.start == "student" and self.student.source != "teacher":
                problems.append(
                    f"run '{name}': set: sensitivities are measured on the model that the run starts from, and this "
                    "student has no trained head: start from a run, or make the student of the teacher"
                )
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        _refuse_circles({name: self._needs(name) for name in self.runs})
        return self

    def _needs(self, name: str) -> set[str]:
        runs = [self.run(name, task) for task in self.tasks]
        return {other for run in runs for other in (run.start, run.teacher) if other in self.runs}

    @model_validator(mode="after")
    def _deployed_models_are_runs(self) -> Study:
        if self.deployment.devices:
            if strange := set(self.deployment.models) - self.runs.keys():
                raise ValueError(f"deployment.models names {listed(strange)}, which 'runs' does not name")
            if "dense" not in self.deployment.models:
                raise ValueError("deployment.models needs 'dense', with which the others are compared")
        return self

    @model_validator(mode="after")
    def _variants_are_of_runs(self) -> Study:
        for name in self.variants:
            run = name.partition("/")[0]
            if run not in self.runs:
                raise ValueError(f"variant '{name}' is of '{run}', which 'runs' does not name")
            others = (self.variants.keys() | self.runs.keys()) - {name}
            rival = self.against(name)
            if rival is not None and rival not in others:
                raise ValueError(
                    f"variant '{name}': against = '{rival}' is no other variant or run; there are {listed(others)}"
                )
            tasks = self.tasks_of(name)
            if rival in self.variants and (lacking := set(tasks) - set(self.tasks_of(rival))):
                raise ValueError(
                    f"variant '{name}' is compared with '{rival}', which does not run on {listed(lacking)}"
                )
            for task in tasks:
                try:
                    self.run(run, task, self.variants[name].values)
                except UserError as error:
                    raise ValueError(f"variant '{name}': {'; '.join(_reasons(error))}") from None
        return self

    @model_validator(mode="after")
    def _search_has_what_it_needs(self) -> Study:
        if strange := self.search.runs.keys() - self.runs.keys():
            raise ValueError(f"'search' tries values for {listed(strange)}, which 'runs' does not name")
        if self.search.by == "heldout" and not self.prepare.heldout_examples:
            raise ValueError("search.by 'heldout' needs prepare.heldout_examples above 0")
        if self.search.by and not self.search.runs:
            raise ValueError(f"search.by '{self.search.by}' chooses among trials, and 'search.runs' names none")
        for name, tried in self.search.runs.items():
            for task in self.tasks:
                run = self.run(name, task)
                if strange := set(tried.on(task)) - set(type(run).model_fields):
                    raise ValueError(
                        f"'search' tries {listed(strange)} for '{name}', which has {listed(type(run).model_fields)}"
                    )
                for combination in tried.combinations(task):
                    try:
                        self.run(name, task, combination)
                    except UserError as error:
                        raise ValueError(f"'search' for '{name}': {'; '.join(_reasons(error))}") from None
                others = {run.start, run.teacher} & self.runs.keys()
                if others and not self.seeds:
                    raise ValueError(
                        f"'search' tries '{name}', which needs the model of {listed(others)}, and 'seeds' is empty"
                    )
        return self


def _reasons(error: UserError) -> list[str]:
    """Return the lines of an error of `Study.run`, without the file, which the caller names."""
    return [line.removeprefix("params: ") for line in str(error).splitlines()]


def _refuse_circles(needs: Mapping[str, set[str]]) -> None:
    for name in needs:
        reached, todo = set[str](), list(needs[name])
        while todo:
            other = todo.pop()
            if other == name:
                raise ValueError(f"run '{name}' needs its own model, through its start or its teacher")
            if other not in reached:
                reached.add(other)
                todo += needs[other]


def load_study(path: str | Path = "params.yaml") -> Study:
    """Return the study in a params.yaml.

    Raises:
        UserError: the file is missing, is no YAML, or has an unknown key or an impossible value. The message names the
            file, the key, the value and what would be right.
    """
    path = Path(path)
    return parse_study(read_yaml(path), str(path))


def parse_study(values: dict[str, Any], where: str) -> Study:
    """Return a study from its values; `where` names them in messages. Raises UserError as `load_study` does."""
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UserError(explain_all(where, error, Study)) from None


def say_value(value: Any) -> str:
    """Return a value as written in the name of a trial: `0.0003`, `dense`, `null`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return value if isinstance(value, str) else f"{value:g}".replace("+", "")
