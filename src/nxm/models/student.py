"""Students: smaller networks built from a teacher's layers, and their dropout in training."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.models.targets import find_stack


def every_other_layer(teacher: PreTrainedModel) -> PreTrainedModel:
    """Build a student of the teacher's layers 0, 2, 4, ..., as DistilBERT was (Sanh et al., arXiv 1910.01108).

    Everything outside the stack of blocks (embeddings, pooler, classifier) is copied.

    Returns: a model of the same class with half the layers, rounded up.

    Raises:
        UserError: the teacher has a single layer, or layers of its own sizes (`nxm.models.shrink`).
    """
    if getattr(teacher.config, "nxm_structure", None) is not None:
        raise UserError(
            "the teacher was shrunk: a student is made of the layers of a dense model (start: student needs another "
            "teacher)"
        )
    prefix, stack = find_stack(teacher)
    if len(stack) < 2:
        raise UserError(f"a teacher of {len(stack)} layer has no other layer to drop")
    chosen = list(range(0, len(stack), 2))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(chosen)
    student = type(teacher)(config)
    block = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.(.*)$")
    weights = {}
    for name, tensor in teacher.state_dict().items():
        match = block.match(name)
        if match is None:
            weights[name] = tensor
        elif int(match[1]) in chosen:
            weights[f"{prefix}.{chosen.index(int(match[1]))}.{match[2]}"] = tensor
    student.load_state_dict(weights)
    return student.to(dtype=teacher.dtype)


@contextmanager
def dropout_at(model: nn.Module, p: float | None) -> Iterator[None]:
    """Set every dropout of a model to p inside the block; afterwards each has its own rate again.

    With dropout a student would have to match hidden states that its teacher computes without any.

    A dropout is the rate of a module such as nn.Dropout, or a number with "drop" in its name: an attribute that a
    module passes to a function (BART, Llama), or a value of the config that a module reads in its forward pass
    (ProphetNet). The rate at which whole layers or paths are left out (`layerdrop`) is changed by p = 0 alone. Where a
    config's rate is 0, some models have no module whose rate could be raised.

    Args:
        p: the rate, from 0 to 1; None changes nothing.
    """
    before = [] if p is None else list(_dropouts(model, with_depth=p == 0))
    try:
        for owner, name, _ in before:
            setattr(owner, name, p)
        yield
    finally:
        for owner, name, rate in before:
            setattr(owner, name, rate)


def _dropouts(model: nn.Module, with_depth: bool) -> Iterator[tuple[object, str, float]]:
    """Yield the owner, the name and the rate of each dropout; `with_depth` those of whole layers and paths too."""
    modules = list(model.modules())
    configs = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
    for owner in (*modules, *configs.values()):
        kind = type(owner).__name__
        for name, rate in vars(owner).items():
            if "drop" not in name and not (name == "p" and "Dropout" in kind):
                continue
            is_rate = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate <= 1
            of_depth = re.search(r"layer_?drop|drop_?path|drop_?connect", f"{kind} {name}", re.IGNORECASE)
            if is_rate and (with_depth or not of_depth):
                yield owner, name, rate
