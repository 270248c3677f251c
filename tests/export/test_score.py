"""Scores of exports, and that `--max-drop` refuses an export that lost too much."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict

from nxm import NM, Integers, UserError, cli
from nxm.data.tasks import compute_metrics, get_task
from nxm.export import onnx as onnx_export
from nxm.export.formats import export
from nxm.export.score import make_judge, predict, read_labelled, score
from nxm.export.trained import Trained, load_trained, outputs
from nxm.files import write_manifest
from tiny_models import MODELS, NO_OPENVINO, save_model

ROWS = 41
OPENVINO = pytest.param("openvino-int8", marks=pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed"))


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """A model with integers that answers both classes equally often."""
    torch.manual_seed(0)
    model = MODELS["bert"]()
    found = load_trained(save_model(tmp_path / "model", model, Integers(4, NM(2, 4)), spread=3.0))
    pairs = [(row["sentence1"], row["sentence2"]) for row in table().to_pylist()]
    logits = outputs(found.model, found.encode(pairs))["logits"]
    with torch.no_grad():
        between = np.sort(logits[:, 1] - logits[:, 0])[ROWS // 2 : ROWS // 2 + 2]
        model.classifier.bias[1] -= float(between.mean())
    model.save_pretrained(found.folder)
    return load_trained(found.folder)


def table() -> pa.Table:
    """Return pairs of sentences of different lengths with labels, as GLUE has them."""
    draw = np.random.default_rng(0)
    texts = [[" ".join(draw.choice(list("abcdefgh"), draw.integers(1, 12))) for _ in range(ROWS)] for _ in range(2)]
    labels = pa.array(draw.integers(0, 2, ROWS))
    return pa.table({"sentence1": texts[0], "sentence2": texts[1], "label": labels})


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    path = tmp_path / "dev.csv"
    pa.csv.write_csv(table(), path)
    return path


def expected(trained: Trained, metric: str = "accuracy", task: str = "rte") -> float:
    """Return the score of a model, computed one row at a time."""
    rows = table().to_pylist()
    logits = [
        outputs(trained.model, trained.encode([(row["sentence1"], row["sentence2"])]))["logits"][0] for row in rows
    ]
    labels = np.asarray([row["label"] for row in rows])
    return compute_metrics(get_task(task), np.stack(logits), labels)[metric]


def own_answer(trained: Trained):
    return lambda inputs: outputs(trained.model, inputs)


def constant(inputs):
    """Answer with class 1 whatever is asked."""
    return {"logits": np.tile([0.0, 1.0], (len(inputs["input_ids"]), 1)).astype(np.float32)}


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_is_scored_as_one_row_at_a_time(trained, tmp_path, suffix):
    path = tmp_path / f"dev{suffix}"
    if suffix == ".parquet":
        pq.write_table(table(), path)
    elif suffix == ".csv":
        pa.csv.write_csv(table(), path)
    else:
        lines = ["sentence1\tsentence2\tlabel", *("\t".join(map(str, row.values())) for row in table().to_pylist())]
        path.write_text("\n".join(lines) + "\n")
    data = read_labelled(path, "rte", trained)
    assert score(trained, own_answer(trained), data) == pytest.approx(expected(trained))
    assert score(trained, own_answer(trained), read_labelled(path, "mrpc", trained)) == pytest.approx(
        expected(trained, "f1", "mrpc")
    )


def test_predictions_are_in_the_order_of_the_rows_whatever_their_lengths(trained, dev):
    (rows,) = read_labelled(dev, "rte", trained).splits
    found = predict(trained, own_answer(trained), rows, batch=4)
    for i, row in enumerate(table().to_pylist()):
        alone = outputs(trained.model, trained.encode([(row["sentence1"], row["sentence2"])]))["logits"][0]
        np.testing.assert_allclose(found[i], alone, atol=1e-4)


def prepared(folder: Path, name: str | None, **splits: list[int]) -> Path:
    """Write a folder as a study's stage `prepare` does: splits with these labels."""
    draw = np.random.default_rng(1)
    datasets = DatasetDict()
    for split, labels in splits.items():
        ids = [draw.integers(5, 50, draw.integers(3, 30)).tolist() for _ in labels]
        columns = {"input_ids": ids, "attention_mask": [[1] * len(own) for own in ids], "labels": labels}
        datasets[split] = Dataset.from_dict(columns | {"length": [len(own) for own in ids]})
    datasets.save_to_disk(folder)
    files = {path.relative_to(folder).as_posix(): "test" for path in folder.rglob("*") if path.is_file()}
    write_manifest(folder, files, {"task": name} if name else {})
    return folder


