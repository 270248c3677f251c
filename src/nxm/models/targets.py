"""The target matrices of a model: the weights that are made sparse.

As in the paper (section 3.2) these are the fully connected layers of the Transformer blocks, without embeddings,
pooler and classifier. They are found from the model's structure, so that any encoder with a stack of blocks works,
whatever the names of its layers (tested: BERT, DistilBERT, RoBERTa, MPNet, ELECTRA).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from nxm.errors import UserError
from nxm.sets.base import ConstraintSet


def find_targets(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights, shape `(out_features, in_features)`, of the Linear layers inside the Transformer blocks.

    Blocks are the members of the model's stack, see `find_stack`.
    BERT-base has 72 matrices (12 blocks x Q, K, V, attention output, FFN1, FFN2), in the order of the forward pass.

    Args:
        model: any module; a `DistributedDataParallel` wrapper is unwrapped.
        include: regular expressions (`re.search`) on the weight's full name; empty: all weights.
        exclude: the same for weights to leave out of the included ones.

    Returns: full name -> weight.

    Raises:
        UserError: the model has no stack of blocks, the patterns leave no weight, or one of them matches none.
    """
    prefix, stack = find_stack(model)
    found = {
        f"{prefix}.{name}.weight": module.weight
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear)
    }
    for pattern in (*include, *exclude):
        if not any(re.search(pattern, name) for name in found):
            raise UserError(
                f"target pattern '{pattern}' matches none of {len(found)} matrices, e.g. {next(iter(found))}"
            )
    chosen = {
        name: weight
        for name, weight in found.items()
        if (not include or any(re.search(pattern, name) for pattern in include))
        and not any(re.search(pattern, name) for pattern in exclude)
    }
    if not chosen:
        raise UserError(f"include {list(include)} and exclude {list(exclude)} leave none of {len(found)} matrices")
    return chosen


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the module of the stack of Transformer blocks.

    It is the longest `nn.ModuleList` with Linear layers inside, with `num_hidden_layers` entries where the config has
    that value.

    Raises:
        UserError: there is none.
    """
    model = unwrap(model)
    expected = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and (expected is None or len(module) == expected)
        and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    if not stacks:
        raise UserError(
            f"{type(model).__name__} has no stack of Transformer blocks (an nn.ModuleList"
            + (f" of config.num_hidden_layers = {expected} blocks)" if expected is not None else ")")
        )
    return max(stacks, key=lambda item: len(item[1]))


def validate_targets(targets: dict[str, nn.Parameter], constraint: ConstraintSet) -> None:
    """Raise UserError, naming every matrix whose shape does not fit the constraint set."""
    problems = []
    for name, weight in targets.items():
        try:
            constraint.validate(weight.shape, name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
