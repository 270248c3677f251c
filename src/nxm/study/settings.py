"""The study's settings: params.yaml as frozen, checked objects.

params.yaml says what runs; this module says what may stand in it. Every key is known here, an unknown one is an
error that names it and the nearest known one, so a mistyped hyper-parameter can never be ignored in silence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, ValidationError, model_validator

from nxm.config import Positive, PositiveInt, Settings, Share, explain, listed, read_yaml
from nxm.data.settings import Prepare, Source
from nxm.distillation.settings import Distillation
from nxm.errors import UserError
from nxm.methods.admm.settings import Admm
from nxm.methods.gradual.settings import Gmp


class Pattern(Settings):
    """N:M by what survives: `n_nonzero` of each `group_size` inputs ("2:4"; the paper writes 4:2)."""

    n_nonzero: PositiveInt
    group_size: PositiveInt

    @model_validator(mode="after")
    def _sparse(self) -> Pattern:
        if self.n_nonzero >= self.group_size:
            raise ValueError(
                f"n_nonzero ({self.n_nonzero}) must be smaller than group_size ({self.group_size}), as in 2 of 4"
            )
        return self


class Targets(Settings):
    """Which Linear layers of the Transformer blocks are made sparse: regular expressions on the module's name."""

    include: list[str] = []  # empty: all of them
    exclude: list[str] = []


class Trainer(Settings):
    """What every training run of the study has in common."""

    warmup_ratio: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    mean_label_bias: bool = True  # regression: the head's bias starts at the mean label; saves the first epoch
    evaluate_every: PositiveInt = 1  # epochs
    eval_batch_size: PositiveInt = 64


class Training(Settings):
    """One run's optimisation: the values that are searched over."""

    epochs: PositiveInt
    learning_rate: Positive
    batch_size: PositiveInt  # global, over all processes


class AdmmTraining(Training, Admm):
    """A run of nxm or admm_unstructured."""


class DistilTraining(Training):
    """A run that makes the dense student."""

    distillation: Distillation


class DistilAdmmTraining(AdmmTraining):
    """A run that makes the student sparse; the teacher's terms count only in the run with a teacher."""

    distillation: Distillation


class Taught(Settings):
    """How a run learns from the dense model (`nxm.distillation.trainer`)."""

    distillation: Distillation | None  # with the dense model as teacher; null: without
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None  # while it trains; null: the model's own
    noise: Share  # of the tokens in half of a batch, replaced by others; the teacher answers for those; 0: none

    @model_validator(mode="after")
    def _noise_is_answered(self) -> Taught:
        if self.noise > 0 and (self.distillation is None or not self.distillation.has_teacher):
            raise ValueError(f"noise = {self.noise:g} needs a teacher to say what the changed sentences are: set 0")
        return self


class Extras(Taught):
    """What NxM+ and its rivals may have besides the algorithm, alike for all of them."""

    permute: bool  # first reorder inner channels so that N:M keeps more (`nxm.models.permute`)
    pattern: Pattern | None  # null: the study's


class Start(Settings):
    """Which weights a run starts from."""

    start: Literal["pretrained", "dense"]  # dense: the fine-tuned dense model's


class Weighed(Settings):
    """By what the choice of weights weighs them besides their magnitude (`nxm.methods.importance`)."""

    importance: Literal["none", "adam", "activations"]


class AdmmExtras(AdmmTraining, Extras, Weighed):
    """A run of ADMM with what it may have beyond the paper. In a profile `recipe: best` is
    `nxm.methods.admm.defaults.BEST`."""

    relaxation: Annotated[float, Field(ge=1.0, lt=2.0)]  # over-relaxation of ADMM; 1.0: none


class NxmPlusTraining(AdmmExtras, Start):
    """A run of nxm_plus."""


class AspPlusTraining(Training, Extras, Start):
    """A run of asp_plus."""

    importance: Literal["none", "activations"]  # as `Weighed`; before its first step Adam knows nothing


