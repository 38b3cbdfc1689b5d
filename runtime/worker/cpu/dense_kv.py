"""Contiguous copies of running requests' keys and values, for attention on a CPU.

CPU attention needs a request's keys in one piece, and gathering them from pages at every step costs more than the
attention itself. So a request's first forward makes a copy, and later forwards update it with the pages; no other
request writes pages that it reads. The copies double the memory of running requests' KVs.
"""

from __future__ import annotations

from torch import Tensor

from ....kernels.attention.dense import gather_kv_reference


class DenseKV:
    """Copies by request and layer."""

    def __init__(self) -> None:
        self._copies: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    def update(
        self, rid: str, layer: int, start: int, k: Tensor, v: Tensor, layer_pages: Tensor, table: Tensor, keys: int
    ) -> tuple[Tensor, Tensor]:
        """The first `keys` keys and values of a request in a layer, each [keys, kv_heads, head_dim].

        k, v [tokens, kv_heads, head_dim] are fresh ones of the positions from `start` on, in its pages already.
        """
        layers = self._copies.setdefault(rid, {})
        held = layers.get(layer)
        if held is None or len(held[0]) < keys:
            layers[layer] = held = gather_kv_reference(layer_pages, table, keys)
        else:
            held[0][start : start + len(k)] = k
            held[1][start : start + len(v)] = v
        return held[0][:keys], held[1][:keys]

    def forget(self, rid: str) -> None:
        """Drop a request's copies; unknown requests are ignored."""
        self._copies.pop(rid, None)
