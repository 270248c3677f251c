"""Evidence: what is read from a study's folder, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nxm.errors import UserError
from nxm.report.evidence import Evidence, read_evidence
from nxm.study.results import place_of, result_path, write_floor, write_result
from synthetic_study import PAPER_SWEEP, ROOT, SWEEP, VARIANTS, make_result, make_study


def test_results_that_params_no_longer_names_are_no_evidence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)  # seed 0, variants rho1.0 and paper-rho0.006
    for result in (
        make_result(seed=0),
        make_result(seed=5),
        make_result(seed=0, variant="rho1.0"),
        make_result(seed=0, variant="rho0.1"),
        make_result(seed=0, trial="lr9e-05"),
        make_result(task="rte", seed=0),
    ):
        write_result(result_path(tmp_path, place_of(result)), result)
    found = read_evidence(tmp_path).results
    assert [(r.task, r.variant, r.trial, r.seed) for r in found] == [
        ("stsb", None, None, 0),
        ("stsb", "rho1.0", None, 0),
    ]


def test_a_study_is_named_by_its_params_or_without_them_by_its_folder(one: Evidence, tmp_path: Path) -> None:
    assert one.study == one.settings.study == "embedded"
    folder = tmp_path / "elsewhere"
    written = make_study(folder)
    (folder / "params.yaml").unlink()
    found = read_evidence(folder)
    assert (found.study, found.settings, found.selection) == ("elsewhere", None, "params")
    assert len(found.results) == len(written)


def test_variants_have_what_they_are_compared_with_or_are_points_of_a_sweep(one: Evidence, ablation: Evidence) -> None:
    assert ablation.variants == {name: name.partition("/")[0] for name in VARIANTS}
    assert ablation.variant_tasks == {}
    assert ablation.sweep == frozenset()
    assert one.variants == {}
    assert one.sweep == {f"nxm/rho{rho:g}" for rho in SWEEP} | {f"nxm/paper-rho{rho:g}" for rho in PAPER_SWEEP}


def test_measurements_draws_and_floors_are_read_where_they_exist(ablation: Evidence, tmp_path: Path) -> None:
    assert {task: draws["nxm_plus"].shape for task, draws in ablation.bootstrap.items()} == {
        "cola": (200, 1),
        "stsb": (200, 1),
    }
    assert (ablation.benchmark, ablation.bench, ablation.deployment, ablation.floors) == (None, [], [], {})
    make_study(tmp_path)
    write_floor(tmp_path / "results" / "bootstrap" / "stsb.json", {"stsb": 0.0})
    found = read_evidence(tmp_path)
    assert found.benchmark is not None
    assert [file["device"] for file in found.bench] == [file["device"] for file in found.deployment] == ["cpu", "cuda"]
    assert found.floors == {"stsb": 0.0}
    assert found.bootstrap == {}


def test_a_file_in_the_wrong_place_is_an_error(tmp_path: Path) -> None:
    write_result(result_path(tmp_path, place_of(make_result(run="asp"))), make_result(run="nxm"))
    with pytest.raises(UserError, match="belong at"):
        read_evidence(tmp_path)
