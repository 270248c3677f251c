"""Models in the forms of deployment: comparisons, and reasons for absent forms. No test reads a clock."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from nxm.data.tasks import compute_metrics, get_task
from nxm.errors import UserError
from nxm.export.trained import load_trained, outputs
from nxm.files import write_manifest
from nxm.measure import forms
from nxm.measure.forms import Form, is_feed_forward, random_inputs, run_deployment
from nxm.measure.timing import Call
from nxm.models.shrink import shrink
from nxm.models.structure import Structure, full_structure
from nxm.models.targets import find_targets
from nxm.sets.integers import Integers
from nxm.sets.saved import write_patterns
from nxm.study.results import read_measurements
from nxm.study.settings import Deployment, Study
from stand_in import cusparselt_on_cpu
from tiny_models import MODELS, NO_COMPILER, NO_OPENVINO, TWO_OF_FOUR, save_model

CPU = torch.device("cpu")
DEV = 21
SETTINGS = Deployment(
    devices=["cpu"],
    seeds=[3],
    models=["dense", "asp", "nxm", "distil", "distil_nxm"],
    forms=["fp32", "bf16", "fp16"],
    batch_sizes=[1, 2],
    lengths=[8, 16],
    scores=True,
    warmup=1,
    repeats=3,
)


def study_of(deployment: Deployment) -> Study:
    """The part of a study that the stage reads."""
    return Study.model_construct(study="tiny", tasks=["rte"], deployment=deployment)


@pytest.fixture
def study() -> Study:
    return study_of(SETTINGS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study's folder with three trained models (two of them sparse, one a student) and prepared data."""
    for seed, name in enumerate(("dense", "nxm", "distil_nxm")):
        torch.manual_seed(seed)
        kind = "distilbert" if "distil" in name else "bert"
        saved = tmp_path / "models" / "rte" / name / "seed3"
        save_model(saved, MODELS[kind](), TWO_OF_FOUR if "nxm" in name else None)
    prepared = tmp_path / "data" / "prepared" / "rte"
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 30, DEV).tolist()
    rows = {
        "input_ids": [draw.integers(5, 50, length).tolist() for length in lengths],
        "token_type_ids": [[0] * length for length in lengths],
        "attention_mask": [[1] * length for length in lengths],
        "labels": draw.integers(0, 2, DEV).tolist(),
        "length": lengths,
    }
    DatasetDict(validation=Dataset.from_dict(rows)).save_to_disk(prepared)
    files = {path.relative_to(prepared).as_posix(): "test" for path in prepared.rglob("*") if path.is_file()}
    write_manifest(prepared, files, {})
    return tmp_path


def unit_timer(call: Call, device: torch.device) -> float:
    call()
    return 1e-3


def key(row: dict) -> tuple[str, ...]:
    return tuple(row[name] for name in ("model", "way", "dtype", "kernel"))


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_every_form_has_a_row_at_every_point_and_a_score(folder: Path, study: Study) -> None:
    names = ["fp32", "bf16", "fp16", "onnx", "int8"]
    study = study_of(SETTINGS.replace(forms=names))
    path = run_deployment(study, "cpu", folder, unit_timer)
    assert path == folder / "results/deployment/cpu.json"
    (file,) = read_measurements(path.parent)
    timed = [row for row in file["rows"] if "median_ms" in row]
    models = ("dense", "nxm", "distil_nxm")
    ways = (("eager", "fp32"), ("eager", "bf16"), ("onnx", "fp32"), ("onnx", "int8"), ("pt2e", "int8"))
    expected = {
        (model, *form, "dense", batch, n) for model in models for form in ways for batch in (1, 2) for n in (8, 16)
    }
    assert {(*key(row), row["batch"], row["length"]) for row in timed} == expected
    assert len(timed) == len(expected)
    for row in timed:
        assert row["speedup_over_dense_fp32"] == 1.0
        assert row["sentences_per_second"] == 1000 * row["batch"]
        assert row["tokens_per_second"] == 1000 * row["batch"] * row["length"]
        assert not row["noisy"]
    assert {key(row) for row in file["scores"]} == {key(row) for row in timed}
    assert [row for row in file["rows"] if "absent" in row] == [
        {"model": model, "absent": "no model of this method was found"} for model in ("asp", "distil")
    ] + [
        {"model": model, "way": "eager", "dtype": "bf16", "kernel": "2:4", "absent": "no 2:4 kernel in PyTorch for cpu"}
        for model in ("nxm", "distil_nxm")
    ]
    found = {key(row): row["score"] for row in file["scores"]}
    assert all(found[model, "onnx", "fp32", "dense"] == found[model, "eager", "fp32", "dense"] for model in models)
    sizes = {key(row): row["size_mib"] for row in timed}
    assert sizes["nxm", "eager", "bf16", "dense"] == pytest.approx(sizes["nxm", "eager", "fp32", "dense"] / 2, abs=0.02)
    assert all(sizes["nxm", way, "int8", "dense"] < sizes["nxm", "onnx", "fp32", "dense"] for way in ("onnx", "pt2e"))
    assert not (folder / "checkpoints/deployment-cpu").exists()


