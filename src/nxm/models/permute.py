"""Permutations that leave the network's function as it is and cost less under N:M.

Two pairs of layers in a Transformer block have inner channels that nothing else reads: FFN1 -> FFN2 (the activation
works on each channel alone), and V -> attention output within a head. Reordering such channels (rows and bias of the
first matrix, columns of the second) changes nothing in the network, but it decides which weights of the second share
a group, and so how much N:M takes away (Pool & Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021).

The order is found by exact assignments in turn: with all positions but one of every group fixed, which channel goes to
which group is an assignment problem, solved by SciPy; each solution keeps at least as much as the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.models.targets import find_stack, find_targets, unwrap
from nxm.sets.nm import NM

_KNOWN = frozenset({"bert", "roberta", "electra", "distilbert", "mpnet"})  # nothing else reads these channels there
# In a block: (first matrix, second matrix), by family. Attention's channels move within their head alone.
_FEED_FORWARD = (("intermediate.dense", "output.dense"), ("ffn.lin1", "ffn.lin2"))
_ATTENTION = (
    ("attention.self.value", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA
    ("attention.v_lin", "attention.out_lin"),  # DistilBERT
    ("attention.attn.v", "attention.attn.o"),  # MPNet
)


@torch.no_grad()
def permute_(
    model: nn.Module, constraint: NM, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """Reorder the inner channels of a model, in place, so that N:M keeps more of its second matrices.

    Args:
        model: an encoder of BERT's, RoBERTa's, ELECTRA's, DistilBERT's or MPNet's architecture.
        constraint: the pattern that is to come.
        include, exclude: only second matrices among these targets are looked at, see `nxm.models.targets.find_targets`.

    Returns: the second matrices' names -> the share of their squared norm that the projection keeps, before and after.

    Raises:
        UserError: the model is of none of these architectures (another may read the inner channels elsewhere, as
            Longformer's global attention does), or its heads are no whole number of groups wide.
    """
    config = unwrap(model).config
    if config.model_type not in _KNOWN:
        raise UserError(f"model type '{config.model_type}' cannot be permuted; known: {', '.join(sorted(_KNOWN))}")
    prefix, stack = find_stack(model)
    targets = find_targets(model, include, exclude)
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size) // heads
    if width % constraint.group_size:
        raise UserError(f"attention heads {width} wide are no whole number of groups of {constraint.group_size}")
    kept = {}
    for number, block in enumerate(stack):
        layers = dict(block.named_modules())
        for known, parts in ((_ATTENTION, heads), (_FEED_FORWARD, 1)):
            pair = next((first, second) for first, second in known if first in layers and second in layers)
            name = f"{prefix}.{number}.{pair[1]}.weight"
            if name not in targets:
                continue
            first, second = layers[pair[0]], layers[pair[1]]
            before = _kept(second.weight, constraint)
            order = torch.cat(
                [
                    part[search_order(second.weight[:, part], constraint)]
                    for part in torch.arange(second.in_features, device=second.weight.device).chunk(parts)
                ]
            )
            first.weight.copy_(first.weight[order])
            if first.bias is not None:
                first.bias.copy_(first.bias[order])
            second.weight.copy_(second.weight[:, order])
            kept[name] = (before, _kept(second.weight, constraint))
    return kept


@torch.no_grad()
def search_order(W: Tensor, constraint: NM, sweeps: int = 4) -> Tensor:
    """An order of the columns of W in which N:M keeps more of its squared norm; never less than as they are.

    Args:
        W: (out_features, in_features), floating.
        sweeps: how often every position of the groups is assigned anew; it stops earlier when nothing improves.

    Returns: (in_features,) int64, to be used as `W[:, order]`.

    Raises:
        ValueError: the width is no multiple of the group size.
    """
    constraint.validate(W.shape, "matrix")
    energy = W.detach().float().square()  # the Euclidean projection keeps the largest squares
    order = torch.arange(W.shape[1], device=W.device).reshape(-1, constraint.group_size)  # (groups, positions)
    for _ in range(sweeps):
        moved = False
        for position in range(constraint.group_size):
            others = [i for i in range(constraint.group_size) if i != position]
            # With the others fixed, a channel in group g adds, row by row, what it has above their N-th largest.
            floor = energy[:, order[:, others]].topk(constraint.n_nonzero, dim=2).values[:, :, -1]  # (rows, groups)
            candidates = energy[:, order[:, position]]  # (rows, groups)
            gain = torch.stack(
                [torch.maximum(candidates, floor[:, group, None]).sum(dim=0) for group in range(len(order))]
            )  # (groups, candidates)
            _, chosen = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
            new = torch.as_tensor(chosen, device=W.device)
            staying = torch.arange(len(order), device=W.device)
            if float(gain[staying, new].double().sum()) <= float(gain[staying, staying].double().sum()) * (1 + 1e-6):
                continue  # as good as it is: keeping it makes the end of the search certain
            order[:, position] = order[new, position]
            moved = True
        if not moved:
            break
    return order.reshape(-1)


def _kept(W: Tensor, constraint: NM) -> float:
    return float(constraint.project(W).Z.square().sum() / W.square().sum())
