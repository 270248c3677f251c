"""The Linear layers of a Transformer block by their role, for each architecture.

Pruning of heads and FFN rows has to know which layers share them: a head owns rows of Q, K and V and columns of the
attention's output O; a row of FFN1 owns a column of FFN2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nxm.errors import UserError
from nxm.models.targets import find_stack, unwrap


@dataclass(frozen=True)
class Roles:
    """The names of a block's layers, relative to the block, and of two values that depend on the architecture.

    attention: the module that computes attention.
    n_heads: its attribute with the number of heads.
    activation: the config's key with the activation between FFN1 and FFN2.
    """

    attention: str
    query: str
    key: str
    value: str
    output: str
    ffn1: str
    ffn2: str
    n_heads: str = "num_attention_heads"
    activation: str = "hidden_act"


_BERT = Roles(
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    ffn1="intermediate.dense",
    ffn2="output.dense",
)

# config.model_type -> roles. Others may read heads or rows elsewhere, as Longformer's global attention does.
ROLES = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": Roles(
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        ffn1="ffn.lin1",
        ffn2="ffn.lin2",
        n_heads="n_heads",
        activation="activation",
    ),
    "mpnet": Roles(
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        ffn1="intermediate.dense",
        ffn2="output.dense",
    ),
}


@dataclass(frozen=True)
class Block:
    """The layers of one Transformer block.

    name: the block's full name in the model.
    attention: the module that computes attention.
    """

    name: str
    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    ffn1: nn.Linear
    ffn2: nn.Linear

    @property
    def head_width(self) -> int:
        width: Any = self.attention.attention_head_size  # every architecture in `ROLES` has it
        return int(width)

    @property
    def n_heads(self) -> int:
        return self.query.out_features // self.head_width

    @property
    def n_rows(self) -> int:
        """The width of the FFN: FFN1's rows, which are FFN2's columns."""
        return self.ffn1.out_features

    @property
    def hidden_size(self) -> int:
        return self.query.in_features


def find_roles(model: nn.Module) -> Roles:
    """Return the roles of a model's architecture. Raises UserError for an architecture without an entry."""
    model_type = getattr(getattr(unwrap(model), "config", None), "model_type", type(model).__name__)
    if model_type not in ROLES:
        raise UserError(
            f"model type '{model_type}' has no entry in nxm.models.roles, so that its heads and FFN rows are not "
            f"known; known: {', '.join(sorted(ROLES))}"
        )
    return ROLES[model_type]


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of an encoder in the order of the forward pass.

    Raises:
        UserError: the architecture has no entry in `ROLES`.
    """
    roles = find_roles(model)
    prefix, stack = find_stack(model)
    names = ("attention", "query", "key", "value", "output", "ffn1", "ffn2")
    found = []
    for i, block in enumerate(stack):
        layers: dict[str, Any] = {name: block.get_submodule(getattr(roles, name)) for name in names}
        found.append(Block(f"{prefix}.{i}", **layers))
    return found
