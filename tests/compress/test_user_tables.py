"""Tables are read as they are, and what cannot be read is named with file, line and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from nxm.compress.tables import read_held_out_split, read_table
from nxm.errors import UserError
from user_data import write_csv, write_lines

ROWS = {"text": ["NA", "1.0", 'a "quoted", text', "None", "ä"], "label": ["no", "yes", "no", "yes", "no"]}


@pytest.mark.situation("nxm compress", "data as CSV, TSV, JSON lines, Parquet or a folder of `datasets`", "works")
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "datasets"])
def test_every_format_has_the_same_rows(kind, tmp_path):
    path = tmp_path / f"data.{kind}"
    frame = pd.DataFrame(ROWS)
    if kind == "csv":
        write_csv(path, frame)
    elif kind == "tsv":  # without quoting, as GLUE's
        lines = ["\t".join(frame.columns), *("\t".join(row) for row in frame.itertuples(index=False))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        write_lines(path, frame.to_dict("records"))
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        Dataset.from_pandas(frame).save_to_disk(path)
    assert read_table(path).columns == ROWS


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("text,label\na,b\n".encode("utf-8-sig"))
    assert list(read_table(path).columns) == ["text", "label"]


@pytest.mark.situation("nxm compress", "a text file in another encoding, without `--encoding`", "refused")
def test_another_encoding_is_named_with_its_line_and_can_be_given(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("text,label\na,x\nFüße,y\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"data\.csv: line 3: the byte 0xfc \(number 17 .* --encoding cp1252"):
        read_table(path)
    assert read_table(path, "cp1252").columns["text"] == ["a", "Füße"]
    with pytest.raises(UserError, match="--encoding nonesuch: unknown"):
        read_table(path, "nonesuch")


@pytest.mark.situation("nxm compress", "an empty, ragged or damaged data file", "refused")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", "", "the file is empty"),
        ("data.csv", "  \n", "the file is empty"),
        ("data.csv", "text,label\n", "has no rows"),
        ("data.csv", "text,label\na,b\nc,d,e\n", r"cannot be read as \.csv: .*line 3"),
        ("data.csv", "text;label\na;b\n", "has one column, 'text;label': is ';' between the columns"),
        ("data.jsonl", '{"text": "a"}\n{"text": \n', "line 2: no JSON"),
        ("data.jsonl", '["a", "b"]\n', "line 1: expected an object"),
        ("data.parquet", "PAR1", "not a readable parquet file"),
        ("data.xlsx", "x", r"expected one of \.csv, \.tsv"),
    ],
)
def test_bad_files_are_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}: {message}"):
        read_table(path)


def test_a_missing_file_and_a_folder_without_data_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: there is no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no folder saved by `datasets`"):
        read_table(tmp_path)


def test_a_folder_with_splits_gives_its_training_and_validation_rows_and_the_names_of_classes(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    splits = {
        name: Dataset.from_dict({"text": [name], "label": [1]}, features) for name in ("train", "validation", "test")
    }
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    table, held = read_table(tmp_path / "data"), read_held_out_split(tmp_path / "data")
    assert table.columns == {"text": ["train"], "label": [1]}
    assert table.names == {"label": ["no", "yes"]}
    assert held is not None
    assert held.columns["text"] == ["validation"]


def test_a_parquet_file_of_datasets_gives_the_names_of_classes_and_one_of_a_later_version_its_rows(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features).to_parquet(tmp_path / "data.parquet")
    table = read_table(tmp_path / "data.parquet")
    assert (table.columns, table.names) == ({"text": ["a"], "label": [1]}, {"label": ["no", "yes"]})
    later = json.dumps({"info": {"features": {"text": {"_type": "Hologram"}}}})
    arrow = pq.read_table(tmp_path / "data.parquet").replace_schema_metadata({"huggingface": later})
    pq.write_table(arrow, tmp_path / "later.parquet")
    again = read_table(tmp_path / "later.parquet")
    assert (again.columns, again.names) == (table.columns, {})


def test_a_file_has_no_held_out_split(tmp_path):
    assert read_held_out_split(write_csv(tmp_path / "data.csv", pd.DataFrame(ROWS))) is None
    Dataset.from_dict(ROWS).save_to_disk(tmp_path / "data")
    assert read_held_out_split(Path(tmp_path / "data")) is None