def test_a_shrunk_model_is_measured_and_is_smaller(folder: Path, study: Study) -> None:
    saved = folder / "models/rte/nxm/seed3"
    torch.manual_seed(0)
    dense = MODELS["bert"]()
    whole = full_structure(dense)
    structure = Structure(*(tuple(layer[:1] for layer in layers) for layers in (whole.heads, whole.rows)))
    shutil.rmtree(saved)
    save_model(saved, shrink(dense, structure, multiple=8), TWO_OF_FOUR)
    file = json.loads(run_deployment(study, "cpu", folder, unit_timer).read_text())
    sizes = {row["model"]: row["size_mib"] for row in file["rows"] if row.get("dtype") == "fp32"}
    assert sizes["nxm"] < sizes["dense"]
    assert {row["model"] for row in file["scores"]} == {"dense", "nxm", "distil_nxm"}


def test_scores_are_those_of_the_models_on_every_row_in_its_own_order(folder: Path, study: Study) -> None:
    file = json.loads(run_deployment(study, "cpu", folder, unit_timer).read_text())
    found = {key(row): row["score"] for row in file["scores"]}
    trained = load_trained(folder / "models/rte/nxm/seed3")
    rows = DatasetDict.load_from_disk(folder / "data/prepared/rte")["validation"]
    logits = np.concatenate(
        [outputs(trained.model, {"input_ids": torch.tensor([row["input_ids"]])})["logits"] for row in rows]
    )
    expected = compute_metrics(get_task("rte"), logits, np.asarray(rows["labels"]))["accuracy"]
    assert found["nxm", "eager", "fp32", "dense"] == pytest.approx(expected, abs=1e-3)


