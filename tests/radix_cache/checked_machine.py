"""What must hold after every step of the state machine, and what evictions may do."""

from typing import Any

import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, invariant

from .model import Model
from .world import PAGE, World, prefixes


class CheckedMachine(RuleBasedStateMachine):
    """Two worlds that get the same operations, the model that they are compared with, and the pins by prompt."""

    policy: str
    worlds: list[World]
    model: Model
    pins: dict[Any, Any]

    @property
    def world(self):
        return self.worlds[0]

    # What evictions may do

    def contents(self):
        return {key: cell.plain() for key, cell in self.model.cells.items()}

    def after_eviction(self, before, events, locked=()):
        """Take over what the eviction left, having checked that it only took what it may."""
        left = self.tree_cells()
        protected = self.protected_keys() | set(locked)
        for key, (level, kv, boundary, ratio, drifted, _) in before.items():
            now = left.get(key)
            if key in protected:
                assert now is not None
                assert now[0] == level
            if now is None:
                del self.model.cells[key]
                continue
            assert now[0] <= level
            assert now[1] == kv[: len(now[1])]
            assert now[2] == boundary[: len(now[2])]
            assert now[3:5] == (ratio, drifted)
            cell = self.model.cells[key]
            cell.level, cell.kv, cell.boundary = now[0], list(now[1]), list(now[2])
        assert not set(left) - set(before)
        if self.policy != "cost":
            assert not [event for event in self.world.events[events:] if event.kind == "trimmed"]

    def protected_keys(self):
        """Keys of the cells that locked matches and pins hold, which eviction must leave as they are."""
        keys = set()
        for request in self.world.requests.values():
            if request.match.node is not None:
                keys |= {
                    (request.namespace, prefix) for prefix in prefixes(request.tokens)[: request.match.cut // PAGE]
                }
        for (namespace, tokens), (_, pinned) in self.pins.items():
            keys |= {(namespace, prefix) for prefix in prefixes(tokens)[: pinned // PAGE]}
        return keys & set(self.model.cells)

    def tree_cells(self):
        cells = {}
        for node, namespace, pages in self.world.layout():
            for page, prefix in enumerate(pages):
                if node.level:
                    cells[namespace, prefix] = (
                        node.level,
                        tuple(node.kv[:, page].tolist()),
                        tuple(node.boundary[:, page].tolist()),
                        node.ratio,
                        node.drifted,
                        tuple(node.hits),
                    )
        return cells

    # Invariants

    @invariant()
    def structure_is_sound(self):
        for world in self.worlds:
            world.tree.check_invariants()

    @invariant()
    def contents_agree_with_the_model(self):
        assert self.tree_cells() == self.contents()

    @invariant()
    def depth_never_increases_downwards(self):
        for (namespace, prefix), cell in self.model.cells.items():
            above = prefix[:-PAGE]
            assert not above or self.model.cells[namespace, above].level >= cell.level

    @invariant()
    def every_page_is_accounted_for(self):
        world = self.world
        tree = world.tree.page_references(include_locks=True)
        own = world.request_references()
        for pool, of_tree, of_requests in ((world.kv, tree.kv, own[0]), (world.boundary, tree.boundary, own[1])):
            expected = of_tree + of_requests
            np.testing.assert_array_equal(pool.refcount(np.arange(pool.num_pages)), expected)
            assert pool.num_free == int((expected == 0).sum())

    @invariant()
    def evictable_pages_are_those_that_would_be_freed(self):
        world = self.world
        counts = [0, 0]
        for node, _, _ in world.layout():
            if not node.in_use:
                counts[0] += int((world.kv.refcount(node.kv) == 1).sum())
                counts[1] += int((world.boundary.refcount(node.boundary) == 1).sum())
        assert [world.tree.evictable_kv_pages, world.tree.evictable_boundary_pages] == counts

    @invariant()
    def both_worlds_agree(self):
        first, second = (
            [(ns, pages, node.level, node.hits, node.last_used, node.locks, node.pins) for node, ns, pages in layout]
            for layout in (world.layout() for world in self.worlds)
        )
        assert first == second
        kv = [world.tree.page_references().kv for world in self.worlds]
        np.testing.assert_array_equal(kv[0], kv[1])

    def teardown(self):
        """Whatever happened: when all requests and pins are gone, everything can be evicted and no page is lost."""
        if not hasattr(self, "worlds"):
            return
        for world in self.worlds:
            for key in list(world.requests):
                world.finish(key)
            for (namespace, tokens), (count, _) in self.pins.items():
                for _ in range(count):
                    world.tree.unpin(tokens, namespace)
            world.tree.check_invariants()
            world.tree.evict(world.kv.num_pages, world.boundary.num_pages)
            assert world.tree.num_nodes == 0
            assert world.kv.num_free == world.kv.num_pages
            assert world.boundary.num_free == world.boundary.num_pages
