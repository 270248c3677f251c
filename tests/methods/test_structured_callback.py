"""Structured pruning in an ordinary Trainer: budgets, evaluation, checkpoints, the shrunk model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import nxm
from nxm import UserError, find_targets, shrink, structure_of
from nxm.methods.callback import STATE_FILE
from nxm.methods.structured.callback import StructuredCallback
from nxm.methods.structured.settings import Structured
from nxm.models.cost import interpolated, weights, write_cost
from nxm.models.structure import full_structure
from tiny_training import (
    assert_best_is_loaded_back_as_evaluated,
    assert_equal,
    new_model,
    parity_data,
    trainer_for,
    weights_of,
)

EXAMPLES = list(Structured.examples)
NAMES = [" ".join(str(value) for value in values.values()) for values in EXAMPLES]
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "seed": 3}

every_example = pytest.mark.parametrize("values", EXAMPLES, ids=NAMES)


def make(values: dict) -> StructuredCallback:
    return StructuredCallback(Structured.model_validate(values))


def density(model: torch.nn.Module) -> float:
    targets = find_targets(model).values()
    return sum(int(W.count_nonzero()) for W in targets) / sum(W.numel() for W in targets)


@pytest.fixture(scope="module", params=EXAMPLES, ids=NAMES)
def trained(request, tmp_path_factory) -> SimpleNamespace:
    """A whole training of 16 steps with a checkpoint at each, without evaluations."""
    callback, model, folder = make(request.param), new_model(), tmp_path_factory.mktemp("trained")
    trainer = trainer_for(model, parity_data(), folder, [callback], **EVERY_STEP)
    trainer.train()
    return SimpleNamespace(
        **{"values": request.param, "callback": callback, "record": callback.record(), "trainer": trainer},
        **{"folder": folder, "model": model, "weights": weights_of(model)},
    )


def test_settings_survive_json(trained):
    settings = trained.callback.settings
    assert Structured.model_validate(settings.model_dump(mode="json")) == settings


def test_the_model_ends_within_its_budget(trained):
    """The paper's recipe does not: thresholds of 10 do not move far in 16 steps."""
    budget, share = trained.values["budget"], trained.record["share"]
    assert density(trained.model) == pytest.approx(share, abs=1e-6)
    if trained.values["recipe"] == "paper":
        assert share > 0.99
    else:
        assert budget - 0.12 < share <= budget


def test_the_record_is_json_and_its_course_reaches_the_budget(trained):
    record = trained.record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["course"][-1]["kept"] == record["kept"]
    assert record["course"][-1]["share"] == record["share"]


def test_the_shrunk_model_scores_the_same(trained, tmp_path):
    if trained.values.get("units") == "blocks":
        pytest.skip("blocks leave no whole heads or rows")
    loss = trained.trainer.evaluate()["eval_loss"]
    structure = structure_of(trained.model)
    small = shrink(trained.model, structure)
    small.save_pretrained(tmp_path / "small")
    again = trainer_for(nxm.load(tmp_path / "small"), parity_data(), tmp_path / "again", []).evaluate()["eval_loss"]
    assert again == pytest.approx(loss, rel=1e-5)
    if trained.values["recipe"] != "paper":
        assert weights(trained.model).share(structure) == pytest.approx(trained.record["share"])
        kept = {f"{i}.{kind}": len(getattr(structure, kind)[i]) for i in range(2) for kind in ("heads", "rows")}
        assert kept == trained.record["kept"]


def test_the_state_is_saved_with_every_checkpoint(trained):
    assert len(list(trained.folder.glob(f"checkpoint-*/{STATE_FILE}"))) == 16


@pytest.mark.parametrize("step", [1, 3, 6, 11])
def test_a_resumed_training_ends_with_the_same_weights(step, trained, tmp_path):
    checkpoint = tmp_path / f"checkpoint-{step}"
    shutil.copytree(trained.folder / checkpoint.name, checkpoint)
    callback, model = make(trained.values), new_model()
    trainer = trainer_for(model, parity_data(), tmp_path, [callback], **EVERY_STEP)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(weights_of(model), trained.weights)
    assert callback.record() == trained.record


def test_a_callback_may_be_used_for_one_training_after_another(trained, tmp_path):
    model = new_model()
    trainer_for(model, parity_data(), tmp_path, [trained.callback], seed=3).train()
    assert_equal(weights_of(model), trained.weights)
    assert trained.callback.record() == trained.record


