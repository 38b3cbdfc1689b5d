"""The decoder's layers over paged KVs with fused kernels: what a GPU runs.

Same weights and the same function as `Decoder.layer`, in fewer passes over memory: residuals are added inside the
matrix products, RoPE and the write of keys and values are one kernel, attention reads pages where they are. If norms
are folded into the weights (`Decoder.fold_norms`) and rows are few, they are deferred until after the products, to
kernels that run anyway (`kernels/layers/row_norm.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.attention.groups import SharedGroups
from ....kernels.attention.reference import attention, shared_attention
from ....kernels.layers.experts import expert_mlp
from ....kernels.layers.fp8 import Scales
from ....kernels.layers.head_norm import HeadNorm
from ....kernels.layers.kv_write import rope_write_kv
from ....kernels.layers.rms_norm import rms_norm
from ....kernels.layers.rope import rope_table
from ....kernels.layers.row_norm import RowNorm
from ....kernels.layers.swiglu import swiglu
from ...model.decoder import Decoder
from ...model.linear import Linear, SummedLinear
from ...model.mlp import ExpertMlp
from ..pools import KVPool
from .layout import Layout

_FEW_ROWS = 128
"""Most rows for which norms are deferred: above, reading hidden states again costs more than a launch."""


class FusedLayers:
    """Runs layers on a flat batch. The host never reads device memory here, so a CUDA graph can capture all of it.

    Args:
        decoder: the weights.
        kv: the pool that keys and values are written to and read from.
        max_positions: positions that may occur, at most the model's.
    """

    def __init__(self, decoder: Decoder, kv: KVPool, max_positions: int):
        self.decoder = decoder
        self.few_rows = _FEW_ROWS if decoder.norms_folded else 0
        self.kv = kv
        config = decoder.config
        self._cos, self._sin = rope_table(
            max_positions, config.head_dim, config.rope_theta, decoder.device, config.rope_multipliers
        )

    def run(
        self, index: int, hidden: Tensor, at: Layout, *, num_splits: int, shared: SharedGroups | None = None
    ) -> Tensor:
        """Layer `index` on hidden [rows, hidden], which is overwritten and returned."""
        return self._mlp(index, self._attention(index, hidden, at, num_splits, shared))

    def run_last(self, index: int, hidden: Tensor, at: Layout, needed: Tensor, of_needed: Layout) -> Tensor:
        """Layer `index` for some rows alone: int64 `needed`, laid out as `of_needed`; a new [needed rows, hidden].

        Writes keys and values of all rows. For the last layer, whose other outputs are never read.
        """
        q = self._project(index, hidden, at)[0].index_select(0, needed)
        attended = self._attend(index, q, of_needed, 1, None, None)
        return self._mlp(index, self._add_attended(index, hidden.index_select(0, needed), attended))

    def logits(self, hidden: Tensor) -> Tensor:
        """`Decoder.logits`."""
        decoder = self.decoder
        return _linear(rms_norm(hidden, decoder.final_norm, decoder.config.rms_norm_eps), decoder.head)

    def _attention(
        self, index: int, hidden: Tensor, at: Layout, num_splits: int, shared: SharedGroups | None
    ) -> Tensor:
        """Add attention to hidden, in place. A separate function, so that its tensors are freed before the MLP."""
        q, k, v = self._project(index, hidden, at)
        attended = self._attend(index, q, at, num_splits, shared, (k, v) if at.whole else None)
        return self._add_attended(index, hidden, attended)

    def _project(self, index: int, hidden: Tensor, at: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [rows, heads, head_dim], keys (rotated if at.whole) and values, which go to their pages."""
        config, weights = self.decoder.config, self.decoder.layers[index]
        norm, bias = None, None
        if hidden.shape[0] <= self.few_rows and not at.whole:  # values that are read where they are must be final
            norm, bias = RowNorm(hidden, config.rms_norm_eps), weights.qkv.bias
            x = _product(hidden, weights.qkv)
        else:
            x = _linear(rms_norm(hidden, weights.attention_norm, config.rms_norm_eps), weights.qkv)
        return self._rotate(index, x, at, norm, bias, None)

    def _rotate(
        self, index: int, x: Tensor, at: Layout, norm: RowNorm | None, bias: Tensor | None, scales: Scales | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_project` from the product x on, to which norm, bias and scales still have to be applied."""
        config, weights = self.decoder.config, self.decoder.layers[index]
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = x.view(x.shape[0], heads + 2 * kv_heads, config.head_dim)
        band, pages = self.kv.layer(index)
        q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        head_norm = None
        if weights.q_norm is not None and weights.k_norm is not None:
            head_norm = HeadNorm(weights.q_norm, weights.k_norm, config.rms_norm_eps)
        rope_write_kv(
            q, k, v, self._cos, self._sin, at.positions, at.requests, at.batch, band, pages, q_out=q,
            k_out=k if at.whole else None, norm=norm, bias=bias,
            head_norm=head_norm, scales=scales,
        )  # fmt: skip
        return q, k, v

    def _attend(
        self, index: int, q: Tensor, at: Layout, num_splits: int, shared: SharedGroups | None,
        fresh_kv: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        band, pages = self.kv.layer(index)
        if shared is not None:
            return shared_attention(q, pages, band, at.batch, shared, num_splits=num_splits)[0]
        return attention(
            q, pages, band, at.batch, num_splits=num_splits, fresh_kv=fresh_kv, fresh_only=fresh_kv is not None
        )[0]

    def _add_attended(self, index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden + the output projection, in place."""
        attended = attended.view(hidden.shape[0], self.decoder.config.q_size)
        return _add_linear(hidden, attended, self.decoder.layers[index].attention_out)

    def _mlp(self, index: int, hidden: Tensor) -> Tensor:
        """hidden + the MLP, in place."""
        config, weights = self.decoder.config, self.decoder.layers[index]
        mlp = weights.mlp
        if isinstance(mlp, ExpertMlp):
            return self._experts(mlp, hidden, rms_norm(hidden, weights.mlp_norm, config.rms_norm_eps))
        if hidden.shape[0] <= self.few_rows:
            x = swiglu(_product(hidden, mlp.gate_up), RowNorm(hidden, config.rms_norm_eps))
        else:
            x = rms_norm(hidden, weights.mlp_norm, config.rms_norm_eps)
            x = swiglu(_linear(x, mlp.gate_up))
        return _add_linear(hidden, x, mlp.down)

    def _experts(self, mlp: ExpertMlp, hidden: Tensor, x: Tensor) -> Tensor:
        """hidden + the experts on x [rows, hidden], in place."""
        if mlp.stacked is None:
            return mlp(x, hidden)
        router, ranks = mlp.router.weight_t.t(), mlp.ranks
        if ranks is None:
            return expert_mlp(hidden, x, router, *mlp.stacked, mlp.top_k)
        if ranks.rank:  # one rank adds what was there before
            hidden.zero_()
        return ranks.add_up(expert_mlp(hidden, x, router, *mlp.stacked, mlp.top_k))


def _linear(x: Tensor, linear: Linear) -> Tensor:
    if linear.batch_invariant:
        return linear(x)
    if linear.bias is not None:
        return torch.addmm(linear.bias, x, linear.weight_t)
    return torch.mm(x, linear.weight_t)


def _product(x: Tensor, linear: Linear) -> Tensor:
    """x W^T, without the bias."""
    if linear.batch_invariant:
        return linear.product(x)
    return torch.mm(x, linear.weight_t)


def _add_linear(hidden: Tensor, x: Tensor, linear: Linear) -> Tensor:
    """hidden + x W^T, in place; a split product is added up over the ranks."""
    if isinstance(linear, SummedLinear) and not linear.batch_invariant:
        if linear.ranks.rank == 0:  # one rank adds what was there before
            torch.addmm(hidden, x, linear.weight_t, out=hidden)
        else:
            torch.mm(x, linear.weight_t, out=hidden)
        return linear.ranks.add_up(hidden)
    if linear.batch_invariant or linear.bias is not None:
        return linear(x, hidden)
    return torch.addmm(hidden, x, linear.weight_t, out=hidden)
