"""One training: the right examples in the right order, every dev example counted, clear ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from datasets import DatasetDict
from scipy.stats import spearmanr

import smoke_source
from nxm import UserError
from nxm.data.prepare import load_prepared, prepare
from nxm.data.settings import Prepare
from nxm.data.tasks import compute_metrics, get_task
from nxm.distillation.settings import DISTILLATION
from nxm.models.save import save_model
from nxm.study.settings import Run
from nxm.study.settings import Trainer as TrainerSettings
from nxm.training.build import Parts
from nxm.training.load import load_model, load_tokenizer
from nxm.training.trainer import COMPLETE, LengthGroupedByEpoch, train

COMMON = TrainerSettings(evaluate_every=2)
RUN = Run(epochs=2, learning_rate=2e-3, batch_size=16)
STSB = get_task("stsb")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """An STS-B of 75 training and 70 dev rows: neither is a multiple of a batch."""
    folder = tmp_path_factory.mktemp("source")
    smoke_source.write(folder, tasks=("stsb",), train_rows=75, dev_rows=70)
    prepare("stsb", folder, Prepare(max_length=16), folder / "prepared")
    return folder


def run(source: Path, scratch: Path, values: Run = RUN, seed: int = 0, data: DatasetDict | None = None):
    set_seed(seed)
    model = load_model(source / "weights", STSB, fresh_head=True, mean_label=2.0)
    data = data or load_prepared(source / "prepared")
    parts = Parts(model, load_tokenizer(source / "weights"), source / "weights", None, None, None)
    return train(parts, STSB, data, values, COMMON, seed, scratch)


def test_the_metric_is_of_every_dev_example(source, tmp_path):
    trained = run(source, tmp_path)
    model = trained.model.eval()
    rows = load_prepared(source / "prepared")["validation"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        scores = [model(**{name: torch.tensor([row[name]]) for name in names}).logits.item() for row in rows]
    assert len(scores) == 70
    assert trained.metrics["spearman"] == pytest.approx(100 * spearmanr(scores, rows["labels"]).statistic, abs=1e-3)


def test_predictions_stand_in_the_splits_own_order(source, tmp_path):
    trained = run(source, tmp_path)
    (predictions,) = trained.predictions.values()
    assert predictions.shape == (70, 1)
    assert predictions.dtype == np.float32
    labels = load_prepared(source / "prepared")["validation"]["labels"]
    assert compute_metrics(STSB, predictions, np.asarray(labels)) == pytest.approx(trained.metrics, rel=1e-12)


def test_rows_held_out_are_scored_by_the_trained_model(source, tmp_path):
    prepare("stsb", source, Prepare(heldout_examples=20, max_length=16), tmp_path / "prepared")
    data = load_prepared(tmp_path / "prepared")
    trained = run(source, tmp_path / "a", data=data)
    dev = run(source, tmp_path / "b", data=DatasetDict(train=data["train"], validation=data["heldout"]))
    assert dev.metrics["spearman"] == pytest.approx(trained.heldout["spearman"], rel=1e-12)
    assert trained.heldout != trained.metrics
    assert dev.heldout is None


def test_a_training_that_was_killed_after_its_end_still_has_its_predictions(source, tmp_path):
    whole = run(source, tmp_path)  # its checkpoint of the last step is still there: this call only evaluates
    again = run(source, tmp_path)
    assert again.metrics == whole.metrics
    assert np.array_equal(again.predictions["validation"], whole.predictions["validation"])


def test_the_time_before_a_kill_counts(source, tmp_path):
    whole = run(source, tmp_path)
    assert whole.seconds_before == 0.0
    (mark,) = tmp_path.glob(f"checkpoint-*/{COMPLETE}")
    assert 0.0 < float(mark.read_text()) < whole.seconds + 60.0
    mark.write_text("5000.0")
    resumed = run(source, tmp_path)
    assert resumed.seconds_before == 5000.0
    assert 5000.0 < resumed.seconds < 5000.0 + whole.seconds + 60.0


def test_the_course_has_every_epoch_and_evaluations_where_asked(source, tmp_path):
    trained = run(source, tmp_path, Run(epochs=3, learning_rate=2e-3, batch_size=16))
    assert [row["step"] for row in trained.epochs] == [4, 8, 12]  # 75 // 16 = 4 steps an epoch
    assert [row["metric"] is not None for row in trained.epochs] == [False, True, True]  # every 2, and the end
    assert all(np.isfinite(row["train_loss"]) for row in trained.epochs)


def test_two_runs_are_equal_to_the_bit_and_seeds_differ(source, tmp_path):
    first, second, other = (run(source, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.metrics == second.metrics
    assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())
    assert any(not torch.equal(v, other.model.state_dict()[k]) for k, v in first.model.state_dict().items())


@pytest.mark.parametrize("taught", [False, True])
def test_a_runs_dropout_holds_during_its_training_steps_alone(source, tmp_path, monkeypatch, taught):
    seen = set()

    def forward(self, *args, **kwargs):
        seen.add((self.training, self.p))
        return args[0]

    monkeypatch.setattr(torch.nn.Dropout, "forward", forward)
    model, teacher = (load_model(source / "weights", STSB, fresh_head=True) for _ in range(2))
    own = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    tokenizer = load_tokenizer(source / "weights")
    parts = Parts(model, tokenizer, source / "weights", teacher if taught else None, None, None)
    learns = {"teacher": "dense", "distillation": DISTILLATION} if taught else {}
    values = RUN.replace(dropout=0.25, **learns)
    train(parts, STSB, load_prepared(source / "prepared"), values, COMMON, 0, tmp_path)
    assert {p for training, p in seen if training} == {0.25}
    assert {p for training, p in seen if not training} == own == {0.1}


def test_a_saved_model_scores_the_same(source, tmp_path):
    trained = run(source, tmp_path / "scratch")
    save_model(trained.model, load_tokenizer(source / "weights"), tmp_path / "model")
    loaded = load_model(tmp_path / "model", STSB, fresh_head=False)
    values = {name: value.cpu() for name, value in trained.model.state_dict().items()}
    assert all(torch.equal(v, values[k]) for k, v in loaded.state_dict().items())
    assert not list(tmp_path.glob(".*"))  # no temporary folder is left


def test_the_heads_bias_starts_at_the_mean_label(source):
    model = load_model(source / "weights", STSB, fresh_head=True, mean_label=2.5)
    assert model.classifier.bias.item() == 2.5
    assert model.dtype == torch.float32


@pytest.mark.parametrize("rows", [48, 50, 63])
def test_an_epoch_is_whole_batches_of_different_examples(rows):
    lengths = torch.randint(3, 40, (rows,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGroupedByEpoch(lengths, batch_size=16, seed=0)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 48
        assert len(set(order)) == 48
        assert list(sampler) == order  # an epoch's order does not depend on what was drawn before
        epochs.append(tuple(order))
    assert len(set(epochs)) == 4
    if rows > 48:
        assert len({frozenset(order) for order in epochs}) > 1  # not the same ones are left out


def test_batches_hold_similar_lengths():
    lengths = torch.randint(3, 120, (640,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LengthGroupedByEpoch(lengths, batch_size=16, seed=0))
    padded = sum(16 * max(lengths[i] for i in order[start : start + 16]) for start in range(0, 640, 16))
    assert padded < 1.3 * sum(lengths)


def test_a_batch_that_does_not_divide_over_processes_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch_size = 16 does not divide over 3 processes"):
        run(source, tmp_path)


def test_fewer_examples_than_a_batch_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="75 training examples make no batch of 128"):
        run(source, tmp_path, Run(epochs=1, learning_rate=1e-3, batch_size=128))


def test_a_loss_that_is_not_finite_stops_with_the_step(source, tmp_path):
    with pytest.raises(UserError, match=r"loss became (nan|inf) at step \d+ .*lower the learning rate"):
        run(source, tmp_path, Run(epochs=2, learning_rate=1e30, batch_size=16))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no model here \(model\.safetensors is missing\)"):
        load_model(tmp_path, STSB, fresh_head=True)


@pytest.mark.parametrize(("name", "size"), [("model.safetensors", 1000), ("config.json", 20)])
def test_a_damaged_model_is_named(source, tmp_path, name, size):
    damaged = shutil.copytree(source / "weights", tmp_path / "damaged")
    (damaged / name).write_bytes((damaged / name).read_bytes()[:size])
    with pytest.raises(
        UserError, match=r"damaged: cannot be loaded; if it is damaged, remove it and run the stage that makes it"
    ):
        load_model(damaged, STSB, fresh_head=True)