class Watch(TrainerCallback):
    """Remembers the weights around evaluations, and the density in them."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.densities: list[float] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.before.append(weights_of(model))

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.densities.append(density(model))

    def on_save(self, args, state, control, model, **kwargs):
        self.after.append(weights_of(model))


def test_evaluation_is_of_the_pruned_network_and_does_not_disturb_training(trained, tmp_path):
    watch, model = Watch(), new_model()
    trainer = trainer_for(
        model,
        parity_data(),
        tmp_path,
        [make(trained.values), watch],
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "seed": 3},
    )
    trainer.eval_dataset = {"a": parity_data(), "b": parity_data()}  # on_evaluate comes once for each
    trainer.train()
    assert len(watch.densities) == 32
    assert trained.values["recipe"] == "paper" or max(watch.densities) <= trained.values["budget"]
    for before, after in zip(watch.before, watch.after, strict=False):
        assert_equal(after, before)
    assert_equal(load_file(tmp_path / "checkpoint-16" / "model.safetensors"), watch.before[-1])
    assert_equal(weights_of(model), trained.weights)


@every_example
@pytest.mark.parametrize("best", [1, 4])
def test_the_best_evaluation_loaded_back_is_pruned_as_it_was_evaluated(values, best, tmp_path):
    assert_best_is_loaded_back_as_evaluated(new_model(), make(values), best, tmp_path)


# --- Learned scores and thresholds -------------------------------------------------------------------------------


def test_scores_and_thresholds_move_as_by_hand(tmp_path):
    """One step of the paper's recipe, with the regulariser's and the task's gradients computed apart."""
    callback, model = make({"recipe": "paper", "budget": 0.5}), new_model()
    seen = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen["grad"] = model.bert.encoder.layer[0].intermediate.dense.weight.grad.clone()
            seen["bias"] = model.bert.encoder.layer[0].intermediate.dense.bias.grad.clone()

    arguments = {"max_steps": 1, "max_grad_norm": 0.0}
    trainer_for(model, parity_data(), tmp_path, [Look(), callback], **arguments).train()
    dense = new_model().bert.encoder.layer[0].intermediate.dense
    by_hand = (seen["grad"] * dense.weight).sum(dim=1) + seen["bias"] * dense.bias
    torch.testing.assert_close(callback.scores["0.rows"].grad, by_hand)
    sigma = torch.tensor(10.0).sigmoid()  # heads 4 a + rows 2 * 2 f1 of 8 in each of 2 layers
    excess, slope = sigma - 0.5, sigma * (1 - sigma) * 4 / 16
    task = by_hand.sum()
    pull = 2 * (20000 * excess**2 / 0.25) * excess * slope
    torch.testing.assert_close(callback.thresholds["0.rows"].grad, task.detach() + pull, rtol=1e-4, atol=0)
    assert callback.thresholds["0.rows"].item() == pytest.approx(10.0 - 0.01, abs=1e-4)  # Adam's first step is its rate


def test_the_regulariser_pulls_thresholds_down_until_the_budget():
    """Without a task: R comes to tau by itself, and no further."""
    callback, model = make({"recipe": "learned", "control": "regulariser", "budget": 0.5}), new_model()
    callback.begin(model, 1000)
    none = {name: torch.zeros(gate.n) for name, gate in callback.gates.items()}
    for _ in range(100):
        callback._move(none, 1.0)
    share = float(callback._soft_share())
    assert 0.4 < share < 0.53


def test_embeddings_can_be_frozen(tmp_path):
    for freeze in (True, False):
        model = new_model()
        before = model.bert.embeddings.word_embeddings.weight.detach().clone()
        callback = make({"recipe": "one_shot", "budget": 0.5, "measure_steps": 1, "freeze_embeddings": freeze})
        trainer_for(model, parity_data(), tmp_path, [callback], max_steps=3).train()
        assert torch.equal(model.bert.embeddings.word_embeddings.weight, before) == freeze


def test_pruned_weights_stay_zero_once_the_structure_is_final(tmp_path):
    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            found.append(weights(model).share(structure_of(model)))

    callback = make({"recipe": "learned", "budget": 0.5, "measure_steps": 2})
    arguments = {"weight_decay": 0.1}
    trainer_for(new_model(), parity_data(), tmp_path, [callback, Look()], **arguments).train()
    assert found[:8] == [1.0] * 8  # training goes on with all weights
    assert max(found[8:]) <= 0.5


def test_widths_are_multiples_of_what_kernels_like(tmp_path):
    model = new_model()
    callback = make({"recipe": "learned", "budget": 0.6, "measure_steps": 2, "multiple": 8})
    trainer_for(model, parity_data(), tmp_path, [callback]).train()
    assert all(n % 8 == 0 for n in structure_of(model).n_rows)


def test_a_budget_can_be_counted_in_flops_or_milliseconds(tmp_path):
    table = interpolated({1: 1.0, 2: 1.2}, {8: 1.0, 16: 3.0, 32: 8.0})
    write_cost(tmp_path / "ms.json", table, {"machine": "invented"})
    for recipe in ("learned", "one_shot"):
        for cost in ({"cost": "flops", "length": 9}, {"cost": "latency", "latency": str(tmp_path / "ms.json")}):
            model = new_model()
            callback = make({"recipe": recipe, "budget": 0.5, "measure_steps": 2} | cost)
            trainer_for(model, parity_data(), tmp_path, [callback]).train()
            counted = table if cost["cost"] == "latency" else nxm.models.cost.flops(model, 9)
            assert 0.35 < counted.share(structure_of(model)) <= 0.5


