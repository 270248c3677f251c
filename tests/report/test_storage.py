"""Stored sizes from results files: the library's own count, and the shapes of real models."""

from __future__ import annotations

import pytest
import torch

from nxm.models.packed import stored_bits
from nxm.models.targets import find_targets
from nxm.report import storage
from nxm.sets import all_sets, parse_set
from nxm.study.results import StructureRecord
from synthetic_study import make_result
from tiny_models import MODELS

SETS = [text for kind in all_sets().values() for text in kind.examples]


@pytest.mark.parametrize("shape", [(384, 384), (24, 48), (1536, 384)])
@pytest.mark.parametrize("text", [None, *SETS])
def test_bits_are_those_that_the_library_counts(text, shape):
    constraint = parse_set(text) if text else None
    assert storage.set_bits(str(constraint) if constraint else None, shape) == stored_bits(constraint, shape)


def test_a_set_without_a_known_form_has_no_bits():
    assert storage.set_bits("rows 25 %", (8, 8)) is None


def result_of(targets, hidden, layers, pattern, structure=None, others=100):
    made = make_result()
    weights = sum(W.numel() for W in targets.values())
    counts = {"targets": len(targets), "target_parameters": weights, "parameters": weights + others, "pattern": pattern}
    return made.model_copy(
        update={
            "sparsity": made.sparsity.model_copy(update=counts),
            "model": made.model.model_copy(update={"layers": layers, "hidden_size": hidden}),
            "structure": structure,
        }
    )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert-qa"])
@pytest.mark.parametrize("pattern", [None, "2:4", "2:4 int4"])
def test_the_targets_of_a_real_model_are_counted_one_by_one(name, pattern):
    targets = find_targets(MODELS[name]())
    constraint = parse_set(pattern) if pattern else None
    expected = sum(stored_bits(constraint, W.shape) for W in targets.values())
    result = result_of(targets, 64, 2, pattern)
    assert storage.target_bits(result) == expected
    assert storage.bits_per_weight(result) == expected / sum(W.numel() for W in targets.values())
    assert storage.stored_bytes(result) == (expected + 32 * 100) // 8


def test_a_shrunk_model_is_counted_by_layer():
    structure = StructureRecord(heads=(1, 2), rows=(24, 64), dense_heads=2, dense_rows=128, share=0.4, pruning=None)
    shapes = [(w, 64) for w in (32,) * 3] + [(64, 32), (24, 64), (64, 24)]
    shapes += [(w, 64) for w in (64,) * 3] + [(64, 64), (64, 64), (64, 64)]
    targets = {str(i): torch.empty(shape, device="meta") for i, shape in enumerate(shapes)}
    result = result_of(targets, 64, 2, "2:4 int8", structure)
    assert sorted(storage.shapes(result)) == sorted(shapes)
    assert storage.target_bits(result) == sum(stored_bits(parse_set("2:4 int8"), shape) for shape in shapes)


def test_other_architectures_have_no_known_size():
    targets = {str(i): torch.empty((64, 64), device="meta") for i in range(13)}
    result = result_of(targets, 64, 2, "2:4")
    assert storage.shapes(result) is None
    assert storage.bits_per_weight(result) is None
    assert storage.stored_bytes(result) is None


@pytest.mark.parametrize(("pattern", "bits"), [("int8", 8), ("2:4 int3", 3), ("2:4", None), (None, None)])
def test_the_width_of_codes(pattern, bits):
    made = make_result()
    result = made.model_copy(update={"sparsity": made.sparsity.model_copy(update={"pattern": pattern})})
    assert storage.integer_bits(result) == bits
