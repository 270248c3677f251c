"""A study on made-up data in a folder of its own, with its dense model, to train further runs of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import smoke_source
from nxm.config import read_yaml
from nxm.data.prepare import prepare
from nxm.study.plan import Training
from nxm.study.results import Result, read_result
from nxm.study.settings import Study, parse_study
from nxm.training.run import run
from records import ROOT


@contextmanager
def made_up_study(folder: Path, runs: Mapping[str, dict[str, Any]], train_rows: int) -> Iterator[Study]:
    """The study, with its folder as the working directory."""
    smoke_source.write(folder / "data/source", tasks=("stsb",), train_rows=train_rows, dev_rows=40)
    values = read_yaml(ROOT / "params.yaml")
    values |= {"runs": runs, "variants": {}, "prepare": values["prepare"] | {"heldout_examples": 32, "max_length": 16}}
    values["deployment"]["devices"] = []
    values["trainer"] |= {"evaluate_every": 1}  # with a checkpoint at each evaluation
    found = parse_study(values, "params.yaml")
    prepare("stsb", folder / "data/source", found.prepare, folder / "data/prepared/stsb")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained(found, "dense")
        yield found


def trained(study: Study, name: str, **changes: Any) -> Result:
    """Train a run in the working directory and return its result."""
    return read_result(run(study, Training("stsb", name, 0, changes=changes)))


def folder_of(name: str) -> Path:
    """The folder of a run's model, below the study's."""
    return Path("models/stsb", name, "seed0")