def test_blocks_follow_heads_and_rows(tmp_path):
    """Two steps as in the paper: the second masks blocks of the smaller model, whose widths fit the blocks."""
    first = new_model()
    callback = make({"recipe": "learned", "budget": 0.6, "measure_steps": 2, "multiple": 8})
    trainer_for(first, parity_data(), tmp_path, [callback]).train()
    small = shrink(first, structure_of(first), multiple=8)
    again = make({"recipe": "learned", "units": "blocks", "block": 8, "budget": 0.5, "measure_steps": 2})
    trainer_for(small, parity_data(), tmp_path, [again]).train()
    assert 0.4 < density(small) <= 0.5


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "learned", "budget": 0.2}, r"a budget of 0\.2 cannot be met: one unit in each gate costs 0\.2656"),
        ({"recipe": "one_shot", "budget": 0.2}, "cannot be met"),
        ({"recipe": "learned", "budget": 0.5, "measure_steps": 9}, "needs 11 optimizer steps.*after step 8 of 16"),
        ({"recipe": "gradual", "budget": 0.5, "measure_steps": 1}, "needs 21 optimizer steps"),
        ({"recipe": "learned", "units": "blocks", "budget": 0.5}, r"query\.weight: .*\(16, 16\) .* blocks of 32x32"),
    ],
)
def test_what_cannot_be_is_refused_before_training(values, message, tmp_path):
    values = {"measure_steps": 2} | values
    with pytest.raises(UserError, match=message):
        trainer_for(new_model(), parity_data(), tmp_path, [make(values)]).train()


def test_patterns_for_heads_and_rows_are_refused():
    with pytest.raises(UserError, match="heads and rows reach over several matrices"):
        StructuredCallback(include=("query",))


def test_layers_of_several_sizes_are_refused_by_the_regulariser(tmp_path):
    model = new_model()
    small = shrink(model, nxm.Structure(((0,), (0, 1)), full_structure(model).rows))
    with pytest.raises(UserError, match=r"layers of one size.*\[1, 2\] heads"):
        trainer_for(small, parity_data(), tmp_path, [make({"recipe": "paper", "budget": 0.5})]).train()


def test_a_checkpoint_without_the_state_is_refused_by_name(tmp_path):
    trainer_for(new_model(), parity_data(), tmp_path, [], save_strategy="steps", save_steps=2, max_steps=4).train()
    trainer = trainer_for(new_model(), parity_data(), tmp_path, [make(EXAMPLES[0])])
    with pytest.raises(UserError, match=rf"checkpoint-4/{STATE_FILE} is missing"):
        trainer.train(resume_from_checkpoint=True)


# --- Two processes -----------------------------------------------------------------------------------------------

TWO = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from tiny_training import parity_data
from nxm import structure_of
from nxm.methods.structured.callback import StructuredCallback
from nxm.methods.structured.settings import Structured
from tiny_training import new_model, trainer_for

folder, model = Path(sys.argv[2]), new_model()
callback = StructuredCallback(Structured(recipe="learned", budget=0.5, measure_steps=2))
arguments = {"per_device_train_batch_size": 8, "seed": 3, "ddp_backend": "gloo", "save_strategy": "steps"}
trainer = trainer_for(model, parity_data(), folder, [callback], save_steps=4, **arguments)
trainer.train()
state = {name: scores.detach() for name, scores in callback.scores.items()}
torch.save({"scores": state, "structure": repr(structure_of(model))}, folder / f"{trainer.args.process_index}.pt")
"""


@pytest.mark.long
def test_two_processes_choose_the_same_structure(tmp_path):
    """Gradients are averaged before the masks' are read off them, so that both move the same scores."""
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611"]
    subprocess.run([*command, str(tmp_path / "two.py"), str(Path(__file__).parent.parent), str(tmp_path)], check=True)
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    assert first["structure"] == second["structure"]
    assert_equal(first["scores"], second["scores"])
    assert len(list(tmp_path.glob(f"checkpoint-*/{STATE_FILE}"))) == 4


@pytest.mark.parametrize("put_back", [True, False], ids=["put back", "left in eval mode"])
def test_a_look_in_eval_mode_changes_nothing(put_back, trained, tmp_path):
    class Look(TrainerCallback):
        def look(self, args, state, control, model, **kwargs):
            model.eval()
            with torch.no_grad():
                model(torch.tensor([[7, 8, 9, 10]]))
            if put_back:
                model.train()

        on_step_begin = on_pre_optimizer_step = on_optimizer_step = on_step_end = on_save = look

    model = new_model()
    trainer_for(model, parity_data(), tmp_path, [make(trained.values), Look()], **EVERY_STEP).train()
    assert_equal(weights_of(model), trained.weights)
    assert_equal(
        load_file(tmp_path / "checkpoint-9" / "model.safetensors"),
        load_file(trained.folder / "checkpoint-9" / "model.safetensors"),
    )
