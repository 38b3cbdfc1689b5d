"""Layers whose products run in fp8: residuals, norms and SwiGLU write the rows of the next product in fp8.

Scales cost no launch: products of few rows leave here unscaled, and what reads them multiplies. Beside a layer in 16
bits there is one launch more for the attended values, and one for each norm that is not deferred.
"""

from __future__ import annotations

from torch import Tensor

from ....kernels.attention.groups import SharedGroups
from ....kernels.layers.fp8 import Rows8, Scales, add_norm_quantize, swiglu_quantize
from ...model.decoder import Decoder
from ...model.linear import Linear
from ...model.mlp import DenseMlp
from ..pools import KVPool
from .fp8_linear import Fp8Linear
from .layers import FusedLayers
from .layout import Layout


class Fp8Layers(FusedLayers):
    """See `FusedLayers`; the decoder's layers have been through `quantize_layer`."""

    def __init__(self, decoder: Decoder, kv: KVPool, max_positions: int):
        super().__init__(decoder, kv, max_positions)
        # (layer, hidden states, their rows): computed by the layer before, for the layer that begins with them.
        self._ahead: tuple[int, Tensor, Rows8] | None = None

    def run(
        self, index: int, hidden: Tensor, at: Layout, *, num_splits: int, shared: SharedGroups | None = None
    ) -> Tensor:
        """Layer `index` on hidden [rows, hidden], which is overwritten and returned."""
        q, k, v = self._project(index, hidden, at)
        attended = self._attend(index, q, at, num_splits, shared, (k, v) if at.whole else None)
        product, scales = self._behind(index, hidden, attended)
        rows = self._add(index, hidden, product, scales)
        self._ahead = (index + 1, hidden, rows) if index + 1 < self.decoder.num_layers else None
        return hidden

    def run_last(self, index: int, hidden: Tensor, at: Layout, needed: Tensor, of_needed: Layout) -> Tensor:
        """Layer `index` for some rows alone: see `FusedLayers`."""
        q = self._project(index, hidden, at)[0].index_select(0, needed)
        attended = self._attend(index, q, of_needed, 1, None, None)
        hidden = hidden.index_select(0, needed)
        self._add(index, hidden, *self._behind(index, hidden, attended))
        return hidden

    def _add(self, index: int, hidden: Tensor, product: Tensor, scales: Scales | None) -> Rows8:
        """Add the MLP's part to hidden; returns the rows that the next layer begins with (unused behind the last)."""
        weights = self.decoder.layers[min(index + 1, self.decoder.num_layers - 1)]
        return add_norm_quantize(hidden, product, scales, weights.attention_norm, self.decoder.config.rms_norm_eps)

    def _project(self, index: int, hidden: Tensor, at: Layout) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.decoder.layers[index]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index and ahead[1] is hidden:
            x = ahead[2]
        else:
            x = add_norm_quantize(hidden, None, None, weights.attention_norm, self.decoder.config.rms_norm_eps)
        linear = _fp8(weights.qkv)
        product, scales = linear.of_rows(x, final=at.whole)  # values that are read where they are must be final
        if at.whole and linear.bias is not None:
            product += linear.bias
        return self._rotate(index, product, at, None, None if at.whole else linear.bias, scales)

    def _behind(self, index: int, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Scales | None]:
        """What is left to be added to hidden, to which the attention's part is added in place."""
        weights = self.decoder.layers[index]
        mlp = weights.mlp
        assert isinstance(mlp, DenseMlp)
        x = add_norm_quantize(attended.view(hidden.shape[0], self.decoder.config.q_size))
        product, scales = _fp8(weights.attention_out).of_rows(x, final=False)
        x = add_norm_quantize(hidden, product, scales, weights.mlp_norm, self.decoder.config.rms_norm_eps)
        product, scales = _fp8(mlp.gate_up).of_rows(x, final=False)
        return _fp8(mlp.down).of_rows(swiglu_quantize(product, scales), final=False)


def _fp8(linear: Linear) -> Fp8Linear:
    assert isinstance(linear, Fp8Linear)
    return linear
