"""A Transformer encoder as it is deployed at its best: Q, K and V in one product, attention by PyTorch's fused kernel.

The layers compute what BERT's do. Weights are random, since no time depends on them. Inputs have no padding: there is
no mask, so that attention takes its fastest kernel, and nothing that unpadding could save.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxm.export.cusparselt import DEFAULT_PLAN, Linear24, Plan, Search, search
from nxm.export.fp8 import Fp8Linear
from nxm.export.int8 import Int8Linear
from nxm.measure.bench.products import two_of_four

SIZES = {  # layers, hidden size, heads, intermediate size
    "BERT-base": (12, 768, 12, 3072),
    "BERT-large": (24, 1024, 16, 4096),
}
MATRICES = ("qkv", "attention_output", "up", "down")
FEED_FORWARD = ("up", "down")
STORED = {"fp32": torch.float32, "fp16": torch.float16}  # of everything but the products; other types: bf16


class EncoderLayer(nn.Module):
    """A post-norm layer of multi-head attention and a feed-forward network, for inference.

    Input and output: `(batch, length, hidden)`.
    """

    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.up = nn.Linear(hidden, intermediate)
        self.down = nn.Linear(intermediate, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, h: Tensor) -> Tensor:
        batch, length, hidden = h.shape
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
        h = self.attention_norm(h + self.attention_output(context))
        return self.output_norm(h + self.down(F.gelu(self.up(h))))


def make_layers(size: str, device: torch.device, seed: int = 0) -> nn.ModuleList:
    """Return the layers of an encoder of SIZES in fp32, with random weights as BERT is initialised."""
    layers, hidden, heads, intermediate = SIZES[size]
    draw = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        stack = nn.ModuleList(EncoderLayer(hidden, heads, intermediate) for _ in range(layers))
    for module in stack.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=hidden**-0.5, generator=draw)
            nn.init.normal_(module.bias, std=0.02, generator=draw)
    return stack.eval().requires_grad_(False)


def project(layers: nn.ModuleList, matrices: tuple[str, ...]) -> nn.ModuleList:
    """Return a copy of the layers whose named matrices are 2:4."""
    layers = copy.deepcopy(layers)
    for layer in layers:
        for name in matrices:
            weight = layer.get_submodule(name).weight
            weight.copy_(two_of_four(weight))
    return layers


def convert(
    layers: nn.ModuleList, dtype: str, kernels: Mapping[str, str], tokens: int, search: Search = search
) -> nn.ModuleList:
    """Return a copy of the layers in a type, each matrix with its kernel.

    Args:
        dtype: fp32, bf16, fp16, int8 or fp8; in the 8-bit types all but the products is in bf16.
        kernels: name of MATRICES -> "dense", "cusparselt" or (fp8) "cutlass"; those with a 2:4 kernel must be 2:4.
        tokens: batch x length, for which algorithms are searched: once, since all layers have the same shapes.
        search: one of `nxm.export.cusparselt.SEARCHES`.
    """
    layers = copy.deepcopy(layers).to(STORED.get(dtype, torch.bfloat16))
    plans: dict[str, Plan] = {}
    for layer in layers:
        for name in MATRICES:
            linear, kernel = layer.get_submodule(name), kernels[name]
            known: dict[str, Any] = {"plan": plans.get(name, DEFAULT_PLAN), "where": name}
            module: Linear24 | Int8Linear | Fp8Linear
            if dtype == "int8":
                module = Int8Linear(linear, sparse=kernel != "dense", **known)
            elif dtype == "fp8":
                module = Fp8Linear(linear, kernel, **known)  # type: ignore[arg-type]
            elif kernel != "dense":
                module = Linear24(linear, **known)
            else:
                continue
            if name not in plans:
                if kernel != "dense":
                    module.tune(tokens, search)
                plans[name] = module.plan
            layer.set_submodule(name, module)
    return layers.requires_grad_(False)


@torch.inference_mode()
def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
    """Return the hidden states `(batch, length, hidden)` after all layers."""
    for layer in layers:
        h = layer(h)
    return h
