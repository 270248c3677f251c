"""The plan of a study: the list of its trainings, spelled out from params.yaml.

A training is a run on one task with one seed, perhaps with the values of a variant or of a trial of the search.
`write_plan` lists them for DVC. plan.yaml has, by stage and key, the paths that a training reads; values.json has all
values that it trains with, so that a changed value reruns its own trainings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxm.errors import UserError
from nxm.files import write_text
from nxm.sets import DENSE
from nxm.study.code import code_path
from nxm.study.settings import MODELS_DEPLOYED, Allocate, Run, Study, Targets, say_value

if TYPE_CHECKING:
    from nxm.sets.base import ConstraintSet

PLAN, VALUES = "plan.yaml", "values.json"
WEIGHTS = "data/source/weights"  # of the stage `fetch`
# The paper's chain has a stage for each of these runs; every further run is one of `compress`.
STAGES = {
    "dense": "baseline",
    "asp": "asp",
    "admm_unstructured": "admm_unstructured",
    "nxm": "nxm",
    "distil": "distil",
    "distil_nxm": "distil_nxm",
}
OTHER_RUNS = "compress"
# Short names of the values that are searched, in their order in a trial's name
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "rho": "rho", "decay": "decay", "start": "from-"}


@dataclass(frozen=True)
class Training:
    """One training of a study: a run on a task with a seed, perhaps with the values of a variant or a trial.

    `chosen`: the search chooses some of its values. `compared`: its predictions enter the bootstrap.
    """

    task: str
    run: str
    seed: int
    variant: str | None = None
    trial: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    chosen: bool = field(default=False, compare=False)
    compared: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        """The run's name, with the variant's: `nxm_plus/no-teacher`."""
        return f"{self.run}/{self.variant}" if self.variant else self.run

    @property
    def whole(self) -> bool:
        """True for a run itself, whose model is saved; False for a variant or a trial."""
        return self.variant is None and self.trial is None

    @property
    def path(self) -> str:
        """The path of its results below results/, without the suffix, and of a run's model below models/."""
        parts = [self.task, self.run, self.variant or self.trial, f"seed{self.seed}"]
        return "/".join([*(["search"] if self.trial else []), *filter(None, parts)])

    @property
    def stage(self) -> str:
        """The stage of dvc.yaml that trains it."""
        if self.whole:
            return STAGES.get(self.run, OTHER_RUNS)
        return "variant" if self.variant and self.compared else "trial"

    @property
    def key(self) -> str:
        """Its name within the stage: `stsb-nxm-seed0`. It has no dot, which DVC reads as nesting."""
        parts = [self.task, self.run, self.variant or self.trial, f"seed{self.seed}"]
        return "-".join(filter(None, parts)).replace(".", "_")

    @property
    def dvc_name(self) -> str:
        """The name of the stage in DVC: `nxm@stsb-nxm-seed0`."""
        return f"{self.stage}@{self.key}"


def trainings(study: Study) -> list[Training]:
    """Return all trainings of a study: its runs, their variants, and the trials of the search."""
    return [*_runs(study), *_variants(study), *trials(study)]


def _runs(study: Study) -> Iterator[Training]:
    for run, task, seed in itertools.product(study.runs, study.tasks, study.seeds):
        yield Training(task, run, seed, chosen=is_searched(study, run))


def _variants(study: Study) -> Iterator[Training]:
    for name, variant in study.variants.items():
        run, _, own = name.partition("/")
        for task, seed in itertools.product(study.tasks_of(name), variant.seeds or study.seeds):
            compared = variant.against is not None
            yield Training(
                task, run, seed, own, changes=variant.values, chosen=is_searched(study, run), compared=compared
            )


def trials(study: Study) -> Iterator[Training]:
    """Yield the trials of the search, one per combination of values and seed of the search."""
    for task in study.tasks:
        for run, tried in study.search.runs.items():
            values = tried.on(task)
            names = sorted(values, key=lambda name: (list(_SHORT).index(name) if name in _SHORT else len(_SHORT), name))
            for combination in itertools.product(*(values[name] for name in names)):
                changes = dict(zip(names, combination, strict=True))
                trial = "-".join(_SHORT.get(name, f"{name}-") + say_value(value) for name, value in changes.items())
                for seed in study.search.seeds:
                    yield Training(task, run, seed, trial=trial, changes=changes)


