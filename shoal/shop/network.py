"""The LLaDA architecture as a trainable module: what `shop` is trained with (serving has its own decoder).

Parameter names are those of the published LLaDA checkpoints, so that `state_dict()` is a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHOP_CONFIG: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 256,
    "n_layers": 16,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 704,
    "max_sequence_length": 640,
    "vocab_size": 256,
    "embedding_size": 256,
    "rope": True,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "layer_norm_type": "rms",
    "block_type": "llama",
    "activation_type": "silu",
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "mask_token_id": 1,
    "torch_dtype": "bfloat16",
}


def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings, each [length, head_dim] in fp32 (halves repeated)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to x [batch, heads, length, head_dim]."""
    one, two = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-two, one), dim=-1) * sin).to(x.dtype)


class Block(nn.Module):
    """One pre-norm decoder block with bidirectional attention and a SwiGLU."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, ffn = config["d_model"], config["mlp_hidden_size"]
        self.heads = config["n_heads"]
        self.attn_norm = nn.RMSNorm(width, eps=config["rms_norm_eps"])
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = nn.RMSNorm(width, eps=config["rms_norm_eps"])
        self.ff_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.ff_out = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, length, width]; mask, if given, is True where a query may attend to a key."""
        y = self.attn_norm(x)
        q, k, v = (
            projection(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
        x = x + self.attn_out(y.transpose(1, 2).flatten(-2))
        y = self.ff_norm(x)
        out: Tensor = x + self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))
        return out


class Transformer(nn.Module):
    """Embedding, blocks, last norm and head, under the names that LLaDA's checkpoints give them."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["d_model"]
        self.wte = nn.Embedding(config["embedding_size"], width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["n_layers"]))
        self.ln_f = nn.RMSNorm(width, eps=config["rms_norm_eps"])
        self.ff_out = nn.Linear(width, config["embedding_size"], bias=False)


class Outer(nn.Module):
    """Holds the transformer: the `model.` in the weights' names."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.transformer = Transformer(config)


class TrainingNetwork(nn.Module):
    """What the training script needs of a network, whatever its layout.

    `forward(token_ids, mask=None, reuse=None)` maps token ids [batch, length] to logits [batch, length, vocab], those
    at a position being about the token of that position. `reuse` [batch, length] (int) is the depth to which a
    position takes its hidden states, and so its keys and values, from the row before it in the batch: what serving
    does with a prefix captured from another request.
    """

    config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        raise NotImplementedError


def through_blocks(
    blocks: nn.ModuleList, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, reuse: Tensor | None
) -> Tensor:
    """x [batch, length, width] after all blocks; `mask` and `reuse` as in `TrainingNetwork.forward`."""
    for index, block in enumerate(blocks):
        if reuse is not None and index:
            x = torch.where((reuse >= index)[..., None], x.roll(1, 0), x)
        x = block(x, cos, sin, mask)
    return x


class Network(TrainingNetwork):
    """A LLaDA model; `forward` maps token ids [batch, length] to logits [batch, length, vocab]."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.model = Outer(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02 / (2 * config["n_layers"]) ** 0.5 if name.endswith("attn_out.weight") else 0.02
                nn.init.normal_(parameter, std=scale)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        return self.model.transformer.blocks

    def forward(self, token_ids: Tensor, mask: Tensor | None = None, reuse: Tensor | None = None) -> Tensor:
        """See TrainingNetwork."""
        body = self.model.transformer
        head_dim = self.config["d_model"] // self.config["n_heads"]
        cos, sin = rope_tables(token_ids.shape[1], head_dim, self.config["rope_theta"], token_ids.device)
        x = through_blocks(body.blocks, body.wte(token_ids), cos, sin, mask, reuse)
        logits: Tensor = body.ff_out(body.ln_f(x))
        return logits
