"""Channel permutations that leave the network's function unchanged and lose less under N:M.

Two pairs of layers in a Transformer block have inner channels that nothing else reads: FFN1 -> FFN2 (the activation
works on each channel separately), and V -> attention output within a head. Reordering such channels (rows and bias of
the first matrix, columns of the second) leaves the network's function unchanged, but it decides which weights of the
second matrix share a group, and so how much N:M removes (Pool & Yu, Channel Permutations for N:M Sparsity, NeurIPS
2021).

The order is found by a sequence of exact assignments: with all positions but one of every group fixed, the choice of a
channel for each group is an assignment problem, solved by SciPy; no solution retains less than the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from nxm.errors import UserError
from nxm.models.targets import find_stack, find_targets, unwrap
from nxm.sets.nm import NM

_KNOWN = frozenset({"bert", "roberta", "electra", "distilbert", "mpnet"})  # here nothing else reads these channels
# In a block: (first matrix, second matrix), by family. Attention's channels move only within their head.
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
    """Reorder the inner channels of a model, in place, so that N:M retains more of its second matrices.

    Args:
        model: an encoder of BERT's, RoBERTa's, ELECTRA's, DistilBERT's or MPNet's architecture.
        constraint: the pattern into which the weights will be pruned.
        include, exclude: only second matrices among these targets are reordered, see
            `nxm.models.targets.find_targets`.

    Returns: name of each second matrix -> the share of its squared norm that the projection retains, before and after.

    Raises:
        UserError: the model has none of these architectures (another may read the inner channels elsewhere, as
            Longformer's global attention does), or the width of its heads is not a multiple of the group size.
    """
    config = unwrap(model).config
    if config.model_type not in _KNOWN:
        raise UserError(f"model type '{config.model_type}' cannot be permuted; known: {', '.join(sorted(_KNOWN))}")
    prefix, stack = find_stack(model)
    targets = find_targets(model, include, exclude)
    width = int(config.hidden_size) // int(config.num_attention_heads)
    if width % constraint.group_size:
        raise UserError(
            f"attention heads of width {width} cannot be permuted: {width} is not a multiple of the group size "
            f"{constraint.group_size}"
        )
    shares = {}
    for number, block in enumerate(stack):
        layers = dict(block.named_modules())
        for known, in_heads in ((_ATTENTION, True), (_FEED_FORWARD, False)):
            pair = next((first, second) for first, second in known if first in layers and second in layers)
            name = f"{prefix}.{number}.{pair[1]}.weight"
            if name not in targets:
                continue
            first, second = layers[pair[0]], layers[pair[1]]
            parts = second.in_features // width if in_heads else 1  # a shrunk model's layers have fewer heads
            before = _retained_share(second.weight, constraint)
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
            shares[name] = (before, _retained_share(second.weight, constraint))
    return shares


@torch.no_grad()
def search_order(W: Tensor, constraint: NM, sweeps: int = 4) -> Tensor:
    """Return an order of W's columns in which N:M retains more of its squared norm, or at least as much.

    Args:
        W: (out_features, in_features), floating.
        sweeps: the largest number of passes over the groups' positions; the search ends earlier when nothing improves.

    Returns: (in_features,) int64, for use as `W[:, order]`.

    Raises:
        UserError: the width is not a multiple of the group size.
    """
    constraint.validate(W.shape, "matrix")
    energy = W.detach().float().square()  # the Euclidean projection retains the largest squares
    order = torch.arange(W.shape[1], device=W.device).reshape(-1, constraint.group_size)  # (groups, positions)
    for _ in range(sweeps):
        moved = False
        for position in range(constraint.group_size):
            others = [i for i in range(constraint.group_size) if i != position]
            # With the others fixed, a channel in group g adds in each row its excess over their N-th largest.
            floor = energy[:, order[:, others]].topk(constraint.n_nonzero, dim=2).values[:, :, -1]  # (rows, groups)
            candidates = energy[:, order[:, position]]  # (rows, groups)
            gain = torch.stack(
                [torch.maximum(candidates, floor[:, group, None]).sum(dim=0) for group in range(len(order))]
            )  # (groups, candidates)
            _, assigned = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
            new = torch.as_tensor(assigned, device=W.device)
            current = torch.arange(len(order), device=W.device)
            if float(gain[current, new].double().sum()) <= float(gain[current, current].double().sum()) * (1 + 1e-6):
                continue  # no real gain: without this rule the search might not end
            order[:, position] = order[new, position]
            moved = True
        if not moved:
            break
    return order.reshape(-1)


def _retained_share(W: Tensor, constraint: NM) -> float:
    return float(constraint.project(W).Z.square().sum() / W.square().sum())
