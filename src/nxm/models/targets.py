"""The target matrices of a model: the weights that are made sparse.

As in the paper (section 3.2) these are the fully connected layers of the Transformer blocks, without embeddings,
pooler and classifier. They are found from the model's structure, so that any model with stacks of blocks works,
whatever the names of its layers: encoders, decoders, both, or two towers (docs/situations.md lists what was tried).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.sets.allocation import sets_by_name
from nxm.sets.base import ConstraintSet

# Families with a test (tests/models/test_architectures.py), for messages
SUPPORTED = (
    *("BERT", "RoBERTa", "XLM-R", "DistilBERT", "MPNet", "ELECTRA", "DeBERTa-v2", "ALBERT", "ModernBERT", "Longformer"),
    *("T5", "BART", "Whisper", "Llama", "Qwen3", "ViT", "DeiT", "CLIP"),
)


def find_targets(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights, shape `(out_features, in_features)`, of the Linear layers inside the Transformer blocks.

    Blocks are the members of the model's stacks, see `find_stacks`. A weight that several layers share counts once.
    BERT-base has 72 matrices (12 blocks x Q, K, V, attention output, FFN1, FFN2), in the order of the forward pass.

    Args:
        model: any module; a `DistributedDataParallel` wrapper is unwrapped.
        include: regular expressions (`re.search`) on the weight's full name; empty: all weights.
        exclude: the same for weights to leave out of the included ones.

    Returns: full name -> weight.

    Raises:
        UserError: the model has no stack of blocks, the patterns leave no weight, one of them matches none, or the
            model has a PEFT adapter.
    """
    model = unwrap(model)
    if any(type(module).__module__.partition(".")[0] == "peft" for module in model.modules()):
        raise UserError(
            "this model has a PEFT adapter, whose base would be pruned but not saved: merge it first "
            "(model = model.merge_and_unload())"
        )
    found: dict[str, nn.Parameter] = {}
    for prefix, stack in find_stacks(model):
        for name, module in stack.named_modules():
            if isinstance(module, nn.Linear) and all(module.weight is not W for W in found.values()):
                found[f"{prefix}.{name}.weight"] = module.weight
    if not found:
        raise UserError(_without_linear(model))
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


def _without_linear(model: nn.Module) -> str:
    """Return the reason why a model whose blocks have no Linear layer is refused, and which models are not."""
    inside = {type(module).__name__ for _, stack in find_stacks(model) for module in stack.modules()}
    transposed = ""
    if "Conv1D" in inside:
        transposed = (
            ". Conv1D has its weight as (in_features, out_features): a pattern along its rows would run across outputs "
            "and not inputs; take a decoder of Linear layers"
        )
    return (
        f"the blocks of {type(model).__name__} have no nn.Linear layer, and nxm prunes no other: they are made of "
        f"{', '.join(sorted(inside - {'ModuleList', 'Dropout', 'LayerNorm'}))}{transposed}. Models of Linear layers "
        f"are, for example, {', '.join(SUPPORTED)}"
    )


def find_stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the name and the module of each stack of Transformer blocks, in the model's order.

    A stack is an outermost `nn.ModuleList` of modules with matrices inside, other than a list of single layers; where
    some have Linear layers, only these count. Where the model's configs say how many blocks there are, it has that many
    members. An encoder-decoder or a model of two towers has two.

    Raises:
        UserError: there is none.
    """
    model = unwrap(model)
    lists = _lists_of_modules(model)
    depths = _depths(model)
    stacks = [(name, stack) for name, stack in lists if len(stack) in depths] or lists
    if not stacks:
        raise UserError(f"{type(model).__name__} has no stack of Transformer blocks (an nn.ModuleList of them)")
    return stacks


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the one stack of a model's Transformer blocks, see `find_stacks`.

    Raises:
        UserError: there is none, or more than one.
    """
    stacks = find_stacks(model)
    if len(stacks) > 1:
        raise UserError(
            f"{type(model).__name__} has {len(stacks)} stacks of blocks, where one is wanted: "
            f"{', '.join(name for name, _ in stacks)}"
        )
    return stacks[0]


def left_dense(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of the other matrices in lists of modules, which no method makes sparse.

    Such are convolutions and parameters of more dimensions, as a mixture's experts, and all matrices of a list that is
    no stack (`find_stacks`). Embeddings, whose rows are looked up, are not counted.
    """
    model = unwrap(model)
    stacks = {prefix for prefix, _ in find_stacks(model)}
    dense = {}
    for prefix, modules in _lists_of_modules(model):
        for place, module in modules.named_modules():
            if not isinstance(module, nn.Embedding) and not (isinstance(module, nn.Linear) and prefix in stacks):
                for name, W in module.named_parameters(recurse=False):
                    if W.ndim >= 2 and min(W.shape[-2:]) > 1 and "bias" not in name:
                        dense[".".join(part for part in (prefix, place, name) if part)] = W
    return dense


def _lists_of_modules(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the outermost lists that may be stacks of blocks; where some have Linear layers, these alone."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(_is_block(member) for member in module):
            lists.append((name, module))
    return [(name, modules) for name, modules in lists if _has_linear(modules)] or lists


def _is_block(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(W.ndim >= 2 for W in module.parameters())


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Linear) for inner in module.modules())


def _depths(model: nn.Module) -> set[int]:
    """Return the numbers of blocks that the configs of a model and of its parts give."""
    names = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layers")
    configs = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    depths = [getattr(config, name, None) for config in configs for name in names]
    return {depth for depth in depths if isinstance(depth, int)}


def validate_targets(targets: dict[str, nn.Parameter], constraint: ConstraintSet | Mapping[str, ConstraintSet]) -> None:
    """Check that weights can be trained into a constraint set, or each into its own.

    Raises:
        UserError: weights are frozen, or the shapes of some do not fit the set; it names each of these.
    """
    refuse_frozen(targets)
    sets = sets_by_name(constraint, targets)
    problems = []
    for name, weight in targets.items():
        try:
            sets[name].validate(weight.shape, name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def refuse_frozen(parameters: dict[str, nn.Parameter]) -> None:
    """Raise UserError if parameters that are to be pruned do not train; it counts them and names one."""
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise UserError(
            f"{len(frozen)} of {len(parameters)} matrices are frozen (requires_grad=False), first {frozen[0]}: pruning "
            "would change them, and they could not adapt; name them in `exclude`, or let them train"
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper for several devices, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else model


def owner_of_config(model: nn.Module) -> tuple[str, nn.Module]:
    """Return what config.json is saved with, the model itself or one inside it, and the prefix of its names there.

    A model of sentence-transformers has the config of the encoder in it, and is saved as that one.
    """
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module.config is model.config:
            return (f"{name}." if name else ""), module
    return "", model