def is_searched(study: Study, run: str) -> bool:
    """Return whether the search chooses values of a run."""
    return study.search.by is not None and run in study.search.runs


def composed(study: Study, training: Training, chosen: Mapping[str, Any] | None = None) -> Run:
    """Return the run that a training trains: its own values, replaced by the chosen ones and then by the changes."""
    return study.run(training.run, training.task, {**(chosen or {}), **training.changes})


def start_path(study: Study, training: Training, run: Run) -> Path:
    """Return the folder of the model that a training starts from, below the study's folder."""
    if run.start == "pretrained":
        return Path(WEIGHTS)
    if run.start == "student":
        if study.student.source != "teacher":
            return Path("data/source/student")
        return model_path(study, training, run.teacher)
    return model_path(study, training, run.start)


def model_path(study: Study, training: Training, run: str | None) -> Path:
    """Return the folder of another run's trained model, on the same task and with the seed `Study.start_seed`."""
    return Path("models", training.task, str(run), f"seed{study.start_seed(training.seed)}")


def _meets_shrunk_models(study: Study, training: Training, run: Run) -> bool:
    """Return whether a training makes a shrunk model, starts from one or learns from one."""
    return any(_makes_shrunk_model(study, each, training.task) for each in (run, run.teacher) if each)


def _makes_shrunk_model(study: Study, run: Run | str, task: str) -> bool:
    """Return whether a run, or one of the runs that it goes back to, is structured pruning."""
    if isinstance(run, str):
        if run not in study.runs:
            return False
        run = study.run(run, task)
    return run.method == "structured" or _makes_shrunk_model(study, run.start, task)


def chosen_path(training: Training) -> Path:
    """Return the path of the values that the search chose for a training's run."""
    return Path("results/chosen", training.task, f"{training.run}.json")


def write_plan(study: Study, folder: Path) -> None:
    """Write plan.yaml and values.json of a study into its folder. A file with the same content is not touched.

    Raises:
        UserError: a run has an unknown constraint set, or one that does not fit the weights, if these are here.
    """
    widths = _widths(study, folder)
    source = f"{study.root}/src/nxm"
    stages: dict[str, dict[str, dict[str, Any]]] = {
        name: {} for name in (*STAGES.values(), OTHER_RUNS, "variant", "trial", "select")
    }
    common = study.trainer.model_dump(mode="json") | {"targets": study.targets.model_dump(mode="json")}
    values = {"common": _spelled_out(common)}
    for training in trainings(study):
        run = composed(study, training)
        nothing = code_path("training")  # a dependency of every training: DVC's list of them has a fixed length
        method = f"{source}/methods/{run.method}"
        start = start_path(study, training, run).as_posix()
        stages[training.stage][training.key] = {
            "stage": training.stage,
            "task": training.task,
            "path": training.path,
            "start": start,
            "teacher": model_path(study, training, run.teacher).as_posix() if run.teacher else start,
            "chosen": chosen_path(training).as_posix() if training.chosen else start,
            "set": _code_of_set(run, training, study, widths) or nothing,
            "algorithm": f"{method}/algorithm.py" if run.method else nothing,
            "callback": f"{method}/callback.py" if run.method else nothing,
            "teaching": code_path("teaching") if run.teacher else nothing,
            "permutation": f"{source}/models/permute.py" if run.permute else nothing,
            "activations": code_path("activations") if run.activations else nothing,
            "structure": code_path("structure") if _meets_shrunk_models(study, training, run) else nothing,
            "latency": getattr(run, "latency", "") or nothing,
        }
        values[f"{training.stage}-{training.key}"] = _spelled_out(run.model_dump(mode="json"))
    for name, task in itertools.product(study.search.runs, study.tasks):
        if is_searched(study, name):
            stages["select"][f"{task}-{name}"] = {"task": task, "run": name}
    tasks = {training.task for training in trainings(study)}
    trained = [task for task in study.tasks if task in tasks]  # none where speed alone is measured
    own_page = folder / "findings.md.j2"
    page = own_page.name if own_page.is_file() else f"{study.root}/docs/README.md.j2"  # one that every report reads
    content = {"page": page, "trained": trained, "deployed": _deployed(study), "train": stages}
    _write_yaml(folder / PLAN, content)
    _write(folder / VALUES, json.dumps(values, indent=1) + "\n")


