"""Eviction policies: which node gives up pages first."""

from __future__ import annotations

from collections.abc import Sequence

from .node import Node

Key = tuple[float, float]


class EvictionPolicy:
    """Orders nodes; the lowest key goes first. A key never falls by a use of the node, only by a raise of its depth.

    `both_axes`: evict one level of a node at a time (its deepest bands) instead of whole nodes.
    `clock` is the policy's own age; the tree copies it to `Node.age` at each use.

    Args:
        layers_per_byte: what each level saves, as `TreeConfig.layers_per_byte`.
    """

    both_axes = False

    def __init__(self, layers_per_byte: Sequence[float]):
        self.clock = 0.0

    def key(self, node: Node) -> Key:
        """Key of a node as it is now."""
        raise NotImplementedError

    def evicted(self, key: Key) -> None:
        """Learn that pages with this key were given up under pressure."""


class LeastRecentlyUsed(EvictionPolicy):
    """Oldest last use first."""

    def key(self, node: Node) -> Key:
        """(last use, 0)."""
        return (node.last_used, 0)


class LeastFrequentlyUsed(EvictionPolicy):
    """Fewest uses first, the older of equals."""

    def key(self, node: Node) -> Key:
        """(uses, last use)."""
        return (sum(node.hits), node.last_used)


class SegmentedLru(EvictionPolicy):
    """Nodes that were used fewer than twice since their capture go before all others; oldest first in each segment."""

    protect_from = 2

    def key(self, node: Node) -> Key:
        """(segment, last use)."""
        return (sum(node.hits) >= self.protect_from, node.last_used)


class CostAware(EvictionPolicy):
    """Token-layers saved per byte, aged: GreedyDual-Size-Frequency over (node, level) cells.

    A cell is what one level adds to a node: the bands between the level below and it, and the boundary states that
    enter the layer behind it. Each use of it saves (layers of the cell) x tokens and costs its pages' bytes.
    key = clock at last use + (1 + uses at this level or deeper) x layers / bytes, and the clock is the largest key
    evicted so far, so that what is not used any more sinks (Cherkasova, "Improving WWW proxies performance with
    Greedy-Dual-Size-Frequency caching policy", HPL-98-69R1). Values are scaled: the best cell's one use counts 1.
    """

    both_axes = True

    def __init__(self, layers_per_byte: Sequence[float]):
        super().__init__(layers_per_byte)
        best = max(layers_per_byte)
        self.values = [value / best for value in layers_per_byte]

    def key(self, node: Node) -> Key:
        """(aged value of its deepest cell, last use)."""
        level = node.level
        return (node.age + (1 + node.uses(level)) * self.values[level], node.last_used)

    def evicted(self, key: Key) -> None:
        """Age: the clock never goes back."""
        self.clock = max(self.clock, key[0])


EVICTION_POLICIES: dict[str, type[EvictionPolicy]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "slru": SegmentedLru,
    "cost": CostAware,
}
"""The names of the policies; the only place where they stand."""
