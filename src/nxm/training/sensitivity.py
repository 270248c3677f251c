"""A set for each matrix of a training, chosen by the sensitivities of the model that it starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from nxm.distillation.batches import loss_on
from nxm.errors import UserError
from nxm.methods import make_callback
from nxm.methods.allocation import MeasuredAllocation, choose, measure, read_choices, refuse_unreachable
from nxm.sets.allocation import Allocation
from nxm.study.settings import Allocate, Run, Study


def allocate_sets(
    study: Study,
    run: Run,
    wanted: Allocate,
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
) -> MeasuredAllocation:
    """Return the allocation that a run asks for; the same in every process, without a random draw.

    Args:
        model: as it starts, on the CPU; it is moved to the training's device, and nothing else in it changes.
        teacher: None: the task's loss is measured.
        rows: the training rows, of which evenly spread ones are taken.

    Raises:
        UserError: the budget cannot be met, a choice does not fit a matrix or the method, or there are fewer rows than
            examples.
    """
    if wanted.examples > len(rows):
        raise UserError(
            f"set.examples = {wanted.examples} is more than the {len(rows)} training examples: set it lower"
        )
    targets = tuple(study.targets.include), tuple(study.targets.exclude)
    choices = read_choices(wanted.choices)
    refuse_unreachable(wanted.bits, model, choices, *targets)
    if run.method is not None and run.method_settings is not None:
        # refuses, before the measurement takes minutes, a set that the method cannot train into
        make_callback(run.method, Allocation(choices), run.method_settings, *targets)
    model.to(PartialState().device)
    batches = _batches(rows, wanted.examples, tokenizer, study.trainer.eval_batch_size)
    temperature = run.distillation.temperature if run.distillation is not None else 1.0
    measured = [measure(model, loss_on(batches, teacher, temperature), choices, *targets)]
    return choose(broadcast_object_list(measured)[0], wanted.bits)  # devices may differ in the last digit


def _batches(rows: Dataset, examples: int, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> list[dict[str, Any]]:
    """Return evenly spread rows as padded batches, by length for the least padding."""
    spread = np.linspace(0, len(rows) - 1, examples).round().astype(int)
    chosen = sorted((rows[int(place)] for place in spread), key=lambda row: row["length"])
    collate = DataCollatorWithPadding(tokenizer)
    return [dict(collate(chosen[first : first + batch_size])) for first in range(0, examples, batch_size)]


def allocation_record(allocation: Any, run: Run) -> dict[str, Any]:
    """Return a measured allocation as the values of `nxm.study.results.AllocationRecord`."""
    assert isinstance(allocation, MeasuredAllocation)
    assert isinstance(run.set, Allocate)
    found = allocation.sensitivity
    texts = list(found.choices)
    return {
        "budget": allocation.budget,
        "bits": allocation.bits,
        "loss": found.loss,
        "measured_by": "teacher" if run.distillation is not None and run.distillation.has_teacher else "task",
        "examples": run.set.examples,
        "choices": texts,
        "rise": allocation.rise,
        "matrices": [
            {
                "matrix": name,
                "rows": rows,
                "columns": columns,
                "choice": allocation.text_of(name),
                "bits": allocation.bits_of(name),
                "rises": dict(zip(texts, found.rises[name], strict=True)),
            }
            for name, (rows, columns) in found.shapes.items()
        ],
    }