def _deployed(study: Study) -> dict[str, dict[str, str]]:
    """Return the models that are measured as deployed, by device: places of a list of fixed length, which DVC needs."""
    deployment = study.deployment
    folders = [f"models/{study.tasks[0]}/{name}/seed{deployment.seeds[0]}" for name in deployment.models]
    folders += [f"data/prepared/{study.tasks[0]}"] * (MODELS_DEPLOYED - len(folders))  # a dependency all the same
    return {device: {f"model{i}": path for i, path in enumerate(folders)} for device in deployment.devices}


def _widths(study: Study, folder: Path) -> list[int]:
    """Return the input widths of the weights' matrices, as far as their config names them; [] if it is not here."""
    name = study.weights.name
    weights = Path(folder, study.root, name) if study.weights.source == "local" and name else folder / WEIGHTS
    try:
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the stage `fetch` makes or refuses it
        return []
    return [config[key] for key in ("hidden_size", "dim", "intermediate_size", "hidden_dim") if key in config]


def _code_of_set(run: Run, training: Training, study: Study, widths: list[int]) -> str | None:
    """Return the file that a training's set depends on: its module, or the checksums of all that an allocation needs.

    None for a run without a set.
    """
    if run.set is None:
        return None
    if not isinstance(run.set, Allocate):
        module = _module_of(run.set, training, study.targets, widths)
        return f"{study.root}/src/nxm/sets/{module}.py"
    for choice in run.set.choices:
        if choice != DENSE:
            _module_of(choice, training, study.targets, widths, "set.choices")
    if run.permute:
        pattern_to_permute(run.set, f"params: {training.name} on {training.task}: ")
    return code_path("allocation")


def pattern_to_permute(notation: str | Allocate, where: str = "") -> ConstraintSet:
    """Return the N:M set that channels are reordered for: the run's own, or the only one of its choices.

    Args:
        where: for the start of messages.

    Raises:
        UserError: the set is no N:M set, or the choices have several patterns or none.
    """
    from nxm.sets import kind_of, parse_set  # imports torch, which commands without work to do must not wait for

    if not isinstance(notation, Allocate):
        constraint = parse_set(notation)
        if kind_of(constraint) != "nm":
            raise UserError(
                f"{where}permute = true is for N:M sets such as 2:4, not for '{notation}': set permute to false"
            )
        return constraint
    patterns = [parse_set(choice).zero_patterns for choice in notation.choices if choice != DENSE]
    found = {pattern for pattern in patterns if pattern is not None and kind_of(pattern) == "nm"}
    if len(found) != 1:
        raise UserError(
            f"{where}permute = true reorders channels for one N:M pattern, and the choices of set have "
            f"{', '.join(sorted(map(str, found))) or 'none'}: set permute to false"
        )
    return found.pop()


def _module_of(notation: str, training: Training, targets: Targets, widths: list[int], key: str = "set") -> str:
    """Return the name of a set's module, after checking that the matrices can lie in the set.

    With `include` or `exclude` the targets are known from the model alone; one width must fit then, else all.
    """
    from nxm.sets import parse_set  # imports torch, which commands without work to do must not wait for

    where = f"params: {training.name} on {training.task}: {key} = '{notation}'"
    try:
        constraint = parse_set(notation)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    problems = []
    for width in widths:
        try:
            constraint.validate((width, width), "the weights")
        except UserError as error:
            problems.append(str(error))
    if problems and (len(problems) == len(widths) or not (targets.include or targets.exclude)):
        raise UserError(f"{where}: {problems[0]}")
    return type(constraint).__module__.rpartition(".")[2]


def _spelled_out(values: Mapping[str, Any]) -> str:
    """Return all values as one text, so that DVC compares one parameter per training and not twenty."""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write one line per training, in JSON, which is YAML too: differences between plans are then readable."""
    lines = ["# Made by the stage plan from params.yaml: change that, not this."]
    lines += [f"{name}: {json.dumps(content[name])}" for name in ("page", "trained", "deployed")]
    lines.append("train:")
    for stage, entries in content["train"].items():
        lines.append(f"  {stage}:" + (" {}" if not entries else ""))
        lines += [f"    {key}: {json.dumps(entry)}" for key, entry in entries.items()]
    _write(path, "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
