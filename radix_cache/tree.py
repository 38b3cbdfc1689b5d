"""The radix tree over prompt tokens: which prefix KVs are cached, and down to which depth they are valid."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .capture import CaptureResult, PageTable, apply_capture, plan_capture
from .config import TreeConfig
from .depth_profile import DepthProfile
from .errors import InvalidArgumentError, LockError, StaleMatchError, TreeInUseError
from .events import EventLog, TreeEvent
from .eviction import EvictResult
from .invariants import check_tree
from .match import NO_KV, NO_PAGES, Match, as_token_bytes, best_cut, cut_node, gather, still_valid, walk
from .node import TOKEN_BYTES, Namespace, Node
from .page_allocator import PageAllocator
from .pins import Pins
from .snapshot import render_tree, snapshot_tree
from .storage import Freed, Storage

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_NAMESPACE = Namespace()

__all__ = ["Namespace", "RadixTree", "TreeConfig"]


class PageReferences(NamedTuple):
    """References per page id: int32 [num_pages] of each pool (empty without pools)."""

    kv: npt.NDArray[np.int32]
    boundary: npt.NDArray[np.int32]


class FlushResult(NamedTuple):
    """What a flush dropped. `deferred`: running requests still hold pages, which become free as they unlock."""

    deferred: bool
    kv_pages: int
    boundary_pages: int


class RadixTree:
    """Prefixes of prompts with the pages of their KVs and boundary states, by namespace.

    With allocators the tree owns one reference on each page that it stores. Without (a planning tree) it keeps
    tokens and depths only, matches carry no page ids, and counts are of the pages that it would hold.

    One thread; no operation blocks. Arguments that a caller can get wrong raise InvalidArgumentError (a
    RadixCacheError) with the field's name, before anything has changed.
    """

    def __init__(
        self,
        config: TreeConfig,
        kv: PageAllocator | None = None,
        boundary: PageAllocator | None = None,
        *,
        on_event: Callable[[TreeEvent], None] | None = None,
    ):
        self.config = config
        self.events = EventLog(on_event)
        self._storage = Storage(config, kv, boundary, self.events)
        self._locked: dict[int, Match] = {}
        self._pins = Pins(self._storage)

    # Matching and locking

    def match(
        self,
        tokens: npt.ArrayLike,
        namespace: Namespace = DEFAULT_NAMESPACE,
        *,
        total_tokens: int | None = None,
        profile: DepthProfile | None = None,
        max_tokens: int | None = None,
        touch: bool = True,
    ) -> Match:
        """Find the longest cached prefix of `tokens` (integers, [n]) and the cut of it that saves most.

        Args:
            total_tokens: prompt + canvas, the denominator of the prefix ratio; len(tokens) when None.
            profile: bounds the depth by the cut's ratio; None for no bound.
            max_tokens: the most tokens to match, rounded down to whole pages.
            touch: count a use of the nodes of the cut, for the eviction policy.

        The cut maximises s x min(valid depth along the path to s, profile.depth(s / total_tokens)). No reference is
        taken: `lock` the match before anything else changes the tree. Nothing is split.
        """
        storage = self._storage
        data = as_token_bytes(tokens)
        count = len(data) // TOKEN_BYTES
        if total_tokens is None:
            total_tokens = count
        elif total_tokens < count:
            raise InvalidArgumentError("total_tokens", f"must be at least the {count} tokens, got {total_tokens}")
        if profile is not None and profile.num_layers != self.config.num_layers:
            raise InvalidArgumentError(
                "profile", f"is for {profile.num_layers} layers, the tree for {self.config.num_layers}"
            )
        if max_tokens is not None:
            if max_tokens < 0:
                raise InvalidArgumentError("max_tokens", f"must be at least 0, got {max_tokens}")
            count = min(count, max_tokens)
        root = storage.roots.get(namespace)
        if root is None:
            return Match(namespace, 0, 0, 0, NO_KV, NO_PAGES, None)
        usable = count // self.config.page_size * storage.page_bytes
        path, common = walk(root, data[:usable] if usable < len(data) else data, storage.page_bytes)
        if not path:
            return Match(namespace, 0, 0, 0, NO_KV, NO_PAGES, None)
        last = path[-1]
        matched = last.end - (len(last.tokens) - common) // TOKEN_BYTES
        cut, level, used = best_cut(path, matched, self.config, profile, total_tokens)
        if not cut:
            return Match(namespace, matched, 0, 0, NO_KV, NO_PAGES, None)
        if used < len(path):
            del path[used:]
        if touch:
            storage.touch(path, level)
        kv, boundary = gather(path, level, cut // self.config.page_size, self.config)
        node = path[-1]
        return Match(namespace, matched, cut, self.config.levels[level], kv, boundary, node, node.generation)

    def lock(self, match: Match) -> None:
        """Take a reference on each page of `match` for the request, and lock its nodes up to the root.

        Locked nodes are not evicted or trimmed under pressure. A node that the cut ends in is split there. A match
        with cut 0 locks nothing but still has to be unlocked. Raises StaleMatchError when the tree gave up pages of
        the match since, LockError when it is locked.
        """
        if match.locked:
            raise LockError("the match is locked already")
        storage = self._storage
        node = match.node
        if node is not None:
            if node.generation != match.generation and not still_valid(match, self.config):
                raise StaleMatchError("the tree gave up pages of the match since it was made: match again")
            if node.end != match.cut:
                node, start = cut_node(match)
                if node.end > match.cut:
                    # Lock no more than the cut: the rest of the node stays free to go.
                    node = storage.split(node, (match.cut - start) // self.config.page_size)
            match.node, match.generation = node, node.generation
            storage.hold(node, True)
            storage.deferred[id(match)] = match
        match.locked = True
        self._locked[id(match)] = match

    def touch(self, match: Match) -> None:
        """Count a use of the nodes of a match that was made without `touch`. Raises LockError when it is not locked.

        For callers that lock before they know whether the request will run.
        """
        if id(match) not in self._locked:
            raise LockError("the match is not locked in this tree")
        self._storage.touch(self._storage.path(match.node), self.config.levels.index(match.depth))

    def unlock(self, match: Match) -> None:
        """Give back what `lock` took."""
        if self._locked.pop(id(match), None) is None:
            raise LockError("the match is not locked in this tree")
        match.locked = False
        storage = self._storage
        if match.node is not None:
            storage.drop_references(match)
            storage.unhold(match.node, True)

    # Storing

    def capture(
        self,
        tokens: npt.ArrayLike,
        namespace: Namespace = DEFAULT_NAMESPACE,
        *,
        depth: int,
        kv_pages: npt.ArrayLike | None = None,
        boundary_pages: Mapping[int, npt.ArrayLike] | None = None,
        ratio: float,
    ) -> CaptureResult:
        """Offer a request's pages to the tree; it keeps what it lacks.

        Args:
            tokens: integers, [n]; a tail that fills no page is ignored: m = n rounded down to whole pages.
            depth: layers that the pages hold, whole bands (or all layers).
            kv_pages: int32 [bands(depth), m / page_size], the request's page table.
            boundary_pages: stored depth -> int32 [m / page_size], for every boundary depth <= `depth`.
            ratio: m / (prompt + canvas) of the forward that made the KVs, in [0, 1].

        The tree takes its own reference on each page that it stores; the caller's references stay the caller's.
        Tokens that it holds at that depth or deeper are left alone. A shallower node is raised when `ratio` is at
        least the node's own (larger, after an audit), taking only the missing bands and boundary depths. A node never
        becomes deeper than its parent. Page id -1 says "the request has no such page" (a request that resumed from
        depth 8 has no states that enter layer 4): a stretch that would need one is not stored.

        Levels are the boundary depths and num_layers: `depth` counts as the largest level not above it. Raises
        PageReferenceError, with nothing changed, when a page to store is free, named twice, or in the tree for
        other tokens.
        """
        config, storage = self.config, self._storage
        config.check_depth(depth)
        if not 0 <= ratio <= 1:
            raise InvalidArgumentError("ratio", f"must be in [0, 1], got {ratio}")
        data = as_token_bytes(tokens)
        pages = len(data) // storage.page_bytes
        data = data[: pages * storage.page_bytes]
        level = config.level_of(depth)
        if not level:
            return CaptureResult(pages * config.page_size, 0, 0, [])
        table = PageTable(
            config,
            depth,
            pages,
            kv_pages,
            boundary_pages,
            pools=(storage.kv, storage.boundary),
        )
        plan = plan_capture(storage.roots.get(namespace), data, level, ratio, storage.page_bytes, table)
        return apply_capture(storage, plan, data, namespace, ratio)

    # Giving up

    def evict(self, num_kv_pages: int, num_boundary_pages: int = 0) -> EvictResult:
        """Free at least this many pages of each pool if possible, in the order of the policy.

        Locked and pinned nodes are not touched. Cost: O(log nodes) per node given up or trimmed, plus its pages.
        """
        if num_kv_pages < 0 or num_boundary_pages < 0:
            raise InvalidArgumentError("num_pages", f"must be at least 0, got {num_kv_pages}, {num_boundary_pages}")
        storage = self._storage
        kv = boundary = dropped = trimmed = tokens = 0
        while kv < num_kv_pages or boundary < num_boundary_pages:
            entry = storage.queue.pop()
            if entry is None:
                break
            node, key = entry
            level = node.level - 1 if storage.policy.both_axes else 0
            storage.policy.evicted(key)
            freed = storage.lower(node, level)
            kv += freed.kv
            boundary += freed.boundary
            if level:
                trimmed += 1
            else:
                dropped += 1
                tokens += node.num_tokens
        return EvictResult(kv, boundary, dropped, trimmed, tokens)

    def shrink(self, target: Match | Node, depth: int, *, drifted: bool = True, whole_path: bool = False) -> Freed:
        """Lower the valid depth of a node (of a match: the one that its cut ends in) and of everything below it.

        `depth` counts as the largest level not above it; 0 makes the prefix unusable. Locks don't prevent it: running
        requests keep their own references, the tree lets go of its own. `drifted` (an audit's finding) asks for a
        strictly better ratio before the node may be raised again. `whole_path` lowers the nodes above it as well.
        Returns the pages that became free.
        """
        if not 0 <= depth <= self.config.num_layers:
            raise InvalidArgumentError("depth", f"must be in [0, {self.config.num_layers}], got {depth}")
        node = target.node if isinstance(target, Match) else target
        if isinstance(target, Match) and node is not None:
            node, _ = cut_node(target)
        if node is None or node.parent is None:
            return Freed()
        level = self.config.level_of(depth)
        top = node
        while whole_path and top.parent is not None and not top.parent.is_root:
            top = top.parent
        path = [node]
        while path[-1] is not top:
            above = path[-1].parent
            assert above is not None
            path.append(above)
        for each in path:
            each.drifted = each.drifted or (drifted and each.level > level)
        return self._storage.lower_subtree(top, level)

    def flush(self, namespace: Namespace | None = None, *, defer: bool = False) -> FlushResult:
        """Drop everything (in `namespace`, or in all), pins included.

        While running requests hold locks in that scope it is refused with TreeInUseError, unless `defer`: then no
        later match sees the old content, and pages that running requests hold become free when they unlock.
        """
        storage = self._storage
        scope = [ns for ns in storage.roots if namespace in (None, ns)]
        locks = sum(match.node is not None and match.namespace in scope for match in self._locked.values())
        if locks and not defer:
            raise TreeInUseError(locks)
        kv = boundary = 0
        self._pins.drop(scope)
        for ns in scope:
            for node in list(storage.roots[ns].children.values()) if ns in storage.roots else []:
                freed = storage.lower_subtree(node, 0)
                kv += freed.kv
                boundary += freed.boundary
        return FlushResult(locks > 0, kv, boundary)

    # Pins

    def pin(self, tokens: npt.ArrayLike, namespace: Namespace = DEFAULT_NAMESPACE) -> int:
        """Keep the cached prefix of `tokens` from eviction until `unpin`; return how many tokens that is.

        Pins count: pin twice, unpin twice. What is captured later is not pinned by it. 0: nothing is cached.
        """
        return self._pins.pin(self._aligned(tokens), namespace)

    def unpin(self, tokens: npt.ArrayLike, namespace: Namespace = DEFAULT_NAMESPACE) -> None:
        """Undo one `pin` of the same tokens. Raises LockError when there is none."""
        self._pins.unpin(self._aligned(tokens), namespace)

    def _aligned(self, tokens: npt.ArrayLike) -> bytes:
        data = as_token_bytes(tokens)
        return bytes(data[: len(data) // self._storage.page_bytes * self._storage.page_bytes])

    # Counts and views

    @property
    def num_locks(self) -> int:
        """Matches that are locked and share something (their cut is not 0)."""
        return sum(match.cut > 0 for match in self._locked.values())

    @property
    def num_nodes(self) -> int:
        """Nodes, roots not counted."""
        return self._storage.num_nodes

    @property
    def num_tokens(self) -> int:
        """Tokens of all nodes."""
        return self._storage.num_tokens

    @property
    def num_kv_pages(self) -> int:
        """KV pages that the tree holds a reference on."""
        return self._storage.num_kv_pages

    @property
    def num_boundary_pages(self) -> int:
        """Boundary pages that the tree holds a reference on."""
        return self._storage.num_boundary_pages

    @property
    def evictable_kv_pages(self) -> int:
        """KV pages that evicting everything idle would really free."""
        storage = self._storage
        return storage.idle_kv_pages if storage.kv is None else storage.kv.num_reclaimable

    @property
    def evictable_boundary_pages(self) -> int:
        """Boundary pages that evicting everything idle would really free."""
        storage = self._storage
        return storage.idle_boundary_pages if storage.boundary is None else storage.boundary.num_reclaimable

    def roots(self) -> list[Node]:
        """The roots, one for each namespace."""
        return list(self._storage.roots.values())

    def nodes(self) -> Iterator[Node]:
        """All nodes but the roots, parents first, in a fixed order. Don't change the tree meanwhile."""
        stack = list(reversed(self._storage.roots.values()))
        while stack:
            node = stack.pop()
            if not node.is_root:
                yield node
            stack.extend(reversed(node.children.values()))

    def page_references(self, *, include_locks: bool = False) -> PageReferences:
        """References per page that the tree holds, counted from its nodes; with those of locked matches if asked."""
        storage = self._storage
        kv = np.zeros(storage.kv.num_pages if storage.kv else 0, dtype=np.int32)
        boundary = np.zeros(storage.boundary.num_pages if storage.boundary else 0, dtype=np.int32)
        for node in self.nodes():
            if node.kv is not None:
                np.add.at(kv, node.kv, 1)
            if node.boundary is not None:
                np.add.at(boundary, node.boundary, 1)
        for match in self._locked.values() if include_locks else ():
            if storage.kv is not None:
                np.add.at(kv, match.kv_pages, 1)
            if storage.boundary is not None:
                np.add.at(boundary, match.boundary_pages, 1)
        return PageReferences(kv, boundary)

    def check_invariants(self, *, sole_owner: bool = True) -> None:
        """Recount everything and compare; raises InvariantError. Linear in the tree.

        With another tree over the same pools say `sole_owner=False`: pages of the other are then left out.
        """
        locked = list(self._locked.values())
        check_tree(self._storage, list(self.nodes()), locked, self._pins.holders(), sole_owner)

    def snapshot(self) -> dict[str, Any]:
        """The tree as JSON-able data (no page ids): see docs/radix-cache.md for the fields."""
        return snapshot_tree(self._storage)

    def render(self) -> "RenderableType":
        """The tree for a terminal (a rich renderable)."""
        return render_tree(self.snapshot())
