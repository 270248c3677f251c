"""`compress_model` end to end: every task, a kill, the gate, the budget, other settings, exports and bad input."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import nxm
from nxm.compress import plan as planning
from nxm.compress import prepare, run, train
from nxm.compress.score import Score
from nxm.errors import UserError
from nxm.export.trained import load_trained
from tiny_models import NO_OPENVINO, save_model
from user_data import distilbert_of, reviews, save_tagger, save_tiny, write_csv, write_lines

OPENVINO = pytest.param("openvino-int8", marks=pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed"))
FAST = {"dense_epochs": 2, "epochs": 2, "batch_size": 16, "dense_learning_rate": 3e-3, "learning_rate": 3e-3}


def compress(tmp_path: Path, model: Path, data: Path, **options: Any) -> run.Outcome:
    return nxm.compress_model(model, data, **({"out": tmp_path / "out"} | FAST | options))


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch):
    """Every timed call takes a second: no plan and no latency in these tests depends on the machine."""

    def timer(call, device):
        call()
        return 1.0

    monkeypatch.setattr(planning.measure_speed, "__defaults__", (timer,))
    monkeypatch.setattr("nxm.compress.speed.measure.__defaults__", (timer,))
    monkeypatch.setattr("nxm.compress.speed.REPEATS", 2)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_csv(tmp_path / "data.csv", reviews())


@pytest.fixture
def fine_tuned(tmp_path) -> Path:
    """A model whose head is for these labels, so that a run only compresses."""
    torch.manual_seed(0)
    return save_model(tmp_path / "fine-tuned", distilbert_of(["bad", "good"]), pattern=None, spread=2.0)


# --- tasks ---------------------------------------------------------------------------------------------------------


def pairs(path: Path) -> Path:
    frame = reviews().rename(columns={"text": "sentence1"})
    return write_csv(path, frame.assign(sentence2=frame.sentence1.str[::-1], label=(frame.label == "good").astype(int)))


def scores(path: Path) -> Path:
    frame = reviews()
    return write_csv(path, frame.assign(label=[0.5 + i % 2 * 2 + i / 1000 for i in range(len(frame))]))


def labels(path: Path) -> Path:
    frame = reviews()
    columns = {"long": (frame.text.str.len() > 20) * 1, "good": (frame.label == "good") * 1}
    return write_csv(path, frame.drop(columns="label").assign(**columns))


def label_lists(path: Path) -> Path:
    rows = [
        {"text": text, "labels": [label] * (i % 3 > 0)}
        for i, (text, label) in enumerate(reviews().itertuples(index=False))
    ]
    return write_lines(path, rows)


def tags(path: Path) -> Path:
    rows = [
        {"tokens": text.split(), "tags": ["B-Q" if word in "yz" else "O" for word in text.split()]}
        for text in reviews().text
    ]
    return write_lines(path, rows)


@pytest.mark.situation("nxm compress", "single texts and pairs, regression, several labels, tags of words", "works")
@pytest.mark.parametrize(
    ("architecture", "write", "name", "task", "metric", "to"),
    [
        ("bert", pairs, "data.csv", "classification", "accuracy", "2:4"),
        ("mpnet", scores, "data.csv", "regression", "spearman", "2:4 int8"),
        ("electra", labels, "data.csv", "multi-label", "micro_f1", "int4"),
        ("distilbert", label_lists, "data.jsonl", "multi-label", "micro_f1", "1:4"),
        ("bert", tags, "data.jsonl", "token-classification", "entity_f1", "50 %"),
    ],
)
def test_every_task_is_compressed_checked_and_reported(architecture, write, name, task, metric, to, tmp_path, capsys):
    model = save_tiny(tmp_path / "model", architecture)
    outcome = compress(tmp_path, model, write(tmp_path / name), to=to, fine_tune=True)
    assert outcome.passed
    report = outcome.report
    assert report == json.loads((outcome.folder / "report.json").read_text())
    assert (report["task"], report["metric"], report["to"]) == (task, metric, str(nxm.parse_set(to)))
    assert report["check"]["compared"]
    assert report["check"]["matrices"] == report["check"]["obeying"] == 12
    trained = load_trained(outcome.model)  # asserts the pattern
    assert {str(claimed) for claimed, _ in trained.claims} == {report["to"]}
    dense = load_file(outcome.folder / "dense" / "model.safetensors")
    assert dense.keys() == load_file(outcome.model / "model.safetensors").keys()
    printed = capsys.readouterr().out
    assert f"task: {task}" in printed
    assert printed.splitlines()[-1].startswith(f"report: {outcome.folder}/report.md")
    assert sorted(path.name for path in outcome.folder.iterdir()) == sorted(
        ["dense", "model", "plan.json", "report.html", "report.json", "report.md", "settings.json"]
    )


def test_the_report_has_scores_sizes_speed_and_advice_and_html_loads_nothing(fine_tuned, data, tmp_path):
    outcome = compress(tmp_path, fine_tuned, data, to="2:4 int8", export="packed")
    text = (outcome.folder / "report.md").read_text()
    for words in (
        "## Score",
        "accuracy",
        "## Size",
        "Bits per weight",
        "## Speed",
        "same dense fp32 kernels",
        "Train longer",
    ):
        assert words in text
    page = (outcome.folder / "report.html").read_text()
    assert not any(mark in page for mark in ("src=", "href=", "@import", "url("))
    assert page.count("<h2>") == text.count("\n## ")
    card = (outcome.model / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    size = outcome.report["size"]
    assert outcome.report["export"]["bytes"] < size["compressed_bytes"]
    assert size["bits_per_weight"] < 6  # 5 of 2:4 int8, and the scales


# --- the head, start and teacher ---


def test_a_model_with_the_right_head_is_start_and_teacher_and_is_not_fine_tuned(fine_tuned, data, tmp_path, capsys):
    outcome = compress(tmp_path, fine_tuned, data)
    assert not (outcome.folder / "dense").exists()
    assert outcome.plan.dense_epochs == 0
    assert "has a head for these labels: start and teacher" in capsys.readouterr().out
    names = AutoModelForSequenceClassification.from_pretrained(outcome.model).config.id2label
    assert names == {0: "bad", 1: "good"}


def test_it_is_fine_tuned_if_the_user_says_so(fine_tuned, data, tmp_path):
    outcome = compress(tmp_path, fine_tuned, data, fine_tune=True)
    assert outcome.plan.dense_epochs == 2
    assert (outcome.folder / "dense" / "config.json").is_file()


def test_the_papers_recipe_starts_from_the_given_weights_and_has_no_teacher(fine_tuned, data, tmp_path, monkeypatch):
    given = {}
    honest = run.train

    def spy(model, *args, **kwargs):
        given.update(kwargs)
        return honest(model, *args, **kwargs)

    monkeypatch.setattr(run, "train", spy)
    outcome = compress(tmp_path, fine_tuned, data, recipe="paper")
    assert given["teacher"] is None
    assert given["callback"].settings.recipe == "paper"
    assert outcome.report["check"]["obeying"] == 12


# --- a kill --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> run.Outcome:
    """A run without a kill; its model and data lie next to its output."""
    folder = tmp_path_factory.mktemp("whole")
    return compress(folder, save_tiny(folder / "model"), write_csv(folder / "data.csv", reviews()))


@pytest.mark.situation("nxm compress", "a kill: the same command goes on and ends with the same weights", "works")
@pytest.mark.parametrize("saves", [3, 11, 15])  # in the fine-tuning of 8 steps; in the compression; after its freeze
def test_a_killed_run_goes_on_and_ends_with_the_same_weights_and_scores(saves, whole, tmp_path, monkeypatch):
    model, data = (whole.folder.parent / name for name in ("model", "data.csv"))
    honest, count = train.MarkComplete.on_save, itertools.count(1)

    def dies(self, *args, **kwargs):
        if next(count) == saves:
            raise KeyboardInterrupt  # before the checkpoint is marked complete
        honest(self, *args, **kwargs)

    monkeypatch.setattr(train.MarkComplete, "on_save", dies)
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path, model, data)
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.undo()
    again = compress(tmp_path, model, data)
    for part in ("dense", "model"):
        assert equal_weights(whole.folder / part, again.folder / part)
    for part in ("scores", "check", "size"):
        assert whole.report[part] == again.report[part]


@pytest.mark.parametrize("part", ["dense", "model"])
def test_a_kill_while_a_model_is_saved_loses_no_training(part, whole, tmp_path, monkeypatch):
    model, data = (whole.folder.parent / name for name in ("model", "data.csv"))
    honest = run.save_model

    def dies(model, tokenizer, folder):
        if folder.name == part:
            raise KeyboardInterrupt
        honest(model, tokenizer, folder)

    monkeypatch.setattr(run, "save_model", dies)
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path, model, data)
    monkeypatch.undo()
    again = compress(tmp_path, model, data)
    assert equal_weights(whole.model, again.model)
    assert whole.report["scores"] == again.report["scores"]


def equal_weights(one: Path, other: Path) -> bool:
    tensors, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return tensors.keys() == others.keys() and all(torch.equal(W, others[name]) for name, W in tensors.items())


# --- the output folder ---


@pytest.mark.situation("nxm compress", "an output folder with other settings, or with files of others", "refused")
def test_other_settings_are_refused_by_name_unless_forced(fine_tuned, data, tmp_path):
    first = compress(tmp_path, fine_tuned, data)
    before = first.model.joinpath("model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"out: was begun with to = 2:4, now to = 1:4: give another place"):
        compress(tmp_path, fine_tuned, data, to="1:4")
    write_csv(data, reviews(seed=1))
    with pytest.raises(UserError, match=r"was begun with sha256 of --train = \w{12}\.\.\., now"):
        compress(tmp_path, fine_tuned, data)
    assert first.model.joinpath("model.safetensors").read_bytes() == before
    assert compress(tmp_path, fine_tuned, data, to="1:4", force=True).report["to"] == "1:4"


def test_a_folder_that_another_program_wrote_is_never_touched(fine_tuned, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match=r"out: holds thesis\.tex: nxm compress did not write it"):
            compress(tmp_path, fine_tuned, data, force=force)
    with pytest.raises(UserError, match="is or contains the folder"):
        compress(tmp_path, fine_tuned, data, out=fine_tuned, force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_finished_run_trains_nothing_again_and_may_be_exported_later(fine_tuned, data, tmp_path, monkeypatch):
    first = compress(tmp_path, fine_tuned, data, to="int8")
    monkeypatch.setattr(run, "train", None)
    again = compress(tmp_path, fine_tuned, data, to="int8", export="packed", max_drop=100.0)
    assert again.report["scores"] == first.report["scores"]
    assert again.report["check"] == first.report["check"]
    assert again.report["seconds"] == first.report["seconds"]
    assert (again.folder / "export-packed" / "packed.safetensors").is_file()


# --- gate, export, budget ---


def test_the_gate_is_the_drop_of_the_score(fine_tuned, data, tmp_path, monkeypatch):
    lost = (Score(90.0, 80.0, 95.0), Score(88.5, 80.0, 95.0), Score(-1.5, -3.0, 0.5))
    monkeypatch.setattr("nxm.compress.report.compare", lambda *args: lost)
    outcomes = {limit: compress(tmp_path, fine_tuned, data, max_drop=limit) for limit in (1.0, 1.5)}
    assert {limit: outcome.passed for limit, outcome in outcomes.items()} == {1.0: False, 1.5: True}
    assert outcomes[1.0].report["gate"] == {"max_drop": 1.0, "drop": 1.5, "passed": False}
    text = (outcomes[1.0].folder / "report.md").read_text()
    assert "Within --max-drop 1.5" in text


@pytest.mark.situation("nxm compress", "an export that the set cannot have", "refused")
@pytest.mark.parametrize(
    ("export", "to", "message"),
    [
        ("packed", "2:4", "is for integers"),
        ("torch-2of4", "int8", "is for --to 2:4"),
        ("torch-2of4", "3:4", "is for --to"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_training(export, to, message, fine_tuned, data, tmp_path):
    with pytest.raises(UserError, match=f"--export {export}: {message}"):
        compress(tmp_path, fine_tuned, data, to=to, export=export)
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_is_reported_and_the_model_remains(fine_tuned, data, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise UserError("the outputs differ")

    monkeypatch.setattr("nxm.compress.report.export", fails)
    outcome = compress(tmp_path, fine_tuned, data, export="onnx")
    assert not outcome.passed
    assert outcome.report["export"] == {"format": "onnx", "refused": "the outputs differ"}
    assert (outcome.model / "model.safetensors").is_file()


@pytest.mark.parametrize("form", ["onnx", OPENVINO])
def test_an_export_is_scored_and_timed_like_the_model(fine_tuned, data, tmp_path, form):
    outcome = compress(tmp_path, fine_tuned, data, export=form)
    export = outcome.report["export"]
    assert export["score"] == pytest.approx(outcome.report["scores"]["after"]["value"])
    assert {row["form"] for row in outcome.report["latency"]} == {
        "dense, PyTorch fp32",
        "compressed, PyTorch fp32",
        f"exported, {form}",
    }
    products = [row["kernels"] for row in outcome.report["latency"] if row["form"] == f"exported, {form}"]
    assert all(any("gemm" in name.lower() or name == "MatMul" for name in names) for names in products)


def test_an_export_for_another_machine_is_written_and_its_absence_here_reported(
    fine_tuned, data, tmp_path, monkeypatch
):
    def absent(*args, **kwargs):
        raise UserError("no GPU with 2:4 kernels")

    monkeypatch.setattr("nxm.compress.speed.load_2of4", absent)
    outcome = compress(tmp_path, fine_tuned, data, export="torch-2of4", max_drop=100.0)
    assert outcome.passed
    assert (outcome.folder / "export-2of4" / "config.json").is_file()
    assert outcome.report["export"]["absent"] == "no GPU with 2:4 kernels"
    assert "| absent | | | no GPU with 2:4 kernels |" in (outcome.folder / "report.md").read_text()


def test_several_processes_are_refused(fine_tuned, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        compress(tmp_path, fine_tuned, data)


def test_a_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "train", None)
    outcome = compress(tmp_path, save_tiny(tmp_path / "model"), data, dry_run=True)
    assert (outcome.plan.dense_epochs, outcome.plan.epochs, outcome.report) == (2, 2, None)
    assert "plan: 2 epochs to fine-tune, 2 to compress, 4 steps each; about" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_budget_decides_the_epochs_before_training(data, tmp_path, capsys):
    wanted = {"dense_epochs": 4, "epochs": 8, "dry_run": True}
    whole = compress(tmp_path, save_tiny(tmp_path / "model"), data, **wanted).plan
    plan = compress(tmp_path, tmp_path / "model", data, budget=f"{whole.seconds / 2:.0f}s", **wanted).plan
    assert plan.seconds <= whole.seconds / 2
    assert plan.epochs < 8
    assert f"plan: {plan.dense_epochs} epochs to fine-tune, {plan.epochs} to compress" in capsys.readouterr().out


def test_a_budget_that_is_too_small_leaves_nothing_and_a_larger_one_then_works(fine_tuned, data, tmp_path):
    with pytest.raises(UserError, match="budget: 5 s are not enough"):
        compress(tmp_path, fine_tuned, data, budget="5s")
    assert not (tmp_path / "out").exists()
    assert compress(tmp_path, fine_tuned, data, budget="1h").passed


def test_a_slow_fine_tuning_costs_epochs_of_compression_and_the_report_says_so(data, tmp_path, monkeypatch):
    honest = run.train

    def slow(*args, **kwargs):
        return honest(*args, **kwargs) + (50.0 if kwargs == {} else 0.0)  # the fine-tuning has no callback

    monkeypatch.setattr(run, "train", slow)
    outcome = compress(tmp_path, save_tiny(tmp_path / "model"), data, epochs=4, budget="2m")
    assert (outcome.plan.dense_epochs, outcome.plan.epochs) == (2, 1)
    assert "the budget left 1 of 4 epochs of compression" in outcome.report["notes"]
    monkeypatch.undo()
    again = compress(tmp_path, tmp_path / "model", data, epochs=4, budget="2m")
    assert again.plan == outcome.plan  # settled once, whatever the machine does later


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.situation("nxm compress", "a layer whose width is no multiple of M", "refused")
def test_a_width_that_does_not_divide_is_named_before_training(data, tmp_path):
    model = save_tiny(tmp_path / "model", intermediate_size=126)
    with pytest.raises(UserError, match=r"output\.dense\.weight: input width 126 is no multiple of the group size 4"):
        compress(tmp_path, model, data)
    assert not (tmp_path / "out").exists()


def test_unknown_and_impossible_settings_are_named(data, tmp_path):
    for options, message in (
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs = 0"),
        ({"held_out": 1.0}, "held_out = 1.0"),
        ({"budget": "2"}, "budget = '2'.*with their units"),
        ({"to": "2:3:4"}, "'2:3:4' is not a constraint set"),
        ({"metric": "spearman"}, "metric = 'spearman': classification"),
    ):
        with pytest.raises(UserError, match=message):
            compress(tmp_path, save_tiny(tmp_path / repr(options)), data, **options)


def test_rows_that_are_held_out_too_are_left_out_of_the_training_rows(fine_tuned, data, tmp_path, capsys):
    test = write_csv(tmp_path / "test.csv", reviews().head(20))
    outcome = compress(tmp_path, fine_tuned, data, test=test)
    assert outcome.report["rows"] == {"train": 60, "held_out": 20}
    assert "20 training rows are left out: their texts are held out too" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"every text is in .*data\.csv too: nothing is left to train on"):
        compress(tmp_path, fine_tuned, data, test=data)


def test_long_texts_and_contradictions_are_counted(fine_tuned, tmp_path, capsys):
    frame = reviews()
    frame.loc[0, "text"] = "y " * 200
    twice = pd.concat([frame, frame.tail(3).assign(label="other")]).replace({"label": {"other": "good"}})
    outcome = compress(tmp_path, fine_tuned, write_csv(tmp_path / "data.csv", twice), dry_run=True)
    assert outcome.report is None
    printed = capsys.readouterr().out
    assert "1 of " in printed
    assert "are longer than 64 tokens and are cut" in printed
    assert "2 texts occur more than once with different labels" in printed


def test_too_few_rows_for_a_projection_are_named(fine_tuned, tmp_path):
    data = write_csv(tmp_path / "few.csv", reviews(12))
    with pytest.raises(UserError, match=r"make 1 optimizer steps in 1 epochs; at least 2 are needed"):
        compress(tmp_path, fine_tuned, data, epochs=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_named(fine_tuned, data, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        compress(tmp_path, fine_tuned, data, out=tmp_path / "locked" / "out")


def test_a_full_disk_is_named_before_training(fine_tuned, data, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("nxm.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs about \d+ MiB, its disk has 0 MiB free; make room first"):
        compress(tmp_path, fine_tuned, data)
    assert not (tmp_path / "out").exists()


def test_a_tagger_with_its_tags_is_not_fine_tuned(tmp_path):
    model = save_tagger(tmp_path / "model", ["O", "B-Q"])
    outcome = compress(tmp_path, model, tags(tmp_path / "data.jsonl"), dry_run=True)
    assert outcome.plan.dense_epochs == 0


def test_the_shown_learning_rates_follow_the_width():
    assert prepare.LEARNING_RATES["base"] < prepare.LEARNING_RATES["small"]