def test_a_prepared_folder_names_its_task_and_its_splits_for_evaluation(trained, tmp_path):
    folder = prepared(tmp_path / "rte", "rte", train=[0, 1], validation=[0, 1, 1, 0, 1])
    data = read_labelled(folder, None, trained)
    assert data.task.name == "rte"
    assert [split["labels"][:] for split in data.splits] == [[0, 1, 1, 0, 1]]
    assert score(trained, constant, data) == pytest.approx(60.0)
    unnamed = prepared(tmp_path / "unnamed", None, validation=[1])
    assert read_labelled(unnamed, "rte", trained).task.name == "rte"


def test_the_score_is_the_mean_over_the_splits(tmp_path):
    torch.manual_seed(0)
    model = MODELS["bert"]()
    model.num_labels = model.config.num_labels = 3
    model.classifier = torch.nn.Linear(64, 3)
    trained = load_trained(save_model(tmp_path / "model", model))
    folder = prepared(tmp_path / "mnli", "mnli", validation_matched=[1, 1, 0, 2], validation_mismatched=[1, 1])

    def entails(inputs):
        return {"logits": np.tile([0.0, 1.0, 0.0], (len(inputs["input_ids"]), 1))}

    assert score(trained, entails, read_labelled(folder, None, trained)) == pytest.approx((50.0 + 100.0) / 2)


@pytest.mark.situation("export", "--data that is missing, damaged, without its task or of another task", "refused")
def test_data_that_does_not_fit_is_named(trained, tmp_path, dev):
    def refused(path: Path, task: str | None, said: str) -> None:
        with pytest.raises(UserError, match=said):
            make_judge(trained, read_labelled(path, task, trained), None)

    refused(dev, None, r"dev\.csv: does not name its task; give it with --task")
    refused(dev, "nonesuch", "task 'nonesuch' is unknown")
    refused(tmp_path / "absent.csv", "rte", r"absent\.csv: cannot be read as a table")
    refused(tmp_path / "absent.parquet", "rte", r"absent\.parquet: not a readable parquet file")
    refused(tmp_path / "absent", "rte", r"absent: --data is a folder that a study prepared, or a \.csv, \.tsv or")
    refused(dev, "qnli", r"column 'question' is missing; expected question, sentence, label, idx; found sentence1")
    refused(dev, "stsb", r"has logits of shape \(2,\) per example, task stsb needs \(1,\)")
    text = dev.read_text().splitlines()
    dev.write_text("\n".join([*text, '"a","b",7']))
    refused(dev, "rte", rf"column 'label', row {ROWS}: 7 is not within 0 … 1")
    dev.write_text("\n".join([*text, '"a","b",yes']))
    refused(dev, "rte", "column 'label' is of type string, expected int64")
    dev.write_text(text[0] + "\n")
    refused(dev, "rte", "the table has no rows")
    folder = prepared(tmp_path / "rte", "rte", validation=[0, 1])
    refused(folder, "mrpc", r"holds data of the task rte, not mrpc \(--task\)")
    refused(prepared(tmp_path / "train", "rte", train=[0]), None, "has no split 'validation'")
    (folder / "validation/state.json").write_text("{}")
    refused(folder, "rte", "is not the file that was written")


