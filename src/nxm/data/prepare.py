"""Sample and tokenise a task's data, and save it as `datasets`.

Columns of every split: `input_ids` (int32), `attention_mask` (int8), `token_type_ids` (int8, if the tokenizer returns
them), `labels` (int64 classes or float32 scores) and `length` (int32, tokens), by which batches are grouped. Nothing is
padded here: the collator pads each batch to its longest row.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nxm.data.settings import Prepare
from nxm.data.tables import check_table
from nxm.data.tasks import Task, get_task
from nxm.data.weights import check_tokenizer
from nxm.errors import UserError
from nxm.files import check_manifest, new_folder, sha256_tree, write_manifest

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

_BATCH = 8192  # rows tokenised at once; bounds the memory of Python lists (MNLI has 393k rows)
_TYPES = {"input_ids": pa.int32(), "attention_mask": pa.int8(), "token_type_ids": pa.int8()}


def prepare(task_name: str, source: Path, settings: Prepare, out: Path) -> None:
    """Tokenise the splits of a task and save them as a `datasets.DatasetDict` in the folder `out`.

    At most `settings.most_examples(task)` rows of the training split are drawn: the first of a permutation of all rows
    by `numpy.random.default_rng(settings.sample_seed)`, so that a smaller sample is part of a larger one of the same
    seed. The permutation's last `settings.heldout_examples` rows are the split `heldout`: no sample contains them, and
    they are the same for samples of any size. Rows stay in the order of the original table. The bytes written depend on
    the inputs, the settings and the versions of the libraries alone.

    Args:
        source: the folder written by `nxm.data.fetch.fetch`: weights/, glue/<task>/, perhaps student/.
        out: the folder to create; an existing one is replaced once everything is written.

    Raises:
        UserError: the task is unknown, data is missing or unfit, all rows would be held out, sequences are longer than
            the model can read, or the student's vocabulary is not that of the weights.
    """
    from datasets import Dataset, DatasetDict

    task = get_task(task_name)
    tokenizer = _load_tokenizer(source / "weights", settings.max_length)
    tables = {split: _load_split(task, split, source / "glue") for split in task.splits}
    if (source / "student").exists():
        _check_student(task, tokenizer, source / "student", tables["train"], settings.max_length)
    tables |= _sample(task, tables["train"], settings)

    with new_folder(out) as folder:
        datasets = DatasetDict()
        for split, table in tables.items():
            tokenised = _tokenise(task, tokenizer, table, settings.max_length, f"{task.name} {split}")
            # a hash of the content alone; that of datasets depends on its version
            fingerprint = hashlib.sha256(_ipc_bytes(tokenised)).hexdigest()[:16]
            datasets[split] = Dataset(tokenised, fingerprint=fingerprint)
        datasets.save_to_disk(folder)
        # this module's former name: results record the sha256 of the folder, which includes the manifest
        origin = "nxm.prepare"
        files = {path.relative_to(folder).as_posix(): origin for path in folder.rglob("*") if path.is_file()}
        described = {
            "task": task.name,
            # this task's settings, so that a change for another task leaves these files unchanged
            "settings": settings.model_dump(exclude={"train_examples_by_task"})
            | {"train_examples": settings.most_examples(task.name)},
            "rows": {split: table.num_rows for split, table in tables.items()},
            "glue_sha256": sha256_tree(source / "glue" / task.name),
        }
        write_manifest(folder, files, described)


def load_prepared(path: Path) -> DatasetDict:
    """Load the datasets that `prepare` saved, after comparing each file with its sha256.

    The datasets are loaded into memory (MNLI: some 150 MB), not mapped: `map` and `filter` then leave no cache files in
    the folder, whose checksum is part of results.

    Raises:
        UserError: the folder is missing or incomplete, or a file has changed.
    """
    from datasets import DatasetDict

    check_manifest(path)
    return DatasetDict.load_from_disk(str(path), keep_in_memory=True)


def _load_tokenizer(folder: Path, max_length: int) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; run the stage fetch first")
    check_tokenizer([path.name for path in folder.iterdir()], str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from None
    positions = min(tokenizer.model_max_length, config.get("max_position_embeddings", tokenizer.model_max_length))
    if max_length > positions:
        raise UserError(f"prepare.max_length = {max_length}, but {folder} reads at most {positions} tokens")
    if len(tokenizer) > config.get("vocab_size", len(tokenizer)):
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} words, the model {config['vocab_size']}: they do not belong "
            "together"
        )
    return tokenizer


def _load_split(task: Task, split: str, folder: Path) -> pa.Table:
    path = folder / task.name / f"{split}.parquet"
    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run the stage fetch for task {task.name}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None
    return check_table(task, split, table, official=False, where=str(path))


def _sample(task: Task, table: pa.Table, settings: Prepare) -> dict[str, pa.Table]:
    """Return the splits `train` and, if rows are held out, `heldout`."""
    rows, heldout = table.num_rows, settings.heldout_examples
    if heldout >= rows:
        raise UserError(
            f"prepare.heldout_examples = {heldout}, but task {task.name} has {rows} training rows: hold out fewer"
        )
    wanted = min(settings.most_examples(task.name) or rows, rows - heldout)
    order = np.random.default_rng(settings.sample_seed).permutation(rows)
    sampled = {"train": table.take(pa.array(np.sort(order[:wanted])))}
    return sampled | ({"heldout": table.take(pa.array(np.sort(order[rows - heldout :])))} if heldout else {})


def _encode(task: Task, tokenizer: PreTrainedTokenizerBase, table: pa.Table, max_length: int) -> dict[str, list]:
    sentences = [table[name].to_pylist() for name in task.sentences]
    return tokenizer(*sentences, truncation=True, max_length=max_length).data


def _tokenise(task: Task, tokenizer: PreTrainedTokenizerBase, table: pa.Table, max_length: int, title: str) -> pa.Table:
    from tqdm.auto import tqdm

    parts = []
    with tqdm(total=table.num_rows, desc=f"tokenise {title}", unit=" rows") as bar:
        for start in range(0, table.num_rows, _BATCH):
            rows = table.slice(start, _BATCH)
            encoded = _encode(task, tokenizer, rows, max_length)
            columns = {
                name: pa.array(encoded[name], pa.list_(kind)) for name, kind in _TYPES.items() if name in encoded
            }
            columns["labels"] = rows["label"].combine_chunks()
            columns["length"] = pa.array([len(ids) for ids in encoded["input_ids"]], pa.int32())
            parts.append(pa.table(columns))
            bar.update(rows.num_rows)
    return pa.concat_tables(parts).combine_chunks()


def _check_student(
    task: Task, tokenizer: PreTrainedTokenizerBase, folder: Path, table: pa.Table, max_length: int
) -> None:
    """Raise UserError unless the student's tokenizer agrees with the teacher's: both read the same prepared data."""
    student = _load_tokenizer(folder, max_length)
    sample = table.slice(0, 256)
    same = student.get_vocab() == tokenizer.get_vocab() and (
        _encode(task, student, sample, max_length)["input_ids"]
        == _encode(task, tokenizer, sample, max_length)["input_ids"]
    )
    if not same:
        raise UserError(
            f"{folder}: the student's tokenizer is not that of the weights; both read the same prepared data, so "
            "choose a student with the vocabulary of its teacher (BERT-base and DistilBERT share one)"
        )


def _ipc_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
