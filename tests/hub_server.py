"""A stand-in for the Hugging Face Hub on loopback, for the real huggingface_hub client (2.x).

It serves a folder: models/<owner>/<name>/… and datasets/<owner>/<name>/…, each as a repository of one commit whose id
follows from the content. Its endpoints are those that `HfApi.repo_info(files_metadata=True)` and `snapshot_download`
use:

    GET       /api/{models,datasets}/<owner>/<name>[/revision/<revision>]
    GET       /api/{models,datasets}/<owner>/<name>/tree/<revision>
    HEAD, GET [/datasets]/<owner>/<name>/resolve/<revision>/<path>     (with Range)

It can break off in the middle of a file, answer with an error and serve bytes other than those it states.
By hand: `python tests/hub_server.py FOLDER`, then `HF_ENDPOINT=<what it prints>` for the client.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from nxm.data.tasks import Task


class HubServer:
    """Serve `folder` while the `with` block runs; `endpoint` is its address.

    Faults, by the file's name (last part of its path), to be set before a request:
        break_off: number of next GETs that send half of what was asked for, then close the connection.
        unavailable: set of files answered with status 503 to every GET after a broken one.
        replace: bytes served in place of the file, with unchanged metadata.
    `gets` counts the GET requests for each file's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.break_off: Counter[str] = Counter()
        self.unavailable: set[str] = set()
        self.replace: dict[str, bytes] = {}
        self.gets: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, kind: str, name: str) -> str:
        """Return the commit of a repository, 40 hexadecimal digits that depend on every file."""
        digest = hashlib.sha1()
        repository = self.folder / kind / name
        for path in sorted(repository.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(repository)} {_sha256(path)}\n".encode())
        return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _large(path: Path) -> bool:
    """Return whether the Hub stores a file in Git LFS and states its sha256."""
    return path.suffix in {".safetensors", ".parquet", ".bin"}


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
                self._info(*match.groups())
            elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
                self._tree(*match.groups())
            elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                kind = "datasets" if match[1] else "models"
                self._file(kind, match[2], match[3], match[4])
            else:
                self._error(404, "NotFound")

        def _error(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _commit(self, kind: str, name: str, revision: str | None) -> str | None:
            if not (hub.folder / kind / name).is_dir():
                self._error(401, "RepoNotFound")
                return None
            commit = hub.commit(kind, name)
            if revision not in (None, "main", commit):
                self._error(404, "RevisionNotFound")
                return None
            return commit

        def _info(self, kind: str, name: str, revision: str | None) -> None:
            if (commit := self._commit(kind, name, revision)) is None:
                return
            siblings = []
            for path, file in self._files(kind, name):
                sibling = {"rfilename": path, "size": file.stat().st_size, "blobId": "0" * 40}
                if _large(file):
                    sibling["lfs"] = {"size": sibling["size"], "sha256": _sha256(file), "pointerSize": 134}
                siblings.append(sibling)
            self._json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

        def _tree(self, kind: str, name: str, revision: str) -> None:
            if self._commit(kind, name, revision) is None:
                return
            entries = []
            for path, file in self._files(kind, name):
                entry = {"type": "file", "path": path, "size": file.stat().st_size, "oid": "0" * 40}
                if _large(file):
                    entry["lfs"] = {"size": entry["size"], "oid": _sha256(file), "pointerSize": 134}
                entries.append(entry)
            self._json(entries)

        def _files(self, kind: str, name: str) -> list[tuple[str, Path]]:
            repository = hub.folder / kind / name
            files = sorted(path for path in repository.rglob("*") if path.is_file())
            return [(path.relative_to(repository).as_posix(), path) for path in files]

        def _json(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, kind: str, name: str, revision: str, path: str) -> None:
            if (commit := self._commit(kind, name, revision)) is None:
                return
            file = hub.folder / kind / name / path
            if not file.is_file():
                return self._error(404, "EntryNotFound")
            content = file.read_bytes()
            get = self.command == "GET"
            if get:
                hub.gets[file.name] += 1
                if file.name in hub.unavailable and not hub.break_off[file.name]:
                    return self._error(503, "Unavailable")
                content = hub.replace.get(file.name, content)
            start = 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(asked[1])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{_sha256(file)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not get:
                return None
            body = content[start:]
            if hub.break_off[file.name]:
                hub.break_off[file.name] -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)
            return None

    return Handler


def make_tiny_bert(folder: Path) -> None:
    """Write a BERT of 2 layers, 32 wide, with random weights and a WordPiece tokenizer, in the Hub's layout."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    words = _write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(folder)


def make_tiny_distilbert(folder: Path) -> None:
    """Write a DistilBERT of 1 layer with random weights and the tokenizer of `make_tiny_bert`."""
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    words = _write_tokenizer(folder)
    torch.manual_seed(1)
    config = DistilBertConfig(
        vocab_size=words, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=128
    )
    DistilBertForMaskedLM(config).save_pretrained(folder)


def _write_tokenizer(folder: Path) -> int:
    """Write a tokenizer and return its number of words."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "is",
        "not",
        "the",
        "plane",
        "man",
        "taking",
        "off",
        ".",
    ]
    letters = [chr(ord("a") + index) for index in range(26)]
    vocabulary = list(dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    return len(vocabulary)


def make_table(task: Task, rows: int) -> pa.Table:
    """Return synthetic rows of a task, in its schema."""
    words = ["a", "the", "plane", "man", "is", "not", "taking", "off"]
    columns: dict[str, list] = {
        name: [
            " ".join(words[(row * 3 + place * (column + 2)) % len(words)] for place in range(3 + row % 5)) + " ."
            for row in range(rows)
        ]
        for column, name in enumerate(task.sentences)
    }
    columns["label"] = [row % 6 if task.regression else row % task.num_labels for row in range(rows)]
    columns["idx"] = list(range(rows))
    return pa.table(columns, schema=task.schema)


def make_glue(folder: Path, tasks: list[Task], rows: int, *, hub: bool) -> None:
    """Write synthetic tables, named as in nyu-mll/glue if `hub`, else <task>/<split>.parquet."""
    for task in tasks:
        (folder / task.name).mkdir(parents=True)
        for split in task.splits:
            name = f"{split}-00000-of-00001.parquet" if hub else f"{split}.parquet"
            pq.write_table(make_table(task, rows), folder / task.name / name)


if __name__ == "__main__":
    with HubServer(Path(sys.argv[1])) as server:
        print(server.endpoint, flush=True)
        threading.Event().wait()