def test_a_killed_run_measures_no_unit_twice(folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    measured: list[tuple[Form, tuple[int, int]]] = []
    honest = forms._measure

    def until_killed(running: object, reference: object, rival: object, *given: Any) -> list:
        if len(measured) == 5:
            raise KilledError
        measured.append(given[:2])
        return honest(running, reference, rival, *given)

    monkeypatch.setattr(forms, "_measure", until_killed)
    with pytest.raises(KilledError):
        run_deployment(study, "cpu", folder, unit_timer)
    assert not (folder / "results").exists()
    monkeypatch.setattr(forms, "_measure", lambda *given: measured.append(given[3:5]) or honest(*given))
    run_deployment(study, "cpu", folder, unit_timer)
    assert len(measured) == len(set(measured)) == 3 * 4


def test_rows_of_a_model_that_was_trained_anew_are_measured_again(
    folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "write_json", lambda path, content: pytest.fail("no space left"))
    with pytest.raises(pytest.fail.Exception):
        run_deployment(study, "cpu", folder, unit_timer)  # all units are recorded, the result is not written
    monkeypatch.undo()
    torch.manual_seed(9)
    shutil.rmtree(folder / "models/rte/nxm/seed3")
    save_model(folder / "models/rte/nxm/seed3", MODELS["bert"](), TWO_OF_FOUR)
    counted: list[object] = []
    honest = forms._measure
    monkeypatch.setattr(forms, "_measure", lambda *given: counted.append(given[3:5]) or honest(*given))
    run_deployment(study, "cpu", folder, unit_timer)
    assert len(counted) == 3 * 4


def test_a_form_whose_outputs_differ_is_absent_with_the_reason(
    folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "HALF_TOLERANCE", 0.0)
    file = json.loads(run_deployment(study, "cpu", folder, unit_timer).read_text())
    absent = [row for row in file["rows"] if (row.get("dtype"), row.get("kernel")) == ("bf16", "dense")]
    assert len(absent) == 3
    assert all("outputs of the eager bf16 model differ" in row["absent"] for row in absent)
    assert not any(row["dtype"] == "bf16" for row in file["scores"])


def test_speedups_are_over_the_dense_model_in_the_same_rounds(folder: Path) -> None:
    models = {name: load_trained(folder / f"models/rte/{name}/seed3") for name in ("dense", "nxm")}
    reference = forms._Running(models["dense"], forms.REFERENCE, CPU)
    running, absent = forms._prepare({"nxm": models["nxm"]}, forms.REFERENCE, CPU)
    assert absent == []
    seconds = {id(reference): 4.0, id(running["nxm"]): 2.0}
    for own in (reference, running["nxm"]):
        own.call = lambda inputs, own=own: lambda: seconds[id(own)]  # type: ignore[method-assign]
    measure = partial(forms._measure, running, reference)
    given = (forms.REFERENCE, (1, 8), CPU, SETTINGS, lambda call, device: float(call()))
    (row,) = measure(None, *given)
    assert row["speedup_over_dense_fp32"] == 2.0
    assert "speedup_over_dense_same_form" not in row
    rival = forms._Running(models["dense"], forms.REFERENCE, CPU)
    rival.call = lambda inputs: lambda: 3.0  # type: ignore[method-assign]
    (row,) = measure(rival, *given)
    assert (row["speedup_over_dense_fp32"], row["speedup_over_dense_same_form"]) == (2.0, 1.5)


def test_a_point_that_the_machine_cannot_run_has_a_row_with_the_reason(folder: Path) -> None:
    models = {name: load_trained(folder / f"models/rte/{name}/seed3") for name in ("dense", "nxm")}
    reference = forms._Running(models["dense"], forms.REFERENCE, CPU)
    running, _ = forms._prepare({"nxm": models["nxm"]}, forms.REFERENCE, CPU)

    def out_of_memory(call: Call, device: torch.device) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")

    (row,) = forms._measure(running, reference, None, forms.REFERENCE, (1, 8), CPU, SETTINGS, out_of_memory)
    assert row["absent"] == "CUDA out of memory. Tried to allocate"
    assert (row["model"], row["batch"], row["length"]) == ("nxm", 1, 8)


def test_2of4_forms_count_a_sparse_kernel_per_packed_matrix(folder: Path, monkeypatch) -> None:
    """On a stand-in no kernel is sparse by its name, so the proof must fail."""
    monkeypatch.setattr(forms, "why_no_gpu", lambda device: None)
    models = {name: load_trained(folder / f"models/rte/{name}/seed3") for name in ("dense", "nxm")}
    form = Form("eager", "bf16", "2:4")
    with cusparselt_on_cpu():
        reference = forms._Running(models["dense"], forms.REFERENCE, CPU)
        running, absent = forms._prepare({"nxm": models["nxm"]}, form, CPU)
        assert absent == []
        rival = forms._rival(models["dense"], form, CPU)
        (row,) = forms._measure(running, reference, rival, form, (2, 8), CPU, SETTINGS, unit_timer)
    assert row["packed"] == len(find_targets(models["nxm"].model))
    assert (row["sparse_launches"], row["sparse_kernels"]) == (0, False)
    assert row["speedup_over_dense_same_form"] == 1.0


def test_without_2of4_kernels_those_forms_say_why(folder: Path) -> None:
    models = {"nxm": load_trained(folder / "models/rte/nxm/seed3")}
    running, absent = forms._prepare(models, Form("eager", "bf16", "2:4"), CPU)
    assert running == {}
    assert absent == [
        {"model": "nxm", "way": "eager", "dtype": "bf16", "kernel": "2:4", "absent": "no 2:4 kernel in PyTorch for cpu"}
    ]


@pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed")
def test_in_openvino_rows_and_scores_are_complete_and_have_the_kernels_that_ran(folder: Path) -> None:
    shutil.rmtree(folder / "models/rte/distil_nxm")
    study = study_of(SETTINGS.replace(forms=["openvino", "openvino_int8"], lengths=[8]))
    file = json.loads(run_deployment(study, "cpu", folder, unit_timer).read_text())
    assert not any("absent" in row and "way" in row for row in file["rows"])
    timed = [row for row in file["rows"] if "median_ms" in row]
    models = ("dense", "nxm")
    expected = {(name, "openvino", d, "dense", n) for name in models for d in ("fp32", "int8") for n in (1, 2)}
    assert {(*key(row), row["batch"]) for row in timed} == expected
    assert {key(row) for row in file["scores"]} == {each[:4] for each in expected}
    assert "openvino" in file["provenance"]["versions"]
    sizes = {key(row): row["size_mib"] for row in timed}
    for row in timed:
        assert row["kernels"]
        assert ("integer_products" in row) == (row["dtype"] == "int8")
        if row["dtype"] == "int8":
            layers = 2 + len(find_targets(load_trained(folder / f"models/rte/{row['model']}/seed3").model))
            assert row["integer_matrices"] == layers
            assert 0 <= row["integer_products"] <= layers
            assert sizes[key(row)] < sizes[row["model"], "openvino", "fp32", "dense"]


@pytest.mark.parametrize(
    ("form", "module", "package"),
    [(Form("openvino", "int8"), "openvino", "openvino"), (Form("onnx", "fp32"), "onnx", "onnxruntime")],
)
def test_without_its_package_a_form_is_absent_with_the_remedy(folder: Path, monkeypatch, form, module, package) -> None:
    monkeypatch.delitem(sys.modules, f"nxm.export.{module}", raising=False)
    monkeypatch.delattr(f"nxm.export.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    running, absent = forms._prepare({"nxm": load_trained(folder / "models/rte/nxm/seed3")}, form, CPU)
    assert running == {}
    said = f"the package {package} is not installed: pip install 'nxm[export]'"
    assert absent == [{"model": "nxm"} | form.described | {"absent": said}]


@pytest.mark.parametrize("name", ["dense", "nxm", "distil_nxm"])
def test_integers_for_a_gpu_run_in_dense_kernels_anywhere(folder: Path, name: str) -> None:
    trained = load_trained(folder / f"models/rte/{name}/seed3")
    form = Form("eager", "int8")
    running, absent = forms._prepare({name: trained}, form, CPU)
    assert absent == []
    inputs = trained.encode(["one sentence", "another one, longer"])
    found, exact = running[name].answer(inputs)["logits"], outputs(trained.model, inputs)["logits"]
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    half = forms._Running(trained, Form("eager", "bf16"), CPU)
    integers = sum(W.numel() for W in find_targets(trained.model).values())  # one byte each, and one scale per output
    scales = 4 * sum(len(W) for W in find_targets(trained.model).values())
    assert running[name].size == half.size - integers + scales


@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_compiled_forms_are_all_compiled_before_they_are_timed(folder: Path) -> None:
    models = {name: load_trained(folder / f"models/rte/{name}/seed3") for name in ("nxm", "distil_nxm")}
    compiled = torch._dynamo.utils.counters["stats"]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for dtype in ("fp32", "bf16", "int8"):  # twelve programs of one wrapper, and PyTorch's limit is eight
            before = compiled["unique_graphs"]
            running, absent = forms._prepare(models, Form("compiled", dtype), CPU)
            assert absent == []
            assert compiled["unique_graphs"] == before + 4  # two architectures, each with one more for batch size 1
            for own in running.values():
                for batch in (1, 3):
                    own.call(random_inputs(own.trained, batch, 8))()
            assert compiled["unique_graphs"] == before + 4


def test_without_a_compiler_a_form_is_absent_with_the_reason(folder: Path) -> None:
    models = {"nxm": load_trained(folder / "models/rte/nxm/seed3")}
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-compiler-of-this-name")}):
        running, absent = forms._prepare(models, Form("compiled", "fp32"), CPU)
    assert running == {}
    assert "could not compile" in absent[0]["absent"]


def test_without_a_gpu_the_file_says_so(folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = json.loads(run_deployment(study, "cuda", folder, unit_timer).read_text())
    assert file["absent"] == "no CUDA device where this was run"
    assert file["rows"] == file["scores"] == []


def test_what_is_needed_is_named(folder: Path, study: Study) -> None:
    long = study_of(SETTINGS.replace(lengths=[8, 65]))
    with pytest.raises(UserError, match=r"deployment\.lengths has 65.*64 tokens"):
        run_deployment(long, "cpu", folder, unit_timer)
    (folder / "models/rte/dense/seed3/config.json").unlink()
    with pytest.raises(UserError, match=r"dense.*run the stage baseline"):
        run_deployment(study, "cpu", folder, unit_timer)


@pytest.mark.parametrize("name", ["bert", "distilbert", "electra", "mpnet", "roberta"])
def test_a_third_of_the_targets_are_feed_forward(name: str) -> None:
    targets = find_targets(MODELS[name]())
    assert sum(is_feed_forward(target) for target in targets) == len(targets) // 3


def test_inputs_are_those_that_the_model_takes(folder: Path) -> None:
    student = load_trained(folder / "models/rte/distil_nxm/seed3")
    assert set(random_inputs(student, 2, 8)) == {"input_ids", "attention_mask"}
    assert random_inputs(student, 2, 8)["input_ids"].shape == (2, 8)


def test_of_a_model_with_several_sets_the_matrices_with_2of4_zeros_are_packed(tmp_path):
    model = MODELS["bert"]()
    save_model(tmp_path / "model", model, None)
    claims: dict[Any, list[str]] = {Integers(8, TWO_OF_FOUR): [], Integers(4): [], TWO_OF_FOUR: []}
    with torch.no_grad():
        for place, (name, W) in enumerate(find_targets(model).items()):
            constraint = list(claims)[place % 3]
            W.copy_(constraint.project(W).Z)
            claims[constraint].append(name)
    write_patterns(model.config, claims.items())
    model.save_pretrained(tmp_path / "model")
    found = forms._packable(load_trained(tmp_path / "model"))
    assert sorted(found) == sorted(claims[Integers(8, TWO_OF_FOUR)] + claims[TWO_OF_FOUR])
    save_model(tmp_path / "one", MODELS["bert"]())
    assert forms._packable(load_trained(tmp_path / "one")) == list(find_targets(model))
