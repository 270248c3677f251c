"""Contents of tokenised datasets, and equal bytes for equal inputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import make_glue, make_tiny_bert
from nxm.data.prepare import load_prepared, prepare
from nxm.data.settings import Prepare
from nxm.data.tasks import TASKS
from nxm.errors import UserError
from nxm.files import sha256_tree

REPOSITORY = Path(__file__).parents[2]
ROWS = 50
SETTINGS = Prepare(train_examples=20, sample_seed=3, max_length=16)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder as fetch writes it, with three tasks."""
    folder = tmp_path_factory.mktemp("source")
    make_tiny_bert(folder / "weights")
    make_glue(folder / "glue", [TASKS["stsb"], TASKS["mnli"], TASKS["sst2"]], ROWS, hub=False)
    return folder


@pytest.fixture
def copied(source, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


def test_rows_are_tokenised_as_the_tokenizer_does_it(source, tmp_path):
    from transformers import AutoTokenizer

    prepare("stsb", source, Prepare(max_length=16), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(source / "weights")
    datasets = load_prepared(tmp_path / "out")
    assert set(datasets) == {"train", "validation"}
    for split, dataset in datasets.items():
        table = pq.ParquetFile(source / f"glue/stsb/{split}.parquet").read().to_pydict()
        assert dataset["labels"][:] == table["label"]
        for row, first, second in zip(dataset, table["sentence1"], table["sentence2"], strict=True):
            encoded = tokenizer(first, second, truncation=True, max_length=16)
            assert {name: row[name] for name in encoded} == dict(encoded)
            assert row["length"] == len(encoded["input_ids"]) <= 16
        assert max(dataset["length"]) == 16  # some were cut
        assert min(dataset["length"]) < 16  # nothing was padded


def test_types_are_small_and_labels_are_what_the_loss_wants(source, tmp_path):
    for task, label in (("stsb", "float32"), ("sst2", "int64")):
        prepare(task, source, SETTINGS, tmp_path / task)
        features = load_prepared(tmp_path / task)["train"].features
        kinds = {name: getattr(feature, "feature", feature).dtype for name, feature in features.items()}
        assert kinds == {
            "input_ids": "int32",
            "attention_mask": "int8",
            "token_type_ids": "int8",
            "labels": label,
            "length": "int32",
        }


def test_mnli_keeps_both_validation_splits(source, tmp_path):
    prepare("mnli", source, SETTINGS, tmp_path / "out")
    rows = {split: dataset.num_rows for split, dataset in load_prepared(tmp_path / "out").items()}
    assert rows == {"train": 20, "validation_matched": ROWS, "validation_mismatched": ROWS}


def test_a_task_can_have_its_own_number_and_leaves_the_files_of_others_alone(source, tmp_path):
    own = SETTINGS.model_copy(update={"train_examples_by_task": {"mnli": 7, "sst2": None}})
    for task, rows in (("mnli", 7), ("sst2", ROWS), ("stsb", 20)):
        prepare(task, source, own, tmp_path / "own" / task)
        assert load_prepared(tmp_path / "own" / task)["train"].num_rows == rows
    prepare("stsb", source, SETTINGS, tmp_path / "stsb")
    assert sha256_tree(tmp_path / "stsb") == sha256_tree(tmp_path / "own/stsb")


def drawn(source: Path, out: Path, examples: int | None, seed: int) -> list[tuple]:
    prepare("stsb", source, Prepare(train_examples=examples, sample_seed=seed, max_length=64), out)
    datasets = load_prepared(out)
    assert datasets["validation"].num_rows == ROWS
    return [(tuple(row["input_ids"]), row["labels"]) for row in datasets["train"]]


@pytest.fixture
def unlike(copied) -> Path:
    """A source in which every training row has a different label."""
    path = copied / "glue/stsb/train.parquet"
    table = pq.ParquetFile(path).read()
    labels = pa.array([5.0 * row / ROWS for row in range(ROWS)], pa.float32())
    pq.write_table(table.set_column(2, "label", labels), path)
    return copied


def test_a_sample_is_part_of_the_next_larger_one_in_the_original_order(unlike, tmp_path):
    everything = drawn(unlike, tmp_path / "out", None, 0)
    assert len(everything) == len(set(everything)) == ROWS
    assert drawn(unlike, tmp_path / "out", ROWS, 0) == everything
    small, large = drawn(unlike, tmp_path / "out", 10, 0), drawn(unlike, tmp_path / "out", 30, 0)
    assert len(small) == 10
    assert [row for row in large if row in small] == small
    assert [row for row in everything if row in large] == large
    assert large != everything[:30]
    assert drawn(unlike, tmp_path / "out", 10, 1) != small


def test_rows_held_out_are_the_same_for_samples_of_any_size_and_in_none_of_them(unlike, tmp_path):
    heldout = {}
    for examples in (10, 40, None):
        out = tmp_path / str(examples)
        prepare("stsb", unlike, Prepare(train_examples=examples, heldout_examples=10, max_length=64), out)
        data = load_prepared(out)
        rows = {split: data[split]["labels"] for split in ("train", "heldout")}
        assert len(rows["train"]) == (examples or 40)
        assert not set(rows["heldout"]) & set(rows["train"])
        heldout[examples] = rows["heldout"]
    assert heldout[10] == heldout[40] == heldout[None]
    assert len(heldout[None]) == 10


def test_equal_inputs_give_equal_bytes_in_any_process_and_place(source, tmp_path):
    prepare("stsb", source, SETTINGS, tmp_path / "a")
    prepare("stsb", source, SETTINGS, tmp_path / "b")
    code = (
        "import sys; from pathlib import Path\n"
        "from nxm.data.prepare import prepare; from nxm.data.settings import Prepare\n"
        "prepare('stsb', Path(sys.argv[1]), Prepare.model_validate_json(sys.argv[2]), Path(sys.argv[3]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(source), SETTINGS.model_dump_json(), str(tmp_path / "c")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b") == sha256_tree(tmp_path / "c")
    prepare("stsb", source, SETTINGS.model_copy(update={"sample_seed": 4}), tmp_path / "d")
    assert sha256_tree(tmp_path / "a") != sha256_tree(tmp_path / "d")


def test_a_limit_above_what_there_is_takes_all(source, tmp_path):
    prepare("stsb", source, Prepare(train_examples=ROWS + 1, heldout_examples=10), tmp_path / "out")
    assert load_prepared(tmp_path / "out")["train"].num_rows == ROWS - 10


def test_holding_out_every_row_is_an_error_that_leaves_nothing(source, tmp_path):
    with pytest.raises(UserError, match=r"heldout_examples = 50, but task stsb has 50 training rows"):
        prepare("stsb", source, Prepare(heldout_examples=ROWS), tmp_path / "out" / "stsb")
    assert not (tmp_path / "out").exists()


def test_sequences_longer_than_the_model_reads_are_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"max_length = 129, but .*weights reads at most 128 tokens"):
        prepare("stsb", source, Prepare(max_length=129), tmp_path / "out")


def test_a_tokenizer_with_more_words_than_the_model_is_refused(copied, tmp_path):
    path = copied / "weights/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))
    with pytest.raises(UserError, match=r"the tokenizer has \d+ words, the model \d+"):
        prepare("stsb", copied, SETTINGS, tmp_path / "out")


def test_missing_inputs_are_named(copied, tmp_path):
    with pytest.raises(UserError, match="task 'sts' is unknown"):
        prepare("sts", copied, SETTINGS, tmp_path / "out")
    with pytest.raises(UserError, match=r"rte/train.parquet: there is no such file; run the stage fetch"):
        prepare("rte", copied, SETTINGS, tmp_path / "out")
    (copied / "glue/stsb/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train.parquet: not a readable parquet file"):
        prepare("stsb", copied, SETTINGS, tmp_path / "out")
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (copied / "weights" / name).unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"weights: there is no tokenizer; expected tokenizer.json, vocab.txt or vocab.json"
    ):
        prepare("sst2", copied, SETTINGS, tmp_path / "out")
    shutil.rmtree(copied / "weights")
    with pytest.raises(UserError, match="weights: there is no such folder; run the stage fetch"):
        prepare("sst2", copied, SETTINGS, tmp_path / "out")


