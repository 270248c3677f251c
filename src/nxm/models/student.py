"""Students: smaller networks made of a teacher's layers."""

from __future__ import annotations

import copy
import re

from torch import nn
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.models.targets import find_stack


def every_other_layer(teacher: PreTrainedModel) -> PreTrainedModel:
    """Make a student as DistilBERT was made (Sanh et al., arXiv 1910.01108): the teacher's layers 0, 2, 4, ...

    Everything outside the stack of blocks (embeddings, pooler, classifier) is copied. Returns a model of the same class
    with half the layers, rounded up. Raises ValueError for a teacher of one layer.
    """
    prefix, stack = find_stack(teacher)
    if len(stack) < 2:
        raise UserError(f"a teacher of {len(stack)} layer has no other layer to drop")
    kept = list(range(0, len(stack), 2))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    student = type(teacher)(config)
    block = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.(.*)$")
    weights = {}
    for name, tensor in teacher.state_dict().items():
        match = block.match(name)
        if match is None:
            weights[name] = tensor
        elif int(match[1]) in kept:
            weights[f"{prefix}.{kept.index(int(match[1]))}.{match[2]}"] = tensor
    student.load_state_dict(weights)
    return student.to(dtype=teacher.dtype)


def set_dropout_(model: nn.Module, p: float) -> None:
    """Set every dropout of a model to p, in place. Its config, and so what is loaded from it later, keeps its own.

    A student that is to match its teacher's hidden states has to hit them with its own dropout in between, while the
    teacher answers without any.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
