"""The Llama architecture as a trainable module, causal or not: what `text` is trained with.

The weights of all layers lie in one stack for each kind of matrix, so that a step can treat them together. Serving has
its own decoder; `publish.py` writes what it loads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

MASK = 16
"""A control token that the base never uses stands for a mask."""

STACKS = ("norm1", "qkv", "out", "norm2", "gate_up", "down")
"""Kinds of weights that every layer has, in the order of a layer's arguments."""
MATRICES = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    theta: float
    eps: float
    head_dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From the content of a `config.json`."""
        return cls(
            config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"],
            config["num_key_value_heads"], config["intermediate_size"], config["vocab_size"],
            config["rope_theta"], config["rms_norm_eps"], config["head_dim"],
        )  # fmt: skip

    def of_stack(self, kind: str) -> tuple[int, ...]:
        """Shape of a stack: [layers, out, in], or [layers, hidden] for norms."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        sizes = {
            "norm1": (self.hidden,),
            "qkv": (qkv, self.hidden),
            "out": (self.hidden, self.heads * self.head_dim),
            "norm2": (self.hidden,),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }
        return (self.layers, *sizes[kind])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, computed in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rope_tables(length: int, shape: Shape, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each fp32 [length, 1, head_dim / 2]."""
    speeds = shape.theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * speeds
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings on x [batch, length, heads, head_dim], computed in fp32."""
    one, two = x.float().chunk(2, -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1).to(x.dtype)


def project(
    x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """q [batch, heads, length, head_dim], k and v [batch, kv_heads, length, head_dim]; q and k are rotated."""
    z = F.linear(rms_norm(x, norm, shape.eps), qkv).unflatten(-1, (-1, shape.head_dim))
    q, k, v = z.split((shape.heads, shape.kv_heads, shape.kv_heads), 2)
    return rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)


def finish(x: Tensor, attended: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """What follows attention in a layer; attended is [batch, heads, length, head_dim]."""
    x = x + F.linear(attended.transpose(1, 2).flatten(-2), out)
    gate, up = F.linear(rms_norm(x, norm, eps), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def run_layer(
    x: Tensor, norm1: Tensor, qkv: Tensor, out: Tensor, norm2: Tensor, gate_up: Tensor, down: Tensor,
    cos: Tensor, sin: Tensor, shape: Shape, causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    """One layer on x [batch, length, hidden]. `grouped`: attention reads the few key heads, else repeated ones."""
    q, k, v = project(x, norm1, qkv, cos, sin, shape)
    if not grouped:
        repeats = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return finish(x, attended, out, norm2, gate_up, down, shape.eps)


class Network(nn.Module):
    """Weights of `text` or of its causal base. The embeddings are frozen and tied to the head; a mask has its own.

    Args:
        config: content of the base's `config.json`.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.shape = Shape.of(config)
        self.embedding = nn.Parameter(torch.zeros(self.shape.vocab, self.shape.hidden), requires_grad=False)
        self.mask = nn.Parameter(torch.zeros(self.shape.hidden))
        self.final_norm = nn.Parameter(torch.ones(self.shape.hidden))
        self.stacks = nn.ParameterDict({kind: torch.zeros(self.shape.of_stack(kind)) for kind in STACKS})
        self.grouped = True
        self.run_layer = run_layer

    @classmethod
    def load_base(cls, folder: Path) -> Network:
        """The causal base, fp32; the mask's vector starts at the mean of the embeddings."""
        network = cls(json.loads((folder / "config.json").read_text()))
        tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        with torch.no_grad():
            network.embedding.copy_(tensors["model.embed_tokens.weight"])
            network.mask.copy_(network.embedding.mean(0))
            network.final_norm.copy_(tensors["model.norm.weight"])
            for kind, names in CHECKPOINT_NAMES.items():
                for index in range(network.shape.layers):
                    parts = [tensors[f"model.layers.{index}.{name}.weight"] for name in names]
                    network.stacks[kind][index].copy_(torch.cat(parts))
        return network

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., hidden] of token ids; a mask's own vector where they say MASK."""
        return torch.where((tokens == MASK)[..., None], self.mask, F.embedding(tokens, self.embedding))

    def layer_weights(self, index: int) -> tuple[Tensor, ...]:
        """Weights of one layer in the order of STACKS."""
        return tuple(self.stacks[kind][index] for kind in STACKS)

    def forward(self, tokens: Tensor, causal: bool = False) -> Tensor:
        """Last hidden states [batch, length, hidden] of tokens [batch, length]; that at i speaks of token i + 1."""
        x = self.embed(tokens)
        cos, sin = rope_tables(tokens.shape[1], self.shape, tokens.device)
        stacks = [self.stacks[kind].unbind(0) for kind in STACKS]
        for norm1, qkv, out, norm2, gate_up, down in zip(*stacks, strict=True):
            x = self.run_layer(x, norm1, qkv, out, norm2, gate_up, down, cos, sin, self.shape, causal, self.grouped)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of last hidden states."""
        return F.linear(rms_norm(hidden, self.final_norm, self.shape.eps), self.embedding)


CHECKPOINT_NAMES = {
    "norm1": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "norm2": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Which tensors of a Llama checkpoint a stack joins, along their outputs."""