def test_data_of_another_vocabulary_is_refused(trained, tmp_path):
    folder = tmp_path / "rte"
    rows = {"input_ids": [[5, 900]], "attention_mask": [[1, 1]], "labels": [1], "length": [2]}
    DatasetDict(validation=Dataset.from_dict(rows)).save_to_disk(folder)
    files = {path.relative_to(folder).as_posix(): "test" for path in folder.rglob("*") if path.is_file()}
    write_manifest(folder, files, {"task": "rte"})
    with pytest.raises(UserError, match=r"has the token 900, .* has 64: they do not belong together"):
        read_labelled(folder, None, trained)


def test_models_without_logits_are_refused(tmp_path, dev):
    trained = load_trained(save_model(tmp_path / "qa", MODELS["bert-qa"]()))
    with pytest.raises(UserError, match="has no logits but start_logits, end_logits; scores are those of classifiers"):
        make_judge(trained, read_labelled(dev, "rte", trained), 1.0)


# --- refusal ------------------------------------------------------------------------------------------------------


def test_a_drop_is_allowed_up_to_the_number_and_not_beyond(trained, tmp_path, monkeypatch, capsys):
    """The model's score is made 70 of 100 rows, that of a constant answer 60: a drop of 10 points."""
    labels = [1] * 60 + [0] * 40
    data = read_labelled(prepared(tmp_path / "rte", "rte", validation=labels), None, trained)
    (rows,) = data.splits
    logits = np.zeros((100, 2), np.float32)
    logits[:, 1] = [1.0] * 60 + [-1.0] * 10 + [1.0] * 30
    by_ids = {tuple(ids): own for ids, own in zip(rows["input_ids"], logits, strict=True)}

    def answer(inputs):
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return {
            "logits": np.stack(
                [by_ids[tuple(ids[:n].tolist())] for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
            )
        }

    def forward(input_ids=None, attention_mask=None):
        return {
            "logits": torch.from_numpy(answer({"input_ids": input_ids, "attention_mask": attention_mask})["logits"])
        }

    monkeypatch.setattr(trained.model, "forward", forward)
    make_judge(trained, data, 10.0)(constant)
    assert re.fullmatch(r"accuracy on 100 rows of .*/rte: 60.00 \(the model's: 70.00\)\n", capsys.readouterr().out)
    make_judge(trained, data, None)(constant)
    with pytest.raises(
        UserError, match=r"60\.00 for the export and 70\.00 for the model, 10\.00 points lower; .* 9\.9"
    ):
        make_judge(trained, data, 9.9)(constant)
    make_judge(trained, data, 0.0)(answer)  # as good as the model


@pytest.mark.situation("export", "--max-drop on data whose labels are all the same, such as one row", "refused")
@pytest.mark.parametrize(
    ("task", "labels"), [("rte", [1] * 5), ("mrpc", [0] * 5), ("cola", [0] * 5), ("stsb", [2.0] * 5), ("rte", [1])]
)
def test_a_drop_cannot_be_judged_by_labels_that_are_all_the_same(trained, tmp_path, task, labels):
    data = read_labelled(prepared(tmp_path / task, task, validation=labels), None, trained)
    metric = get_task(task).metric
    with pytest.raises(
        UserError,
        match=rf"{task}: all {len(labels)} rows that count have the label {labels[0]:g}, so that {metric} shows",
    ):
        make_judge(trained, data, 0.5)
    if task == "rte":
        make_judge(trained, data, None)(constant)  # without a limit nothing is promised


def spoil(monkeypatch) -> None:
    """Make every export answer with one class, and let the comparison of outputs pass."""
    monkeypatch.setattr(onnx_export, "open_onnx", lambda path: constant)
    for name in ("ONNX_TOLERANCE", "INT8_TOLERANCE"):
        monkeypatch.setattr(onnx_export, name, 100.0)
    if not NO_OPENVINO:
        from nxm.export import openvino

        monkeypatch.setattr(openvino, "open_openvino", lambda path: constant)
        monkeypatch.setattr(openvino, "INT8_TOLERANCE", 100.0)


@pytest.mark.situation("export", "--max-drop: the export's score is more points lower than the model's", "refused")
@pytest.mark.parametrize("to", ["onnx", "onnx-int8", "onnx-weight-only", OPENVINO])
def test_an_export_that_lost_too_much_is_not_written(trained, tmp_path, monkeypatch, capsys, to):
    own = read_own(trained)  # labels on which the model is always right
    path = tmp_path / "own.csv"
    pa.csv.write_csv(own, path)
    spoil(monkeypatch)
    before = {entry.name for entry in tmp_path.iterdir()}
    arguments = ["nxm", "export", str(trained.folder), str(tmp_path / "deep/model.onnx"), "--to", to]
    arguments += ["--data", str(path), "--task", "rte"]
    share = 100 * np.mean(own["label"].to_numpy())
    monkeypatch.setattr("sys.argv", [*arguments, "--max-drop", "0.5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"error: not written: accuracy on {ROWS} rows of {path} is {share:.2f} for the export and 100.0"
    )
    assert {entry.name for entry in tmp_path.iterdir()} == before
    monkeypatch.setattr("sys.argv", [*arguments, "--max-drop", "100"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (tmp_path / "deep/model.onnx").exists()


def read_own(trained: Trained) -> pa.Table:
    """Return the table with the model's own answers as labels; both classes occur."""
    rows = table()
    pairs = list(zip(rows["sentence1"].to_pylist(), rows["sentence2"].to_pylist(), strict=True))
    classes = [int(outputs(trained.model, trained.encode([pair]))["logits"][0].argmax()) for pair in pairs]
    assert len(set(classes)) == 2
    return rows.set_column(2, "label", pa.array(classes))


@pytest.mark.situation("export", "--data and --max-drop to every format: both scores are printed", "works")
@pytest.mark.parametrize("to", ["onnx-int8", "packed", OPENVINO])
def test_scores_are_printed_and_the_export_is_written(trained, tmp_path, dev, capsys, to):
    export(trained.folder, tmp_path / "out", to, data=dev, task="rte", max_drop=10.0)
    said = capsys.readouterr().out
    assert f"accuracy on {ROWS} rows of {dev}: " in said
    assert f"(the model's: {expected(trained):.2f})" in said
    assert (tmp_path / "out").exists()
    if to == "packed":
        assert f": {expected(trained):.2f} (the model's" in said


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_of_2of4_the_score_is_that_of_a_dense_copy(tmp_path, dev, capsys, dtype):
    torch.manual_seed(0)
    folder = save_model(tmp_path / "model", MODELS["bert"](), spread=3.0)
    export(folder, tmp_path / "out", "torch-2of4", dtype=dtype, data=dev, task="rte", max_drop=50.0)
    assert f"accuracy on {ROWS} rows of {dev}: " in capsys.readouterr().out
    assert (tmp_path / "out/config.json").is_file()


@pytest.mark.situation("export", "--max-drop without --data, negative or NaN", "refused")
def test_options_that_have_no_effect_or_sense_are_refused(trained, tmp_path, dev):
    for options, said in (
        ({"max_drop": 0.5}, "--max-drop is a number of points, 0 or more, and needs --data"),
        ({"max_drop": -1.0, "data": dev, "task": "rte"}, "--max-drop is a number of points, 0 or more"),
        ({"max_drop": float("nan"), "data": dev, "task": "rte"}, "--max-drop is a number of points, 0 or more"),
        ({"task": "rte"}, "--task is the task of --data; without it it has no effect"),
    ):
        with pytest.raises(UserError, match=said):
            export(trained.folder, tmp_path / "out", "onnx", **options)
    with pytest.raises(UserError, match="--texts is for exports whose outputs are compared"):
        export(trained.folder, tmp_path / "out", "packed", texts=dev)
    assert not (tmp_path / "out").exists()
