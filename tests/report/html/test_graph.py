"""The drawing of the pipeline: the stages that a study runs, from left to right, and nothing leads back."""

from __future__ import annotations

import pytest

from nxm.config import read_yaml
from nxm.report.html.graph import pipeline
from nxm.study.plan import trainings
from nxm.study.settings import load_study
from nxm.study.studies import studies, study_folder
from synthetic_study import ROOT


@pytest.mark.parametrize("name", studies(ROOT))
def test_every_training_and_no_further_stage_is_drawn(name: str) -> None:
    folder = study_folder(ROOT, name)
    drawing = pipeline(folder)
    boxes = {box.name: box for box in drawing.boxes}
    assert boxes.keys() <= read_yaml(folder / "dvc.yaml")["stages"].keys()
    planned = [training.stage for training in trainings(load_study(folder / "params.yaml"))]
    for stage in set(planned):
        assert boxes[stage].count == planned.count(stage)
    assert all(boxes[ours].x < boxes[theirs].x for ours, theirs, _ in drawing.curves)
    assert len({(box.x, box.y) for box in drawing.boxes}) == len(boxes)
    for box in drawing.boxes:
        assert 0 < box.x <= drawing.width - drawing.box[0]
        assert 0 < box.y <= drawing.height - drawing.box[1]


def test_the_main_studys_lines_are_those_of_its_files() -> None:
    drawing = pipeline(ROOT)
    lines = {(ours, theirs) for ours, theirs, _ in drawing.curves}
    assert {("fetch", "prepare"), ("prepare", "baseline"), ("distil", "distil_nxm"), ("compare", "table")} <= lines
    assert ("fetch", "baseline") not in lines  # a longer way leads there
    assert drawing.left_out == ()


def test_a_search_comes_before_the_runs_whose_values_it_chooses() -> None:
    drawing = pipeline(study_folder(ROOT, "glue"))
    boxes = {box.name: box for box in drawing.boxes}
    assert boxes["trial"].x < boxes["select"].x < boxes["baseline"].x < boxes["distil"].x < boxes["compare"].x
    assert ("Dense", "Trials and sweeps") in drawing.left_out
