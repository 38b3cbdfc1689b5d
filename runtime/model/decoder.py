"""The transformer that LLaDA and Dream share, one layer at a time, for inference.

Attention itself is a callback: the caller owns the KV cache, so it decides which keys a token sees. Everything
else is here: embedding, RMSNorm, q/k/v projections, RoPE, output projection, SwiGLU, head.

No autograd: calls run under `torch.inference_mode()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.layers.rms_norm import rms_norm
from ...kernels.layers.rope import apply_rope, rope_table
from .config import ModelConfig
from .linear import Linear
from .mlp import Mlp

if TYPE_CHECKING:
    from .ranks import Ranks

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer index, q [n, num_heads, head_dim], k and v [T, num_kv_heads, head_dim]) -> [n, num_heads, head_dim];
n is T unless `layer` was given rows.

k comes rotated. q, k and v are views with strides: only the last dimension is sure to be contiguous.
"""

Rotary = tuple[Tensor, Tensor]


@dataclass(slots=True)
class LayerWeights:
    """Weights of one layer. `qkv` stacks q, k and v; `q_norm` and `k_norm` are [head_dim], both or neither."""

    attention_norm: Tensor
    qkv: Linear
    attention_out: Linear
    mlp_norm: Tensor
    mlp: Mlp
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


class Decoder:
    """Weights of one model and the functions of its layers. Build it with `runtime.loader.load_model`.

    Args:
        config: the model's shapes.
        embedding: [embedding_size, hidden], of any strides.
        layers: config.num_layers of them.
        final_norm: [hidden].
        head: maps hidden to vocab_size logits; its weight may be the embedding.
        ranks: of a model that is split over processes: `config` and `layers` are those of this rank then. Hidden states
            and logits are whole, and the same on every rank.

    All tensors share one dtype and one device. Hidden states have that dtype too.
    """

    def __init__(
        self, config: ModelConfig, embedding: Tensor, layers: list[LayerWeights], final_norm: Tensor, head: Linear,
        ranks: Ranks | None = None,
    ):  # fmt: skip
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.embedding = embedding
        self.layers = layers
        self.final_norm = final_norm
        self.head = head
        self.ranks = ranks
        self._rope: Rotary | None = None
        self.norms_folded = False

    @property
    def num_layers(self) -> int:
        """Layers of the model; `layer` takes indices below this."""
        return len(self.layers)

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's result is the same, bit for bit, whatever other rows are computed with it (fp32, CPU)."""
        return self.head.batch_invariant

    @torch.inference_mode()
    def fold_norms(self) -> None:
        """Multiply the layers' norm weights into the projections that follow them, and set them to one.

        The computed function stays the same up to rounding: W (g * x / rms(x)) = (W diag(g)) x / rms(x). Products
        can then run before the norm (kernels/layers/row_norm.py). The final norm is left as it is. Doing it again
        changes nothing.
        """
        self.norms_folded = True
        for weights in self.layers:
            for norm, linears in ((weights.attention_norm, [weights.qkv]), (weights.mlp_norm, weights.mlp.inputs)):
                for linear in linears:
                    linear.weight_t.mul_(norm[:, None])
                norm.fill_(1.0)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [T, hidden] of token ids [T] (int64). The caller must pass ids within the table."""
        return self.embedding.index_select(0, token_ids)

    @torch.inference_mode()
    def rotary(self, positions: Tensor) -> Rotary:
        """(cos, sin), fp32 [T, head_dim / 2], of positions [T] (int64, below max_position_embeddings).

        Compute it once per forward and pass it to every `layer` call to save the look-ups.
        """
        if self._rope is None:
            config = self.config
            self._rope = rope_table(config.max_position_embeddings, config.head_dim, config.rope_theta, self.device,
                                    config.rope_multipliers)  # fmt: skip
        cos, sin = self._rope
        return cos.index_select(0, positions), sin.index_select(0, positions)

    @torch.inference_mode()
    def layer(
        self, index: int, hidden: Tensor, positions: Tensor, attend: Attend, rotary: Rotary | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run layer `index` on hidden [T, hidden] of tokens at `positions` [T]; returns a new [T, hidden].

        `hidden` is not changed. `attend` is called once, with this layer's q, k and v. `rotary` is
        `self.rotary(positions)` when the caller has it already. With `rows` (int64 [n]) it computes only those rows:
        `attend` gets their queries (and all keys and values), and the result is [n, hidden]. That suffices for the last
        layer, whose other rows are never read.
        """
        config, weights = self.config, self.layers[index]
        tokens = hidden.shape[0]
        cos, sin = rotary if rotary is not None else self.rotary(positions)
        qkv = weights.qkv(rms_norm(hidden, weights.attention_norm, config.rms_norm_eps))
        qkv = qkv.view(tokens, -1, config.head_dim)
        num_rotated = config.num_heads + config.num_kv_heads
        if weights.q_norm is not None and weights.k_norm is not None:
            q, k = qkv[:, : config.num_heads], qkv[:, config.num_heads : num_rotated]
            q = _head_norm(q, weights.q_norm, config.rms_norm_eps)
            k = _head_norm(k, weights.k_norm, config.rms_norm_eps)
            rotated = apply_rope(torch.cat([q, k], dim=1), cos, sin)
        else:
            rotated = apply_rope(qkv[:, :num_rotated], cos, sin)
        q, k, v = rotated[:, : config.num_heads], rotated[:, config.num_heads :], qkv[:, num_rotated:]
        if rows is not None:
            q, hidden = q.index_select(0, rows), hidden.index_select(0, rows)
        attended = attend(index, q, k, v)
        hidden = weights.attention_out(attended.reshape(hidden.shape[0], config.q_size), hidden)
        return weights.mlp(rms_norm(hidden, weights.mlp_norm, config.rms_norm_eps), hidden)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [M, vocab_size] in the model's dtype for hidden states [M, hidden] of the last layer.

        With `config.shift_logits`, row i predicts the token after the one whose hidden state it is.
        """
        return self.head(rms_norm(hidden, self.final_norm, self.config.rms_norm_eps))


def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head by itself: x [T, heads, head_dim] -> a new tensor of that shape."""
    return rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)