class GmpPlusTraining(Training, Extras, Start, Gmp, Weighed):
    """A run of gmp_plus."""


class SrStePlusTraining(Training, Extras, Start):
    """A run of sr_ste_plus."""

    decay: Annotated[float, Field(ge=0.0)]  # the pull of what is masked toward zero (`nxm.methods.sr_ste.algorithm`)


class DensePlusTraining(Training, Taught, Start):
    """A run of dense_plus: nothing is pruned, all else is as for NxM+, which shows what pruning alone costs."""


PlusMethod = Literal["nxm_plus", "asp_plus", "gmp_plus", "sr_ste_plus", "dense_plus"]


class Variant(Settings):
    """One row of the ablation: a method with some of its values changed.

    `against` names what it is compared with where that is not its method: another variant, from which it differs in one
    ingredient, or which answers for a rival; or another method. `tasks`: those to run on; null: all of the study's.
    """

    method: PlusMethod
    values: dict[str, JsonValue]
    against: str | None = None
    tasks: Annotated[list[str], Field(min_length=1)] | None = None


VariantName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]


class Sweep(Settings):
    """Figure 3: other strengths for nxm than the one above; each value is a cell of its own."""

    tasks: list[str] = []
    seeds: list[int] = []
    rho: list[Positive] = []  # with nxm's own recipe
    paper_rho: list[Positive] = []  # with recipe: paper


class Searched(Settings):
    """Values tried for one method; every combination is a cell of the grid. What is not named is not searched."""

    learning_rate: list[Positive] = []
    batch_size: list[PositiveInt] = []
    rho: list[Positive] = []
    decay: list[Positive] = []
    start: list[Literal["pretrained", "dense"]] = []

    @model_validator(mode="after")
    def _cells_have_names_of_their_own(self) -> Searched:
        for key in ("rho", "start"):
            if getattr(self, key) and not (self.learning_rate or self.batch_size or self.decay):
                raise ValueError(
                    f"{key} is searched alone, so its cells could be taken for those of 'sweep' or 'ablation': name a "
                    "learning_rate as well (one will do)"
                )
        return self


SearchedMethod = Literal[
    "dense", "asp", "admm_unstructured", "nxm", "nxm_plus", "asp_plus", "gmp_plus", "sr_ste_plus", "dense_plus"
]


class Grid(Settings):
    """The search: for the paper's two groups of tasks, the values tried for each method.

    `seeds` are the cells' own; with others than the study's no final run is chosen by its own luck.
    """

    seeds: list[int] = []
    small: dict[SearchedMethod, Searched] = {}  # CoLA, MRPC, STS-B, RTE
    large: dict[SearchedMethod, Searched] = {}  # MNLI, QNLI, SST-2


class GridCell(Settings):
    """One run of the search or the ablation, as `nxm.study.search` spells it out: `values` are all its
    hyper-parameters.

    `dense_seed` says which dense model a plus method starts from and learns from.
    """

    task: str
    method: SearchedMethod
    seed: int
    cell: str
    values: dict[str, JsonValue]
    dense_seed: int | None = None


class Benchmark(Settings):
    """How often training steps and projections are timed; see `nxm.measure.step`."""

    seeds: Annotated[list[int], Field(max_length=1)]  # of the dense model that is trained on; []: nothing is measured
    warmup: PositiveInt
    repeats: PositiveInt


Pair = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


class Matrices(Settings):
    """Which single products are measured, and on which devices; see `nxm.measure.products`."""

    devices: list[Literal["cpu", "cuda"]]  # []: none
    shapes: list[Pair]  # outputs, inputs
    points: list[Pair]  # batch, length in tokens
    warmup: PositiveInt
    repeats: PositiveInt

    @model_validator(mode="after")
    def _fit_8_bit_products(self) -> Matrices:
        for batch, length in self.points:
            if batch * length % 16:
                raise ValueError(f"points: {batch} x {length} tokens are no multiple of 16, which 8-bit kernels need")
        for shape in self.shapes:
            if shape[0] % 16 or shape[1] % 16:
                raise ValueError(f"shapes: {shape[0]} x {shape[1]} are no multiples of 16, which 8-bit kernels need")
        return self