def test_a_student_must_read_the_same_vocabulary(copied, tmp_path):
    shutil.copytree(copied / "weights", copied / "student")
    prepare("stsb", copied, SETTINGS, tmp_path / "out")
    path = copied / "student/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["plane"], vocabulary["man"] = vocabulary["man"], vocabulary["plane"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="student: the student's tokenizer is not that of the weights"):
        prepare("stsb", copied, SETTINGS, tmp_path / "out")


def test_an_incomplete_folder_is_never_loaded(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"out: is missing or incomplete"):
        load_prepared(out)
    prepare("stsb", source, SETTINGS, out)
    arrow = out / "train/data-00000-of-00001.arrow"
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"train/data-00000-of-00001.arrow is not the file that was written"):
        load_prepared(out)
    arrow.unlink()
    with pytest.raises(UserError, match=r"train/data-00000-of-00001.arrow is missing"):
        load_prepared(out)
    arrow.write_bytes(whole)
    assert load_prepared(out)["train"].num_rows == 20
    (out / "MANIFEST.json").write_text("[]")
    with pytest.raises(UserError, match=r"MANIFEST.json: not a manifest of nxm"):
        load_prepared(out)


def test_work_on_loaded_datasets_leaves_the_folder_as_it_is(source, tmp_path):
    prepare("stsb", source, SETTINGS, tmp_path / "out")
    before = sha256_tree(tmp_path / "out")
    loaded = load_prepared(tmp_path / "out")
    loaded.map(lambda row: {"more": row["length"] + 1}).filter(lambda row: row["more"] > 8).sort("length")
    assert sha256_tree(tmp_path / "out") == before


def test_the_stage_prints_what_is_wrong_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "stages/prepare.py"), "--task", "stsb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "params.yaml: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
