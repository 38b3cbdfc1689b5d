"""The nodes and the page references that they own. No other code changes them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .config import TreeConfig
from .errors import InvalidArgumentError, PageReferenceError
from .events import EventKind, EventLog, TreeEvent
from .eviction import EvictionQueue
from .eviction_policy import EVICTION_POLICIES
from .node import TOKEN_BYTES, Namespace, Node, Pages
from .page_allocator import PageAllocator, Where

if TYPE_CHECKING:
    from .match import Match


class Freed(NamedTuple):
    """Pages that became free by one change (in a tree without pools: pages that it gave up)."""

    kv: int = 0
    boundary: int = 0


class Storage:
    """Nodes by namespace, with every count kept as they change.

    Owns one reference on each page that a node names. A node without locks and pins is *idle*; the pages
    of idle nodes are offered to the allocators, which count those that are reclaimable.

    A lock is a count on its nodes. What it means for single pages is done late, and mostly never, because an unlock
    comes first:

    * the references of a locked match on its pages are written when the tree gives up pages of a locked node
      (`write_references`). Until then the tree's own reference keeps them, and `deferred` names the match;
    * the marks of a node's pages follow when reclaimable pages are counted (`settle_marks`). Until then the node
      is in `stale`: its pages are offered though it is in use, or not though it is idle.
    """

    def __init__(self, config: TreeConfig, kv: PageAllocator | None, boundary: PageAllocator | None, events: EventLog):
        if kv is None and boundary is not None:
            raise InvalidArgumentError("kv", "is needed where boundary is given")
        if kv is not None and boundary is None and config.boundary_depths:
            raise InvalidArgumentError("boundary", "is needed where kv is given and boundary_depths are stored")
        self.config = config
        self.page_bytes = config.page_size * TOKEN_BYTES
        self.kv = kv
        self.boundary = boundary
        self.events = events
        self.policy = EVICTION_POLICIES[config.policy](config.layers_per_byte)
        self.queue = EvictionQueue(self.policy)
        self.deferred: dict[int, Match] = {}
        self.stale: dict[Node, None] = {}
        for pool in (kv, boundary):
            if pool is not None:
                pool.attach(self)
        self.roots: dict[Namespace, Node] = {}
        # Shared by all nodes that were never used (most, on diverse prompts); replaced at the first use.
        self.no_hits = [0] * len(config.levels)
        self.clock = 0
        self.num_nodes = 0
        self.num_tokens = 0
        self.num_kv_pages = 0
        self.num_boundary_pages = 0
        self.idle_kv_pages = 0
        self.idle_boundary_pages = 0

    def tick(self) -> int:
        """Advance and return the counter that stands for time."""
        self.clock += 1
        return self.clock

    def root(self, namespace: Namespace) -> Node:
        """The root of `namespace`, made if need be. It has no tokens and all levels."""
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = Node(namespace, b"", 0, None, len(self.no_hits) - 1, self.no_hits)
        return root

    def path(self, node: Node | None) -> list[Node]:
        """`node` and all above it, without the root; empty for None."""
        found = []
        while node is not None and node.tokens:
            found.append(node)
            node = node.parent
        return found

    def touch(self, nodes: list[Node], level: int) -> None:
        """Count one use of `nodes` at `level`, now."""
        now, age = self.tick(), self.policy.clock
        for node in nodes:
            node.last_used = now
            node.age = age
            if node.hits is self.no_hits:
                node.hits = self.no_hits.copy()
            node.hits[level] += 1

    def adopt(self, kv: Pages | None, boundary: Pages | None, at: tuple[Where, Where], *, offered: bool) -> None:
        """Take the tree's references on all of these pages, or on none.

        `at` is what `intern` of each allocator returned for them. `offered` marks them as offered, like their node.
        """
        if self.kv is not None and kv is not None:
            self.kv.adopt(kv, at[0], offered=offered)
        if self.boundary is not None and boundary is not None:
            try:
                self.boundary.adopt(boundary, at[1], offered=offered)
            except PageReferenceError:
                self.give_back(kv, None)
                raise

    def give_back(self, kv: Pages | None, boundary: Pages | None) -> None:
        """Undo `adopt`."""
        if self.kv is not None and kv is not None:
            self.kv.give_up(kv)
        if self.boundary is not None and boundary is not None:
            self.boundary.give_up(boundary)

    def add_leaf(
        self, parent: Node, tokens: bytes, level: int, kv: Pages | None, boundary: Pages | None, ratio: float, now: int
    ) -> Node:
        """Hang a node with adopted and offered pages below `parent`. The arrays become the node's."""
        node = Node(parent.namespace, tokens, len(tokens) // self.page_bytes, parent, level, self.no_hits)
        node.kv, node.boundary = kv, boundary
        node.ratio = ratio
        parent.children[tokens[: self.page_bytes]] = node
        parent.count_child(level, 1)
        self.num_nodes += 1
        self.num_tokens += len(tokens) // TOKEN_BYTES
        self._stored(node, 0, now)
        return node

    def raise_node(
        self, node: Node, level: int, kv: Pages | None, boundary: Pages | None, ratio: float, now: int
    ) -> None:
        """Deepen `node` to `level` with adopted pages, marked like its others, for the missing bands and boundaries.

        A node that had lost all its pages starts its counters anew, as if it had left the tree.
        """
        assert node.parent is not None
        before = node.level
        if not before:
            node.hits = self.no_hits
        node.parent.count_child(before, -1)
        node.parent.count_child(level, 1)
        if kv is not None and node.kv is not None:
            node.kv = np.concatenate([node.kv, kv])
        if boundary is not None and node.boundary is not None:
            node.boundary = np.concatenate([node.boundary, boundary])
        node.level = level
        node.ratio = ratio
        node.drifted = False
        self.queue.void(node)
        self._stored(node, before, now)

    def split(self, node: Node, pages: int) -> Node:
        """Split `node` after `pages` pages; return the new upper part."""
        upper = node.split(pages, self.page_bytes)
        self.num_nodes += 1
        if node in self.stale:
            self.stale[upper] = None
        return upper

    def lower(self, node: Node, level: int) -> Freed:
        """Trim `node` to `level` (its children are no deeper) and let go of the pages above.

        A node that comes to level 0 leaves the tree, unless it is in use: then it stays, without pages and invisible
        to matches, until its last lock goes.
        """
        assert node.parent is not None
        if node.locks and self.deferred:
            self.write_references()
        config = self.config
        before = node.level
        bands, bands_before = config.bands_at[level], config.bands_at[before]
        states, states_before = config.boundaries_at[level], config.boundaries_at[before]
        kv_count = (bands_before - bands) * node.num_pages
        boundary_count = (states_before - states) * node.num_pages
        freed = Freed(kv_count, boundary_count)
        kv_ids = boundary_ids = None
        if node.kv is not None:
            kv_ids = node.kv[bands:].reshape(-1)
            node.kv = node.kv[:bands].copy()
        if node.boundary is not None:
            boundary_ids = node.boundary[states:].reshape(-1)
            node.boundary = node.boundary[:states].copy()
        if not node.in_use:
            self._count_idle(-kv_count, -boundary_count)
        if self.kv is not None and kv_ids is not None:
            freed = freed._replace(kv=self.kv.give_up(kv_ids))
        if self.boundary is not None and boundary_ids is not None:
            freed = freed._replace(boundary=self.boundary.give_up(boundary_ids))
        self.num_kv_pages -= kv_count
        self.num_boundary_pages -= boundary_count
        node.level = level
        node.generation += 1
        parent = node.parent
        parent.count_child(before, -1)
        parent.count_child(level, 1)
        self.queue.void(node)
        if level:
            self.queue.push(node)
        elif not node.in_use:
            self._remove(node)
        self.queue.push(parent)
        kind: EventKind = "trimmed" if level else "evicted"
        self.events.add(
            TreeEvent(kind, node.namespace, node.num_tokens, config.levels[level], kv_count, boundary_count)
        )
        return freed

    def lower_subtree(self, node: Node, level: int) -> Freed:
        """Trim `node` and everything below it to at most `level`, children first."""
        order = [node] if node.level > level else []
        for above in order:
            order.extend(child for child in above.children.values() if child.level > level)
        kv = boundary = 0
        for below in reversed(order):
            freed = self.lower(below, level)
            kv += freed.kv
            boundary += freed.boundary
        return Freed(kv, boundary)

    def hold(self, node: Node, lock: bool) -> None:
        """Count a lock (or a pin) on `node` and all above it."""
        bands_at, boundaries_at, stale = self.config.bands_at, self.config.boundaries_at, self.stale
        kv = boundary = 0
        while node.tokens:
            if not node.locks and not node.pins:
                kv += bands_at[node.level] * node.num_pages
                boundary += boundaries_at[node.level] * node.num_pages
                if node.offered:
                    stale[node] = None
                else:
                    del stale[node]
            if lock:
                node.locks += 1
            else:
                node.pins += 1
            assert node.parent is not None
            node = node.parent
        self.idle_kv_pages -= kv
        self.idle_boundary_pages -= boundary

    def unhold(self, node: Node, lock: bool) -> None:
        """Undo `hold`."""
        bands_at, boundaries_at, stale = self.config.bands_at, self.config.boundaries_at, self.stale
        kv = boundary = 0
        while node.tokens:
            parent = node.parent
            assert parent is not None
            if lock:
                node.locks -= 1
            else:
                node.pins -= 1
            if not node.locks and not node.pins:
                if node.offered:
                    del stale[node]
                else:
                    stale[node] = None
                if node.level:
                    kv += bands_at[node.level] * node.num_pages
                    boundary += boundaries_at[node.level] * node.num_pages
                    self.queue.push(node)
                else:
                    self._remove(node)
            node = parent
        self.idle_kv_pages += kv
        self.idle_boundary_pages += boundary

    def write_references(self) -> None:
        """Write the deferred references of locked matches: the tree is about to give up pages of theirs."""
        for match in self.deferred.values():
            if self.kv is not None:
                self.kv.acquire(match.kv_pages)
            if self.boundary is not None:
                self.boundary.acquire(match.boundary_pages)
        self.deferred.clear()

    def drop_references(self, match: "Match") -> None:
        """Give back the references of a match that is unlocked, if they were ever written."""
        if self.deferred.pop(id(match), None) is None:
            if self.kv is not None:
                self.kv.release(match.kv_pages)
            if self.boundary is not None:
                self.boundary.release(match.boundary_pages)

    def deferred_references(self, pool: PageAllocator) -> Iterable[Pages]:
        """Pages of `pool` with one reference more than written, for `PageAllocator.refcount`."""
        for match in self.deferred.values():
            if pool is self.kv:
                yield match.kv_pages
            if pool is self.boundary:
                yield match.boundary_pages

    def settle_marks(self) -> None:
        """Offer the pages of nodes that became idle since last time, withdraw those of nodes that came into use."""
        if not self.stale:
            return
        lists = [node for node in self.stale if not node.offered], [node for node in self.stale if node.offered]
        for idle, nodes in zip((True, False), lists, strict=True):
            kv = [node.kv.reshape(-1) for node in nodes if node.kv is not None]
            boundary = [node.boundary.reshape(-1) for node in nodes if node.boundary is not None]
            for pool, parts in ((self.kv, kv), (self.boundary, boundary)):
                if pool is not None and parts:
                    if idle:
                        pool.offer(np.concatenate(parts))
                    else:
                        pool.withdraw(np.concatenate(parts))
            for node in nodes:
                node.offered = idle
        self.stale.clear()

    def _stored(self, node: Node, before: int, now: int) -> None:
        config = self.config
        level, pages = node.level, node.num_pages
        kv_count = (config.bands_at[level] - config.bands_at[before]) * pages
        boundary_count = (config.boundaries_at[level] - config.boundaries_at[before]) * pages
        self.num_kv_pages += kv_count
        self.num_boundary_pages += boundary_count
        if not node.in_use:
            self._count_idle(kv_count, boundary_count)
        node.last_used = now
        node.age = self.policy.clock
        self.queue.push(node)
        num_tokens, depth = pages * config.page_size, config.levels[level]
        self.events.add(TreeEvent("stored", node.namespace, num_tokens, depth, kv_count, boundary_count))

    def _remove(self, node: Node) -> None:
        """Take a node without pages and children out of the tree."""
        parent = node.parent
        assert parent is not None
        assert not node.children
        self.queue.void(node)
        self.stale.pop(node, None)
        del parent.children[node.tokens[: self.page_bytes]]
        parent.count_child(node.level, -1)
        node.parent = None
        self.num_nodes -= 1
        self.num_tokens -= node.num_tokens
        if parent.is_root and not parent.children:
            del self.roots[parent.namespace]

    def _count_idle(self, kv_count: int, boundary_count: int) -> None:
        self.idle_kv_pages += kv_count
        self.idle_boundary_pages += boundary_count