class Deployment(Settings):
    """Which trained models' forms are measured, and on which devices; see `nxm.measure.forms`."""

    devices: list[Literal["cpu", "cuda"]]  # []: none
    seeds: Annotated[list[int], Field(min_length=1, max_length=1)]  # of the models measured
    forms: list[Literal["fp32", "bf16", "fp16", "compiled", "onnx", "int8"]]
    batch_sizes: list[PositiveInt]
    lengths: list[PositiveInt]  # tokens
    scores: bool  # also the score on dev in each form
    warmup: PositiveInt
    repeats: PositiveInt


class Study(Settings):
    """A whole params.yaml."""

    root: str = "."  # from the folder of this file to the repository's
    params: str = "params.yaml"  # from the repository's root to this file
    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    tasks: Annotated[list[Literal["cola", "sst2", "mrpc", "stsb", "rte", "qnli", "mnli"]], Field(min_length=1)]
    seeds: list[int]  # []: cells of sweeps and tuning alone
    weights: Source
    student: Source
    data: Source
    prepare: Prepare
    pattern: Pattern
    density: Annotated[float, Field(gt=0.0, lt=1.0)]  # admm_unstructured: share kept of each matrix
    targets: Targets
    trainer: Trainer
    dense: dict[str, Training]
    asp: dict[str, Training]
    admm_unstructured: dict[str, AdmmTraining]
    nxm: dict[str, AdmmTraining]
    distil: dict[str, DistilTraining]
    distil_nxm: dict[str, DistilAdmmTraining]
    distil_nxm_methods: list[Literal["distil_nxm", "distil_nxm_kd"]]  # without and with the teacher
    plus_methods: list[PlusMethod]  # which of the following run
    nxm_plus: dict[str, NxmPlusTraining]
    asp_plus: dict[str, AspPlusTraining]
    gmp_plus: dict[str, GmpPlusTraining]
    sr_ste_plus: dict[str, SrStePlusTraining]
    dense_plus: dict[str, DensePlusTraining]
    distil_plus_methods: list[Literal["distil_nxm_plus"]]  # NxM+ on the distilled student: [] or this one
    distil_nxm_plus: dict[str, AdmmExtras]
    ablation: dict[VariantName, Variant]  # by the variant's name; each runs with each of `seeds`
    sweep: Sweep
    # A run's values: those stated above, or, of the grid, the best on dev (the paper's way) or on rows held out
    selection: Literal["params", "dev", "heldout"]
    grid: Grid
    cells: dict[str, GridCell]  # made of `grid` by nxm.study.profiles; {} without one
    plus_cells: dict[str, GridCell]  # the same of those that start from the dense model, and of `ablation`
    benchmark: Benchmark
    matrices: Matrices
    deployment: Deployment
    figures: list[str]
    tables: list[str]

    @property
    def methods(self) -> list[str]:
        """The methods whose whole runs belong to the study."""
        always = ["dense", "asp", "admm_unstructured", "nxm", "distil"]
        return [*always, *self.distil_nxm_methods, *self.plus_methods, *self.distil_plus_methods]

    @property
    def searched_cells(self) -> dict[str, GridCell]:
        """The cells of the search alone, without the ablation's."""
        own = {key: cell for key, cell in self.plus_cells.items() if cell.cell not in self.ablation}
        return self.cells | own

    @model_validator(mode="after")
    def _every_task_has_its_block(self) -> Study:
        for method in (
            "dense",
            "asp",
            "admm_unstructured",
            "nxm",
            "distil",
            "distil_nxm",
            *self.plus_methods,
            *self.distil_plus_methods,
        ):
            missing = [task for task in self.tasks if task not in getattr(self, method)]
            if missing:
                raise ValueError(f"'{method}' has no block for the task(s) {', '.join(missing)} that 'tasks' names")
        named = {
            "sweep.tasks": self.sweep.tasks,
            "prepare.train_examples_by_task": [*self.prepare.train_examples_by_task],
        }
        for key, tasks in named.items():
            if strange := set(tasks) - set(self.tasks):
                raise ValueError(f"'{key}' names {listed(strange)}, which 'tasks' does not")
        if self.weights.source == "teacher" or self.data.source == "teacher":
            raise ValueError("source 'teacher' is for 'student' alone")
        return self

    @model_validator(mode="after")
    def _ablation_is_of_methods_that_run(self) -> Study:
        for name, variant in self.ablation.items():
            if re.match(r"(lr|bs|rho|decay)\d", name):
                raise ValueError(f"ablation variant '{name}' is named as a cell of the grid; take another name")
            others = (self.ablation.keys() | set(self.plus_methods)) - {name}
            if variant.against is not None and variant.against not in others:
                raise ValueError(
                    f"ablation variant '{name}': against = '{variant.against}' is no other variant or method; there "
                    f"are {listed(others)}"
                )
            if name in get_args(PlusMethod):
                raise ValueError(f"ablation variant '{name}' is named as a method; take another name")
            if variant.method not in self.plus_methods:
                raise ValueError(
                    f"ablation variant '{name}' is of {variant.method}, which 'plus_methods' does not name"
                )
            own = variant.tasks or self.tasks
            if absent := set(own) - set(self.tasks):
                raise ValueError(f"ablation variant '{name}': tasks names {listed(absent)}, which 'tasks' does not")
            rival = self.ablation.get(variant.against or "")
            if rival is not None and (lacking := set(own) - set(rival.tasks or self.tasks)):
                raise ValueError(
                    f"ablation variant '{name}' is compared with '{variant.against}', which does not run on "
                    f"{listed(lacking)}"
                )
            for task in own:
                block = getattr(self, variant.method)[task]
                if strange := set(variant.values) - set(type(block).model_fields):
                    raise ValueError(
                        f"ablation variant '{name}': {variant.method} has no {listed(strange)}; it has "
                        f"{listed(type(block).model_fields)}"
                    )
                try:
                    type(block).model_validate(block.model_dump() | variant.values)
                except ValidationError as error:
                    problems = "; ".join(
                        explain(f"ablation variant '{name}'", each, type(block)) for each in error.errors()
                    )
                    raise ValueError(problems) from None
        return self

    @model_validator(mode="after")
    def _grid_of_plus_methods_has_what_it_needs(self) -> Study:
        for group in (self.grid.small, self.grid.large):
            for method in set(group) & set(get_args(PlusMethod)):
                if method not in self.plus_methods:
                    raise ValueError(f"'grid' searches {method}, which 'plus_methods' does not name")
                if not self.seeds:
                    raise ValueError(
                        f"'grid' searches {method}, whose cells start from or learn from the dense model of the "
                        "first of 'seeds', which is empty"
                    )
        return self

    @model_validator(mode="after")
    def _selection_has_what_it_needs(self) -> Study:
        if self.selection != "params" and not self.grid.seeds:
            raise ValueError(f"selection '{self.selection}' chooses among the cells of 'grid', which has no seeds")
        if self.selection == "heldout" and not self.prepare.heldout_examples:
            raise ValueError("selection 'heldout' needs prepare.heldout_examples above 0")
        if self.grid.seeds and not (self.cells or self.plus_cells):
            raise ValueError("'grid' gives no cell: in a profile (not here), name values for the group of the tasks")
        return self


def load_study(path: str | Path) -> Study:
    """Read and check a params.yaml.

    Raises:
        UserError: the file is missing, is no YAML, or has an unknown key or an impossible value; the message names
            the file, the key, the value and what would be right.
    """
    path = Path(path)
    return parse_study(read_yaml(path), str(path))


def parse_study(values: dict[str, Any], where: str) -> Study:
    """Check a mapping as a study; `where` names it in messages. Raises UserError as `load_study` does."""
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(explain(where, problem, Study) for problem in error.errors())) from None
