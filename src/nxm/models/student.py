"""Students: smaller networks built from a teacher's layers."""

from __future__ import annotations

import copy
import re

from torch import nn
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.models.targets import find_stack


def every_other_layer(teacher: PreTrainedModel) -> PreTrainedModel:
    """Build a student of the teacher's layers 0, 2, 4, ..., as DistilBERT was (Sanh et al., arXiv 1910.01108).

    Everything outside the stack of blocks (embeddings, pooler, classifier) is copied.

    Returns: a model of the same class with half the layers, rounded up.

    Raises:
        UserError: the teacher has a single layer.
    """
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


def set_dropout_(model: nn.Module, p: float) -> None:
    """Set every dropout of a model to p, in place. The config, and so a model loaded from it later, is unchanged.

    With dropout a student would have to match hidden states that its teacher computes without any.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
