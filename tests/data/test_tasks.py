"""Tasks, tables and metrics of GLUE."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from hub_server import make_table
from nxm.data.tables import check_table
from nxm.data.tasks import TASKS, compute_metrics, get_task, paper_metric
from nxm.errors import UserError

STSB, MRPC, COLA, MNLI = (TASKS[name] for name in ("stsb", "mrpc", "cola", "mnli"))


def replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    index = table.column_names.index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(index, column, pa.array(values, table.schema.field(column).type))


def test_the_seven_tasks_and_their_official_rows():
    assert list(TASKS) == ["mnli", "sst2", "qnli", "cola", "stsb", "mrpc", "rte"]
    assert {name for name, task in TASKS.items() if task.group == "large"} == {"mnli", "qnli", "sst2"}
    # a checksum over the counts; with the official files at hand, test_fetch compares each
    assert sum(task.rows["train"] for task in TASKS.values()) == 585_252
    assert list(MNLI.evaluation.items()) == [("validation_matched", "_m"), ("validation_mismatched", "_mm")]


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'sts'.*mnli, sst2, qnli, cola, stsb, mrpc, rte"):
        get_task("sts")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_perfect_predictions_score_100_and_constant_ones_are_defined(task):
    labels = make_table(task, 60)["label"].to_numpy()
    perfect = labels[:, None] if task.regression else np.eye(task.num_labels)[labels]
    metrics = compute_metrics(task, perfect, labels)
    assert next(iter(metrics)) == task.metric
    assert all(value == pytest.approx(100.0) for value in metrics.values())
    for constant in (np.zeros_like(perfect), np.ones_like(perfect)):
        metrics = compute_metrics(task, constant, labels)
        assert all(math.isfinite(value) for value in metrics.values())
        if task.metric in {"spearman", "matthews", "f1"}:
            assert metrics[task.metric] == 0.0


def test_f1_and_matthews_by_hand():
    labels = np.array([1, 1, 1, 0, 0])
    chosen = np.array([1, 1, 0, 1, 0])  # 2 true positives, 1 false positive, 1 false negative, 1 true negative
    f1 = compute_metrics(MRPC, chosen, labels)
    assert f1 == {"f1": pytest.approx(100 * 2 / 3), "accuracy": pytest.approx(60.0)}
    matthews = compute_metrics(COLA, chosen, labels)["matthews"]
    assert matthews == pytest.approx(100 * (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_spearman_sees_ranks_only():
    labels = np.linspace(0, 5, 20)
    metrics = compute_metrics(STSB, np.exp(labels)[:, None].astype(np.float32), labels)
    assert metrics["spearman"] == pytest.approx(100.0)
    assert metrics["pearson"] < 95.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_named(bad):
    with pytest.raises(UserError, match=r"stsb.*row 2.*diverged"):
        compute_metrics(STSB, np.array([[1.0], [2.0], [bad]]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match="row 1"):
        compute_metrics(MRPC, np.array([[1.0, 0.0], [bad, 0.0]]), np.array([0, 1]))


def test_as_many_predictions_as_labels():
    with pytest.raises(UserError, match="2 predictions for 3 labels"):
        compute_metrics(STSB, np.zeros((2, 1)), np.zeros(3))


def test_paper_metric_is_the_mean_of_both_halves_of_mnli():
    assert paper_metric(MNLI, {"accuracy_m": 80.0, "accuracy_mm": 82.0}) == 81.0
    assert paper_metric(STSB, {"spearman": 83.0, "pearson": 10.0}) == 83.0


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_good_table_passes_whatever_the_order_of_columns_the_widths_and_the_chunks(task):
    table = make_table(task, 12)
    shuffled = pa.concat_tables([table.slice(0, 5), table.slice(5)]).select(table.column_names[::-1])
    wider = {name: pa.large_string() for name in task.sentences} | {"idx": pa.int64()}
    wider["label"] = pa.float64() if task.regression else pa.int8()
    shuffled = shuffled.cast(pa.schema([(name, wider[name]) for name in shuffled.column_names]))
    shuffled = shuffled.append_column("more", pa.array(range(12)))
    assert check_table(task, task.splits[-1], shuffled, official=False).equals(table)


def test_official_rows_are_demanded_where_the_source_is_whole():
    table = make_table(STSB, 12)
    with pytest.raises(UserError, match=r"stsb, split validation.*12 rows, GLUE has 1500"):
        check_table(STSB, "validation", table, official=True)
    check_table(STSB, "validation", make_table(STSB, 1500), official=True)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (
            STSB,
            lambda t: t.drop_columns("sentence2"),
            "column 'sentence2' is missing; expected sentence1, sentence2",
        ),
        (STSB, lambda t: t.append_column("label", t["label"]), "column 'label' occurs 2 times"),
        (STSB, lambda t: replaced(t, "label", 3, 5.5), "column 'label', row 3: 5.5 is not within 0.0 … 5.0"),
        (STSB, lambda t: replaced(t, "label", 4, math.nan), "column 'label', row 4: nan is not within"),
        (STSB, lambda t: replaced(t, "sentence1", 2, None), "column 'sentence1', row 2: no value"),
        (COLA, lambda t: replaced(t, "label", 1, -1), "column 'label', row 1: -1 is not within 0 … 1"),
        (MNLI, lambda t: replaced(t, "label", 7, 3), "column 'label', row 7: 3 is not within 0 … 2"),
        (COLA, lambda t: t.set_column(1, "label", t["label"].cast(pa.string())), "'label' is of type string, expected"),
        (COLA, lambda t: t.slice(0, 0), "no rows"),
    ],
)
def test_a_bad_table_is_named(task, change, message):
    with pytest.raises(UserError) as error:
        check_table(task, "train", change(make_table(task, 9)), official=False, where="here")
    assert message in str(error.value)
    assert str(error.value).startswith(f"task {task.name}, split train (here): ")


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="test: no such split; known are train, validation"):
        check_table(STSB, "test", make_table(STSB, 3), official=False)
