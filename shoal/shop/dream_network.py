"""The Dream architecture as a trainable module: what `shop-dream` is trained with (serving has its own decoder).

Another shape than `shop`'s in everything that matters to prefix reuse: grouped query attention, biases on q, k and v,
and logits shifted by one (the token at a position is read from the hidden state before it). Parameter names are those
of the published Dream checkpoints, so that `state_dict()` is a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import TrainingNetwork, rope_tables, rotate, through_blocks

SHOP_DREAM_CONFIG: dict[str, Any] = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 832,
    "max_position_embeddings": 640,
    "vocab_size": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "mask_token_id": 1,
    "torch_dtype": "bfloat16",
}


class Attention(nn.Module):
    """Bidirectional attention with grouped keys and values."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, heads, kv_heads = (
            config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        )
        self.head_dim, self.group = width // heads, heads // kv_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """x [batch, length, width], normalised; mask, if given, is True where a query may attend to a key."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = rotate(k, cos, sin).repeat_interleave(self.group, dim=1)
        v = v.repeat_interleave(self.group, dim=1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return out


class Feedforward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, ffn = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width], normalised."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.mlp = Feedforward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, length, width]; mask, if given, is True where a query may attend to a key."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, blocks and last norm, under the names that Dream's checkpoints give them."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])


class DreamNetwork(TrainingNetwork):
    """A Dream model; `forward` maps token ids [batch, length] to logits [batch, length, vocab], shifted into place."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith("o_proj.weight")
                nn.init.normal_(parameter, std=0.02 / (2 * config["num_hidden_layers"]) ** 0.5 if deep else 0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        return self.model.layers

    def forward(self, token_ids: Tensor, mask: Tensor | None = None, reuse: Tensor | None = None) -> Tensor:
        """See TrainingNetwork; logits at i come from the hidden state of i - 1, at 0 (never predicted) from its own."""
        body = self.model
        head_dim = self.config["hidden_size"] // self.config["num_attention_heads"]
        cos, sin = rope_tables(token_ids.shape[1], head_dim, self.config["rope_theta"], token_ids.device)
        x = through_blocks(body.layers, body.embed_tokens(token_ids), cos, sin, mask, reuse)
        x = torch.cat((x[:, :1], x[:, :-1]), dim=1)
        logits: Tensor = self.lm_head(body.norm(x))
        return logits
