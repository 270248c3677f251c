"""Stage compare: bootstrap scores of every method on one task, as results/bootstrap/<task>.npz.

The score of the best constant answer goes to <task>.json.

python stages/compare.py --task stsb
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nxm.command import run
from nxm.data.prepare import load_prepared
from nxm.data.tasks import get_task
from nxm.study.bootstrap import constant_scores, resampled_scores
from nxm.study.plan import trainings
from nxm.study.results import (
    bootstrap_path,
    floor_path,
    place_of,
    predictions_path,
    read_predictions,
    read_study,
    result_path,
    write_floor,
    write_predictions,
)
from nxm.study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description="Bootstrap the methods' scores on one task of a study.")
    parser.add_argument("--task", required=True, help="a GLUE task of the study")
    arguments = parser.parse_args()

    study, task = load_study(), get_task(arguments.task)
    data = load_prepared(Path("data/prepared", task.name))
    labels = {split: np.asarray(data[split]["labels"]) for split in task.evaluation}
    planned = {training for training in trainings(study) if training.compared and not training.trial}
    predictions: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for done in read_study("."):
        if done.task == task.name and place_of(done) in planned:
            path = predictions_path(result_path("", place_of(done)))
            predictions.setdefault(done.full_name, {})[done.seed] = read_predictions(path)
    write_predictions(bootstrap_path("", task.name), resampled_scores(task, labels, predictions))
    scores = constant_scores(task, labels)
    floor = {task.name + suffix: scores[split] for split, suffix in task.evaluation.items()}
    write_floor(floor_path("", task.name), floor)


if __name__ == "__main__":
    run(main)
