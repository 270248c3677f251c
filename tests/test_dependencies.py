"""Each stage's dependencies in dvc.yaml are the files of code that can change its result: no fewer, and no more.

The files are those that the stage's script imports, directly or not. A training also depends on its own method and set,
which are found by name; so plan.yaml spells them out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from imports import ROOT, SRC, closure, modules
from nxm.methods import METHODS
from nxm.study.code import GROUPS, code_path
from nxm.study.plan import PLAN, VALUES, composed, trainings
from nxm.study.settings import Allocate, Run, Study, load_study
from nxm.study.studies import studies, study_folder

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
BODIES = {name: stage.get("do", stage) for name, stage in STAGES.items()}
TRAININGS = [name for name, body in BODIES.items() if "stages/train.py" in body["cmd"]]
REPORTS = {"figure": "figures", "table": "tables"}

# Modules that check and record, or find others by name. No result depends on their code: values come from
# params.yaml, values.json and the names in plan.yaml, which are dependencies.
IGNORED = frozenset(
    {name for name, path in modules().items() if path.name == "__init__.py"}  # they find sets, methods, figures by name
    | {f"nxm.methods.{method}.settings" for method in METHODS}
    | {"nxm.command", "nxm.config", "nxm.environment", "nxm.errors", "nxm.files", "nxm.machine"}
    | {
        "nxm.activations.settings",
        "nxm.data.settings",
        "nxm.distillation.settings",
        "nxm.study.settings",
        "nxm.study.plan",
        "nxm.study.studies",
    }
    | {"nxm.study.results"}  # reads and writes results files
    | {"nxm.sets.saved"}  # names the set in config.json, and checks a saved model
    | {"nxm.training.energy", "nxm.launch.estimate"}  # how much it took, how long it may take
    | {"nxm.measure.journal"}  # goes on with a measurement that was stopped
)
PREPARED = {"nxm.data.prepare"}  # of whom reads what the stage `prepare` wrote, which is a dependency itself
ACTIVATIONS = {"nxm.activations.callback"}
PERMUTATION = {"nxm.models.permute"}
SHRUNK = {f"nxm.models.{name}" for name in ("cost", "roles", "shrink", "structure")}
ALLOCATION = {"nxm.training.sensitivity"}
TEACHING = {"nxm.distillation.loss", "nxm.distillation.noise", "nxm.distillation.trainer"}
# Stage -> modules that count there though they are ignored elsewhere
FOLLOWED = {
    # It makes values and names out of settings
    "plan": {
        "nxm.study.plan",
        "nxm.study.settings",
        "nxm.activations.settings",
        "nxm.data.settings",
        "nxm.distillation.settings",
    },
    "prepare": {"nxm.data.settings"},  # the number of examples by task
    "figure": {"nxm.study.results"},  # what is drawn is computed there, such as the masks' mean similarity
    "table": {"nxm.study.results"},
    "scores": {"nxm.study.results"},
    # It reads the claims of templates and the plan's commands
    "report": {"nxm.study.results", "nxm.study.plan", "nxm.report.page"},
}
# Stage -> modules that do not count there though they do elsewhere
SPARED = {
    "compare": PREPARED,
    "report": {"nxm.study.code"},  # it writes no plan
    "benchmark": PREPARED
    | PERMUTATION
    | ACTIVATIONS
    | SHRUNK
    | ALLOCATION,  # of models that are not shrunk, with one set
    "deployment": PREPARED | {"nxm.models.save", "nxm.data.tables"},  # tables are read for `nxm export --data` alone
}


# Files that the report reads: its page, and the templates that have claims about any study
TEMPLATES = {
    path.relative_to(ROOT).as_posix()
    for path in [*(SRC / "nxm/report/html").glob("page.*"), *(ROOT / "docs").glob("*.md.j2")]
}


def ignored(stage: str) -> frozenset[str]:
    return IGNORED - frozenset(FOLLOWED.get(stage, ())) | frozenset(SPARED.get(stage, ()))


def script(stage: str) -> Path:
    return ROOT / re.search(r"stages/\w+\.py", BODIES[stage]["cmd"])[0]


def files(paths: set[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


def declared(stage: str) -> set[str]:
    """Return the code that a stage's list names, from the repository's root, but for what is filled in by name."""
    own = [dep.removeprefix("${root}/") for dep in BODIES[stage]["deps"] if dep.startswith("${root}/")]
    return {dep for dep in own if "${" not in dep}


def module_file(name: str) -> Path:
    return modules()[name]


def by_name(stage: str) -> set[Path]:
    """Return the files that a stage finds by name, in any study."""
    if stage in REPORTS:
        return {path for path in (SRC / "nxm/report" / REPORTS[stage]).glob("*.py") if path.stem != "__init__"}
    if stage == "report":  # all figures and tables are on its page
        return by_name("figure") | by_name("table")
    if stage == "benchmark":  # the methods of the runs that it times
        runs = [load_study(ROOT / "params.yaml").runs[name.partition(".")[2]] for name in BODIES[stage]["params"][2:]]
        return {module_file(f"nxm.methods.{run['method']}.callback") for run in runs if "method" in run}
    if stage == "plan":  # the values that a method has by default
        return {module_file(f"nxm.methods.{method}.settings") for method in methods_in_use()}
    return set()


def methods_in_use() -> set[str]:
    loaded = [load_study(study_folder(ROOT, name) / "params.yaml") for name in studies(ROOT)]
    return {run["method"] for study in loaded for run in study.runs.values() if run.get("method")}


@pytest.mark.parametrize("stage", sorted(BODIES.keys() - set(TRAININGS) - {"code"}))
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    named = by_name(stage)
    needed = closure({script(stage), *named}, ignored(stage))
    if stage in REPORTS:  # the figure's own file is filled in by name; only what figures share is in the list
        shared = closure({script(stage)}, ignored(stage))
        for path in named:
            shared |= closure({path}, ignored(stage)) - {path}
        needed = shared
    assert declared(stage) == files(needed) | (TEMPLATES if stage == "report" else set())


@pytest.mark.parametrize("stage", sorted(REPORTS))
def test_a_figure_or_table_depends_on_its_own_module_by_name(stage):
    assert f"${{root}}/src/nxm/report/{REPORTS[stage]}/${{item.name}}.py" in BODIES[stage]["deps"]


def test_the_stage_code_depends_on_all_that_it_makes_checksums_of():
    own = {"stages/checksums.py", "src/nxm/study/code.py"}
    assert declared("code") == own.union(*GROUPS.values())
    assert len(BODIES["code"]["deps"]) == len(set(BODIES["code"]["deps"]))


@pytest.mark.parametrize("stage", TRAININGS)
def test_trainings_depend_on_what_plan_yaml_names(stage):
    slots = ("set", "algorithm", "callback", "teaching", "permutation", "activations", "structure", "latency")
    slots += ("start", "teacher", "chosen")
    deps = {code_path("training"), "data/prepared/${item.task}", *(f"${{item.{slot}}}" for slot in slots)}
    assert set(BODIES[stage]["deps"]) == deps
    assert BODIES[stage]["params"] == [{"values.json": ["common", "${item.stage}-${key}"]}]


@pytest.mark.parametrize("name", studies(ROOT))
def test_a_training_depends_on_the_code_that_it_imports(name):
    """Its script's, but for teaching, permutation and shrinking where it has none, and its own method's and set's."""
    folder = study_folder(ROOT, name)
    study = load_study(folder / "params.yaml")
    plan = YAML(typ="safe").load((folder / PLAN).read_text(encoding="utf-8"))["train"]
    for training in trainings(study):
        run = composed(study, training)
        entry = plan[training.stage][training.key]
        mine = {entry["set"], entry["algorithm"], entry["callback"], entry["permutation"]} - {code_path("training")}
        depends = {path.removeprefix(f"{study.root}/") for path in mine} | set(GROUPS["training"])
        allocated = isinstance(run.set, Allocate)
        if allocated:
            assert entry["set"] == code_path("allocation")
            depends = depends - {code_path("allocation")} | set(GROUPS["allocation"])
        for group in ("teaching", "activations", "structure"):
            if entry[group] != code_path("training"):
                assert entry[group] == code_path(group)
                depends |= set(GROUPS[group])
        shrunk = "structured" in lineage(study, training.task, run)
        spared = PREPARED | {"nxm.sets.nm"}  # the library's default set, and the one that permutation asks for
        spared |= set() if run.teacher else TEACHING
        spared |= set() if run.permute else PERMUTATION
        spared |= set() if run.activations else ACTIVATIONS
        spared |= set() if shrunk else SHRUNK
        spared |= set() if allocated else ALLOCATION
        starts = {ROOT / "stages/train.py"}
        if run.method:
            starts.add(module_file(f"nxm.methods.{run.method}.callback"))
        if run.set and not allocated:
            starts.add(ROOT / removed_root(entry["set"], study.root))
        needed = files(closure(starts, IGNORED | spared))
        shared = {"src/nxm/methods/held.py", "src/nxm/methods/importance.py"}  # of methods, though not of every one
        assert depends - shared == needed - shared, training.path
        assert shared <= depends


