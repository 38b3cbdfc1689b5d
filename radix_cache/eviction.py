"""The eviction queue: the next node to give up pages, without a scan of the tree."""

import heapq
from typing import NamedTuple

from .errors import InvariantError
from .node import Node
from .policy import EvictionPolicy, Key


class EvictResult(NamedTuple):
    """What an eviction freed: pages that went back to the pools, and how the tree paid for them."""

    kv_pages: int = 0
    boundary_pages: int = 0
    nodes_dropped: int = 0
    nodes_trimmed: int = 0
    tokens_dropped: int = 0


class EvictionQueue:
    """A lazy heap of nodes that may be evicted.

    Every node that can be evicted has exactly one valid entry (its `ticket`), with a key not above its present one:
    uses only raise keys, so an entry that turns out too low when it comes up is put back with the present key. Uses,
    locks and unlocks therefore cost nothing here; each is paid for by at most one extra heap operation later.
    Ties fall to the older entry, so the order is deterministic.
    """

    def __init__(self, policy: EvictionPolicy):
        self.policy = policy
        self._heap: list[tuple[Key, int, Node]] = []
        self._tickets = 0
        self._void = 0

    def __len__(self) -> int:
        return len(self._heap) - self._void

    def is_frontier(self, node: Node) -> bool:
        """Whether `node` may give up pages without leaving a child deeper than itself (locks aside)."""
        if not node.level or node.is_root:
            return False
        if not self.policy.both_axes:
            return not node.children
        return node.child_levels is None or not node.child_levels[node.level]

    def push(self, node: Node) -> None:
        """Enter `node` if it may be evicted and has no valid entry."""
        if node.ticket < 0 and not node.in_use and self.is_frontier(node):
            node.ticket = self._tickets
            self._tickets += 1
            heapq.heappush(self._heap, (self.policy.key(node), node.ticket, node))

    def void(self, node: Node) -> None:
        """Forget `node`'s entry, if it has one: it left the tree or its key fell."""
        if node.ticket >= 0:
            node.ticket = -1
            self._void += 1
            if self._void > 64 and 2 * self._void > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
                heapq.heapify(self._heap)
                self._void = 0

    def pop(self) -> tuple[Node, Key] | None:
        """Take out the node with the lowest key; None when nothing can be evicted."""
        heap = self._heap
        while heap:
            key, ticket, node = heap[0]
            if node.ticket != ticket:
                heapq.heappop(heap)
                self._void -= 1
                continue
            if node.in_use or not self.is_frontier(node):
                heapq.heappop(heap)
                node.ticket = -1
                continue
            now = self.policy.key(node)
            if now != key:
                heapq.heapreplace(heap, (now, ticket, node))
                continue
            heapq.heappop(heap)
            node.ticket = -1
            return node, key
        return None

    def check_invariants(self, nodes: dict[int, Node]) -> None:
        """Raise InvariantError unless tickets and entries agree; `nodes` are all nodes of the tree by id."""
        valid = {}
        for key, ticket, node in self._heap:
            if node.ticket == ticket:
                if id(node) not in nodes:
                    raise InvariantError("a node that left the tree is in the eviction queue")
                if key > self.policy.key(node):
                    raise InvariantError("an entry of the eviction queue is above its node's key")
                valid[id(node)] = node
        if len(valid) != len(self):
            raise InvariantError(f"{len(valid)} valid entries in the eviction queue, counted {len(self)}")
        if any(node.ticket >= 0 and key not in valid for key, node in nodes.items()):
            raise InvariantError("a node's ticket is not in the eviction queue")
