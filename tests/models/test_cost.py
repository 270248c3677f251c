"""Costs are counted on real models: the weights that are there, and the FLOPs that a forward pass performs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nxm import UserError, find_targets
from nxm.models import cost
from nxm.models.cost import Cost, interpolated, read_cost, write_cost
from nxm.models.shrink import shrink
from nxm.models.structure import Structure, full_structure
from tiny_models import MODELS

FAMILIES = [name for name in MODELS if name != "bert-qa"]
SMALL = Structure(heads=((1,), (0, 1)), rows=(tuple(range(100)), (5, 6, 7)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("structure", [SMALL, None], ids=["small", "dense"])
def test_weights_are_those_of_the_shrunk_models_matrices(family, structure):
    model = MODELS[family]()
    structure = structure or full_structure(model)
    counted = sum(W.numel() for W in find_targets(shrink(model, structure)).values())
    assert cost.weights(model).of(structure) == counted
    assert cost.weights(model).share(structure) == counted / sum(W.numel() for W in find_targets(model).values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [4, 33])
def test_flops_are_those_of_the_forward_pass(family, length):
    """Compared with PyTorch's own counter; embeddings, pooler and classifier are taken off by a second structure."""
    model = MODELS[family]().eval()
    model.set_attn_implementation("eager")

    def performed(structure: Structure) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shrink(model, structure)(torch.randint(3, 60, (1, length)))
        return counter.get_total_flops()

    full, table = full_structure(model), cost.flops(model, length)
    assert performed(full) - performed(SMALL) == table.of(full) - table.of(SMALL)


def test_flops_need_a_token():
    with pytest.raises(UserError, match="length = 0"):
        cost.flops(MODELS["bert"](), 0)


def test_bert_base_has_84_9_million_weights_and_the_papers_unit():
    """A layer costs 3a + a o + 4 f1 + 4 f1 f2 = 12 units of 768 x 768 when dense."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        table = cost.weights(BertForSequenceClassification(BertConfig()))
    assert table.dense(12) == 84_934_656 == 12 * 12 * 768**2
    assert table.heads[6] == 2 * 768**2
    assert table.rows[768] == 2 * 768**2


def test_measured_points_are_joined_by_lines_and_never_fall():
    table = interpolated({1: 1.0, 3: 0.9, 4: 2.0}, {2: 4.0, 4: 6.0})
    assert table == Cost("ms", (0.0, 1.0, 1.0, 1.0, 2.0), (0.0, 2.0, 4.0, 5.0, 6.0))
    assert table.of(Structure(((0, 1), (3,)), ((0,), (1, 2, 3)))) == 1.0 + 1.0 + 2.0 + 5.0


@pytest.mark.parametrize("points", [{}, {0: 1.0}, {1: 0.0}, {1: 1.0, 2: -1.0}])
def test_impossible_points_are_refused(points):
    with pytest.raises(UserError, match=r"heads: .* are not measured points"):
        interpolated(points, {1: 1.0})


def test_a_written_table_is_read_again(tmp_path):
    model = MODELS["bert"]()
    table = interpolated({1: 0.1, 2: 0.3}, {64: 1.5, 128: 2.0})
    write_cost(tmp_path / "ms.json", table, {"machine": "here", "batch": 8, "length": 128})
    assert read_cost(tmp_path / "ms.json", model) == table


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    model, path = MODELS["bert"](), tmp_path / "ms.json"
    with pytest.raises(UserError, match=r"ms\.json: there is no such file"):
        read_cost(path, model)
    write_cost(path, interpolated({3: 0.1}, {128: 2.0}), {})
    with pytest.raises(UserError, match="for 3 heads and 128 rows, but the model's layers have 2 and 128"):
        read_cost(path, model)
    path.write_text('{"unit": "ms", "heads": [0, 1]}')
    with pytest.raises(UserError, match=r"no table of costs .*'rows'"):
        read_cost(path, model)
