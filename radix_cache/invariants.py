"""The checks behind `RadixTree.check_invariants`: everything that is kept incrementally is recounted."""

from collections import Counter

import numpy as np

from .errors import InvariantError
from .match import Match, still_valid
from .node import Node
from .storage import Storage


def check_tree(
    storage: Storage, nodes: list[Node], locked: list[Match], pinned: list[tuple[Node, int]], sole_owner: bool = True
) -> None:
    """Raise InvariantError, naming the node's first tokens and both numbers, at the first disagreement.

    `sole_owner`: no other tree keeps pages of the same pools.
    """
    for node in nodes:
        _check_node(storage, node)
    _check_counts(storage, nodes)
    _check_holders(nodes, locked, pinned)
    _check_deferred(storage, nodes, locked)
    _check_pages(storage, nodes, sole_owner)
    for namespace, root in storage.roots.items():
        _equal(root.namespace, namespace, "namespace of a root")
        _equal(bool(root.children), True, "a root has children")
        _check_children(root)


def _equal(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise InvariantError(f"{what}: kept as {found}, is {expected}")


def _check_node(storage: Storage, node: Node) -> None:
    config, parent = storage.config, node.parent
    name = f"node {node.token_ids[:4].tolist()}"
    if parent is None:
        raise InvariantError(f"{name}: has no parent")
    _equal(len(node.tokens), node.num_pages * storage.page_bytes, f"{name}: bytes of whole pages")
    _equal(node.num_pages > 0, True, f"{name}: has pages")
    _equal(node.end, parent.end + node.num_tokens, f"{name}: tokens to its end")
    _equal(parent.children.get(node.tokens[: storage.page_bytes]) is node, True, f"{name}: parent's child")
    _equal(node.namespace, parent.namespace, f"{name}: namespace")
    if node.level > parent.level:
        raise InvariantError(f"{name}: level {node.level} below a parent of level {parent.level}")
    if not node.level and not node.in_use:
        raise InvariantError(f"{name}: without pages and without a holder")
    if node.locks < 0 or node.pins < 0:
        raise InvariantError(f"{name}: {node.locks} locks, {node.pins} pins")
    if not 0 <= node.ratio <= 1:
        raise InvariantError(f"{name}: ratio {node.ratio}")
    if node.last_used > storage.clock:
        raise InvariantError(f"{name}: used at {node.last_used}, now is {storage.clock}")
    if storage.kv is not None:
        shape = (config.bands_at[node.level], node.num_pages)
        _equal(None if node.kv is None else node.kv.shape, shape, f"{name}: shape of kv")
    if storage.boundary is not None:
        shape = (config.boundaries_at[node.level], node.num_pages)
        _equal(None if node.boundary is None else node.boundary.shape, shape, f"{name}: shape of boundary")
    if node.ticket < 0 and not node.in_use and storage.queue.is_frontier(node):
        raise InvariantError(f"{name}: can be evicted and is not in the queue")
    _check_children(node)


def _check_children(node: Node) -> None:
    counts = [0] * len(node.hits)
    for child in node.children.values():
        counts[child.level] += 1
    _equal(node.child_levels or [0] * len(node.hits), counts, f"children by level of {node.token_ids[:4].tolist()}")


def _check_counts(storage: Storage, nodes: list[Node]) -> None:
    config = storage.config
    kv = [config.bands_at[node.level] * node.num_pages for node in nodes]
    boundary = [config.boundaries_at[node.level] * node.num_pages for node in nodes]
    idle = [not node.in_use for node in nodes]
    _equal(storage.num_nodes, len(nodes), "num_nodes")
    _equal(storage.num_tokens, sum(node.num_tokens for node in nodes), "num_tokens")
    _equal(storage.num_kv_pages, sum(kv), "num_kv_pages")
    _equal(storage.num_boundary_pages, sum(boundary), "num_boundary_pages")
    _equal(storage.idle_kv_pages, sum(n for n, free in zip(kv, idle, strict=True) if free), "idle kv pages")
    _equal(storage.idle_boundary_pages, sum(n for n, free in zip(boundary, idle, strict=True) if free), "idle boundary")
    storage.queue.check_invariants({id(node): node for node in nodes})


def _check_holders(nodes: list[Node], locked: list[Match], pinned: list[tuple[Node, int]]) -> None:
    locks: Counter[int] = Counter()
    pins: Counter[int] = Counter()
    for counter, holders in (
        (locks, [(match.node, 1) for match in locked]),
        (pins, list(pinned)),
    ):
        for holder, count in holders:
            node = holder
            while node is not None:
                counter[id(node)] += count
                node = node.parent
    for node in nodes:
        name = f"node {node.token_ids[:4].tolist()}"
        _equal(node.locks, locks[id(node)], f"{name}: locks")
        _equal(node.pins, pins[id(node)], f"{name}: pins")
    in_tree = {id(node) for node in nodes}
    for match in locked:
        if match.node is not None and id(match.node) not in in_tree:
            raise InvariantError("a locked match's node left the tree")


def _check_deferred(storage: Storage, nodes: list[Node], locked: list[Match]) -> None:
    """What the pools are not told yet: marks of nodes in `stale`, references of matches in `deferred`."""
    late = {id(node) for node in nodes if node.offered == node.in_use}
    _equal({id(node) for node in storage.stale}, late, "nodes whose marks lag behind")
    known = {id(match) for match in locked}
    for key, match in storage.deferred.items():
        if key != id(match) or key not in known:
            raise InvariantError("references of a match are deferred that is not locked")
        if match.node is None or not still_valid(match, storage.config):
            raise InvariantError("references are deferred on pages that the tree does not hold there any more")


def _check_pages(storage: Storage, nodes: list[Node], sole_owner: bool) -> None:
    for name, pool in (
        ("kv", storage.kv),
        ("boundary", storage.boundary),
    ):
        if pool is None:
            continue
        pool.check_invariants()
        counts = np.zeros(pool.num_pages, dtype=np.int64)
        idle = np.zeros(pool.num_pages, dtype=np.bool_)
        for node in nodes:
            ids = getattr(node, name)
            np.add.at(counts, ids, 1)
            if node.offered:
                idle[ids] = True
        if (counts > 1).any():
            raise InvariantError(f"{name}: page {int(counts.argmax())} is twice in the tree")
        others = pool.held & (counts == 0) if not sole_owner else np.zeros_like(pool.held)
        if ((counts > 0) != (pool.held & ~others)).any():
            raise InvariantError(f"{name}: the mask of held pages disagrees with the nodes")
        if (pool.refcount(np.arange(pool.num_pages)) < counts).any():
            raise InvariantError(f"{name}: the tree holds a page without a reference")
        if ((pool.offered & ~others) != idle).any():
            raise InvariantError(f"{name}: offered pages are not those of nodes marked so")