def lineage(study: Study, task: str, run: Run) -> set[str | None]:
    """Return the methods of a run, its start and teacher, and of all that these go back to by their starts."""
    found, todo = set(), [run, *([study.run(run.teacher, task)] if run.teacher else [])]
    while todo:
        each = todo.pop()
        found.add(each.method)
        todo += [study.run(each.start, task)] if each.start in study.runs else []
    return found


def removed_root(path: str, root: str) -> str:
    return path.removeprefix(f"{root}/")


def test_what_all_methods_share_is_what_some_method_imports():
    callbacks = {module_file(f"nxm.methods.{method}.callback") for method in METHODS}
    own = {path for path in files(closure(callbacks, IGNORED)) if re.match(r"src/nxm/methods/\w+\.py", path)}
    assert own == {path for path in GROUPS["training"] if path.startswith("src/nxm/methods/")}


def test_every_file_that_is_depended_on_exists():
    for stage in BODIES:
        for path in declared(stage):
            assert (ROOT / path).is_file(), f"{stage}: {path}"


def test_dvc_yaml_can_be_read_in_one_go():
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 360


def test_a_new_method_and_a_new_set_make_no_training_stale(tmp_path):
    """A copy of the code with one more method and set makes the same plan, values and checksums for a study."""
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src/nxm"
    listing = package / "methods/__init__.py"
    text = listing.read_text(encoding="utf-8")
    added = re.sub(r"^(METHODS = \(.*)\)$", r'\1, "toy")', text, flags=re.MULTILINE)
    assert added != text
    listing.write_text(added, encoding="utf-8")
    shutil.copytree(package / "methods/one_shot", package / "methods/toy")
    toy = (package / "sets/unstructured.py").read_text(encoding="utf-8")
    (package / "sets/another.py").write_text(toy.replace("50 %", "50 permille").replace("%", "permille"), "utf-8")

    made = tmp_path / "studies/ablation"
    made.mkdir(parents=True)
    for name in ("params.yaml", "findings.md.j2"):
        shutil.copy(ROOT / "studies/ablation" / name, made)
    code = """
from pathlib import Path
from nxm.methods import settings_class
from nxm.sets import all_sets
from nxm.study.code import write_code
from nxm.study.plan import write_plan
from nxm.study.settings import load_study
assert settings_class("toy") and "another" in all_sets()
write_plan(load_study(), Path())
write_code(Path("../.."), Path())
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=made, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in (PLAN, VALUES):
        assert (made / name).read_bytes() == (ROOT / "studies/ablation" / name).read_bytes()
    from nxm.study.code import write_code

    write_code(ROOT, tmp_path / "now")
    for group in GROUPS:
        assert (made / code_path(group)).read_bytes() == (tmp_path / "now" / code_path(group)).read_bytes()
