"""Write the studies' dvc.lock files from those of before runs were composed. Run once, in the repository's root.

    python tools/migrate_locks.py 87e0875

Results, figures and tables lie on disk: their hashes are computed. Data and models may not: their hashes are taken over
from the former lock file of the study at the commit named, found by output path. Values and code are hashed as they are
now. This is honest only with the proof that the code still computes the same (see the commit that runs this).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from ruamel.yaml import YAML

from nxm.study.code import write_code
from nxm.study.plan import Training, trainings, write_plan
from nxm.study.results import read_failures, read_study, write_chosen
from nxm.study.search import choose
from nxm.study.studies import MAIN, studies, study_folder, write_study

ROOT = Path.cwd()


def former_outputs(commit: str, study: str) -> dict[str, dict]:
    """Return the outputs of a study's former lock file by their new paths."""
    name = "dvc.lock" if study == MAIN else f"studies/{study}/dvc.lock"
    shown = subprocess.run(["git", "show", f"{commit}:{name}"], capture_output=True, text=True, check=False)  # noqa: S607
    if shown.returncode:
        return {}
    stages = YAML(typ="safe").load(shown.stdout)["stages"]
    return {new_path(out["path"], study): out for stage in stages.values() for out in stage.get("outs", [])}


def new_path(path: str, study: str) -> str:
    """Return the place, from the study's folder, of what a stage formerly made."""
    path = re.sub(rf"^(\.\./\.\./)?(data|models|results|figures|paper_tables)/{study}/", r"\2/", path)
    match = re.fullmatch(r"results/(\w+)/(\w+)/([^/]+)/(seed\d+)\.(json|npz)", path)
    if not match:
        return path
    task, run, cell, seed, ending = match.groups()
    if re.match(r"(lr|bs|decay)\d", cell):
        return f"results/search/{task}/{run}/{cell}/{seed}.{ending}"
    if run == "nxm_paper":
        return f"results/{task}/nxm/paper-{cell}/{seed}.{ending}"
    return path


def migrate(study_name: str, commit: str) -> None:
    """Write one study's dvc.lock, and say how many stages are in it."""
    os.chdir(ROOT)
    study = write_study(ROOT, study_name)
    os.chdir(study_folder(ROOT, study_name))
    former = former_outputs(commit, study_name)
    if not former:
        print(f"{study_name}: never run")
        return
    write_plan(study, Path())
    write_code(Path(study.root), Path())
    results, failures = read_study("."), read_failures(".")
    for task in study.tasks:
        for run in study.search.runs:
            if study.search.by and (best := choose(study, task, run, results, failures, study.search.by)):
                write_chosen(f"results/chosen/{task}/{run}.json", task, run, study.search.by, best.trial, best.values)
    check_values(study, results)
    done, changed = [], []
    with Repo() as repo, repo.lock:
        stages = list(repo.index.stages)
        for stage in stages:
            if not all(os.path.exists(out.fs_path) or out.def_path in former for out in stage.outs):
                continue
            for item in (*stage.deps, *stage.outs):
                known = former.get(item.def_path)
                if isinstance(item, ParamsDependency) or os.path.exists(item.fs_path):
                    item.save()
                    if known and item.hash_info.value != known["md5"]:
                        changed.append(item.def_path)
                elif known:
                    item.hash_info = HashInfo("md5", known["md5"])
                    size, files = known.get("size"), known.get("nfiles")
                    item.meta = Meta(size=size, nfiles=files, isdir=files is not None)
                elif (whole := part_of(item.def_path, former)) is not None:
                    item.hash_info, item.meta = whole
                else:
                    raise SystemExit(f"{study_name}: {stage.name}: nothing is known of {item.def_path}")
            done.append(stage)
        done[0].dvcfile.dump_stages(done, update_pipeline=False)
    other = sorted(set(changed)) or None
    print(f"{study_name}: {len(done)} stages recorded, {len(stages) - len(done)} not run; other bytes: {other}")


def part_of(path: str, former: dict[str, dict]) -> tuple[HashInfo, Meta] | None:
    """Return the hash of a folder inside an output, as former dependencies on it have it."""
    entry = FORMER_DEPS.get(path)
    if entry is None:
        return None
    return HashInfo("md5", entry["md5"]), Meta(
        size=entry.get("size"), nfiles=entry.get("nfiles"), isdir="nfiles" in entry
    )


def former_dependencies(commit: str, study: str) -> dict[str, dict]:
    """Return the dependencies of a study's former lock file by their new paths."""
    name = "dvc.lock" if study == MAIN else f"studies/{study}/dvc.lock"
    shown = subprocess.run(["git", "show", f"{commit}:{name}"], capture_output=True, text=True, check=False)  # noqa: S607
    stages = YAML(typ="safe").load(shown.stdout)["stages"] if not shown.returncode else {}
    return {new_path(dep["path"], study): dep for stage in stages.values() for dep in stage.get("deps", [])}


def check_values(study, results) -> None:
    """Compare the values that each result was made with and those that its training has now."""
    from nxm.study.plan import chosen_path, composed
    from nxm.study.results import place_of, read_chosen

    planned: dict[Training, Training] = {training: training for training in trainings(study)}
    for result in results:
        training = planned.get(place_of(result))
        if training is None:
            raise SystemExit(f"{study.study}: {place_of(result).path} is not in the plan")
        chosen = read_chosen(chosen_path(training), training) if training.chosen else None
        now = composed(study, training, chosen).model_dump(mode="json")
        differ = {
            name: (value, now.get(name))
            for name, value in result.hyperparameters.items()
            if now.get(name) != value and not (name == "distillation" and value is None)
        }
        if differ or (result.sparsity.pattern or "") not in (now["set"] or "", f"unstructured {now['set']}"):
            raise SystemExit(f"{study.study}: {training.path}: {differ}, {result.sparsity.pattern}, {now['set']}")


if __name__ == "__main__":
    for name in studies(ROOT):
        FORMER_DEPS = former_dependencies(sys.argv[1], name)
        migrate(name, sys.argv[1])
