"""The eviction queue: finds the next node to give up pages without a scan of the tree."""

import heapq
from collections import deque
from typing import NamedTuple

from .errors import InvariantError
from .eviction_policy import EvictionPolicy, Key
from .node import Node


class EvictResult(NamedTuple):
    """Pages that an eviction returned to the pools, and the nodes that it dropped or trimmed."""

    kv_pages: int = 0
    boundary_pages: int = 0
    nodes_dropped: int = 0
    nodes_trimmed: int = 0
    tokens_dropped: int = 0


Entry = tuple[float, float, int, Node]


class EvictionQueue:
    """A lazy priority queue of nodes that may be evicted.

    Every node that can be evicted has exactly one valid entry (its `ticket`), with a key not above its present one:
    uses only raise keys, so an entry whose key is too low when it comes up is entered again with the present key. Uses,
    locks and unlocks therefore cost nothing here; each is paid for by at most one extra queue operation later.
    Ties fall to the older entry, so the order is deterministic.

    Most entries arrive in the order in which they will leave (what is stored later is evicted later), so an entry
    that is not below the last one is appended to a run; only the others need the heap. The next one out is the
    smaller of the two heads.
    """

    def __init__(self, policy: EvictionPolicy):
        self.policy = policy
        self._run: deque[Entry] = deque()
        self._heap: list[Entry] = []
        self._tickets = 0
        self._void = 0

    def __len__(self) -> int:
        return len(self._run) + len(self._heap) - self._void

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
            self._enter(node, self.policy.key(node))

    def void(self, node: Node) -> None:
        """Forget `node`'s entry, if it has one: it left the tree or its key fell."""
        if node.ticket >= 0:
            node.ticket = -1
            self._void += 1
            if self._void > 64 and self._void > len(self):
                self._run = deque(entry for entry in self._run if entry[3].ticket == entry[2])
                self._heap = [entry for entry in self._heap if entry[3].ticket == entry[2]]
                heapq.heapify(self._heap)
                self._void = 0

    def pop(self) -> tuple[Node, Key] | None:
        """Take out the node with the lowest key; None when nothing can be evicted."""
        run, heap = self._run, self._heap
        while run or heap:
            entry = run.popleft() if run and (not heap or run[0] < heap[0]) else heapq.heappop(heap)
            node = entry[3]
            if node.ticket != entry[2]:
                self._void -= 1
                continue
            node.ticket = -1
            if node.in_use or not self.is_frontier(node):
                continue
            key = self.policy.key(node)
            if key == entry[:2]:
                return node, key
            self._enter(node, key)
        return None

    def _enter(self, node: Node, key: Key) -> None:
        node.ticket = self._tickets
        self._tickets += 1
        entry = (*key, node.ticket, node)
        if not self._run or self._run[-1] < entry:
            self._run.append(entry)
        else:
            heapq.heappush(self._heap, entry)

    def check_invariants(self, nodes: dict[int, Node]) -> None:
        """Raise InvariantError unless tickets and entries agree; `nodes` are all nodes of the tree by id."""
        valid = {}
        for first, second, ticket, node in (*self._run, *self._heap):
            if node.ticket == ticket:
                if id(node) not in nodes:
                    raise InvariantError("a node that left the tree is in the eviction queue")
                if (first, second) > self.policy.key(node):
                    raise InvariantError("an entry of the eviction queue is above its node's key")
                valid[id(node)] = node
        if len(valid) != len(self):
            raise InvariantError(f"{len(valid)} valid entries in the eviction queue, counted {len(self)}")
        if any(node.ticket >= 0 and key not in valid for key, node in nodes.items()):
            raise InvariantError("a node's ticket is not in the eviction queue")
