"""Draws that are scored all at once are those of the bootstrap, which scores them one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nxm.data.tasks import get_task
from nxm.errors import UserError
from nxm.report.verdict.rescored import find_labels, rescored_draws
from nxm.study.bootstrap import resampled_scores

ROWS = 60


def example(name: str, seeds: tuple[int, ...] = (3, 5, 8)) -> tuple[dict, dict]:
    """Labels with ties, and predictions of three methods: good with ties, constant, of one seed fewer."""
    task, random = get_task(name), np.random.default_rng(0)
    labels, predictions = {}, {method: {seed: {} for seed in seeds} for method in ("good", "constant", "fewer")}
    for split in task.evaluation:
        truth = random.integers(0, 5, ROWS) if task.regression else random.integers(0, task.num_labels, ROWS)
        labels[split] = truth.astype(np.float32 if task.regression else np.int64)
        for seed in seeds:
            right = truth[:, None] if task.regression else np.eye(task.num_labels)[truth]
            logits = (right + random.normal(scale=0.8, size=right.shape)).round(1).astype(np.float32)
            predictions["good"][seed][split] = logits
            predictions["constant"][seed][split] = np.zeros_like(logits)
            predictions["fewer"][seed][split] = logits
    del predictions["fewer"][seeds[0]]
    return labels, predictions


@pytest.mark.parametrize("name", ["stsb", "mrpc", "cola", "rte", "mnli"])
def test_draws_are_those_of_the_bootstrap(name):
    labels, predictions = example(name)
    expected = resampled_scores(get_task(name), labels, predictions, draws=40)
    found = rescored_draws(get_task(name), labels, predictions, draws=40)
    assert found.keys() == expected.keys() == {"good", "constant"}
    for method in found:
        np.testing.assert_allclose(found[method], expected[method], rtol=0, atol=1e-5)
    assert np.ptp(found["good"]) > 1


def test_without_predictions_there_are_no_draws():
    assert rescored_draws(get_task("stsb"), {"validation": np.arange(5.0)}, {}) == {}


@pytest.mark.parametrize("harm", ["rows", "split", "nan"])
def test_predictions_that_do_not_fit_are_named(harm):
    labels, predictions = example("rte")
    own = predictions["good"][3]
    if harm == "rows":
        own["validation"] = own["validation"][:-1]
    elif harm == "split":
        own["test"] = own.pop("validation")
    else:
        own["validation"][4] = np.nan
    with pytest.raises(UserError, match=r"good on rte, seed 3: (predictions for|a prediction is not a finite number)"):
        rescored_draws(get_task("rte"), labels, predictions)


def test_labels_are_those_of_the_studys_tables_or_of_glue(tmp_path):
    task = get_task("rte")
    study = tmp_path / "studies/own"
    assert find_labels(tmp_path, study, task, download=False) is None
    for value, place in ((1, tmp_path / ".cache/glue"), (0, study / "data/source/glue")):
        table = pa.table({"sentence1": ["a"] * 3, "sentence2": ["b"] * 3, "label": [value] * 3, "idx": range(3)})
        path = place / "rte/validation.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
        assert find_labels(tmp_path, study, task, download=False)["validation"].tolist() == [value] * 3
