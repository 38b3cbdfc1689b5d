"""The tree against a brute-force model: all invariants of the design after every step.

Each operation runs on two trees; their results and contents must agree (invariant 8: same operations, same result).
`--hypothesis-profile=radix-nightly` runs 2,000 examples of 100 steps; SHOAL_RADIX_EXAMPLES and SHOAL_RADIX_STEPS
set other numbers.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

import shoal.radix_cache.tree
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.errors import InvalidArgumentError, LockError, PageReferenceError
from shoal.radix_cache.eviction_policy import EVICTION_POLICIES
from shoal.radix_cache.tree import Namespace

from .brute_eviction import predict_eviction
from .checked_machine import CheckedMachine
from .model import Model, floor_level
from .world import BAND, BOUNDARIES, LAYERS, LEVELS, PAGE, World, prefixes

MASK = 126336
NAMESPACES = [Namespace(), Namespace("a"), Namespace("a", "final")]
PROFILES = [
    None,
    DepthProfile(LAYERS, ((0.2, 4), (0.5, 6), (0.9, LAYERS))),
    DepthProfile(LAYERS, ((0.4, 5), (0.7, 7))),
    DepthProfile.constant(LAYERS, LAYERS),
]

# Few kinds of page, so that prompts share, diverge and extend each other; a tail that fills no page now and then.
PAGES = [(0, 0), (0, MASK), (MASK, MASK)]
prompts = st.tuples(
    st.sampled_from([0, 1, 1, 2, 2]),
    st.lists(st.sampled_from([0, 0, 1, 2]), min_size=0, max_size=4),
    st.sampled_from([(), (), (1,)]),
).map(lambda parts: [token for page in ([0] * parts[0] + parts[1]) for token in PAGES[page]] + list(parts[2]))
# An index stands for a prompt that is cached, once there is one.
known_prompts = st.one_of(prompts, st.integers(0, 63))
namespaces = st.sampled_from(NAMESPACES)
profiles = st.sampled_from(PROFILES)
canvases = st.sampled_from([0, 1, 2, 4, 8, 30])
ratios = st.sampled_from([0.5, 0.5, 0.25, 1.0])
depths = st.sampled_from([LAYERS, 6, 4, 8, LAYERS, 6, 4, 2, 0])
indices = st.integers(0, 63)


class TreeMachine(CheckedMachine):
    """Drives two worlds and the model."""

    @initialize(policy=st.sampled_from(list(EVICTION_POLICIES)))
    def start(self, policy):
        self.policy = policy
        self.worlds = [World(policy), World(policy)]
        self.model = Model()
        self.pins = {}
        self.next_key = 0

    def both(self, operation):
        """Run on both worlds; the results (plain data) must agree."""
        results = [operation(world) for world in self.worlds]
        assert results[0] == results[1]
        return results[0]

    def pick(self, index):
        keys = list(self.world.requests)
        return keys[index % len(keys)]

    def resolve(self, tokens, namespace):
        """The prompt, and the namespace that it is in, for a prompt or the index of a cached one."""
        if not isinstance(tokens, int):
            return tokens, namespace
        layout = self.world.layout()
        if not layout:
            return list(PAGES[0]), namespace
        _, namespace, pages = layout[tokens % len(layout)]
        return list(pages[-1]), namespace

    def stretches(self, tokens, namespace, matched):
        """[(start, stop)] pages of the nodes along the prompt, as far as each agrees with it; and those nodes' keys."""
        rows = {}
        wanted = prefixes(tokens)
        for _, ns, pages in self.world.layout():
            common = sum(page in wanted for page in pages)
            if ns == namespace and common:
                start = len(pages[0]) // PAGE - 1
                rows[start] = (start, start + common, [(ns, page) for page in pages])
        found = [rows[start] for start in sorted(rows)]
        assert not matched or found[0][0] == 0
        return found

    def expect_use(self, tokens, namespace, cut, depth):
        """A use counts for all pages of each node up to the cut."""
        for start, _, keys in self.stretches(tokens, namespace, cut):
            if start * PAGE < cut:
                for key in keys:
                    self.model.cells[key].hits[floor_level(depth)] += 1

    def check_match(self, got, tokens, namespace, total, profile, max_tokens):
        assert got == self.model.match(tokens, namespace, total, profile, max_tokens)

    # Rules

    @rule(
        tokens=known_prompts,
        namespace=namespaces,
        canvas=canvases,
        profile=profiles,
        limit=st.integers(0, 13),
        touch=st.booleans(),
    )
    def match(self, tokens, namespace, canvas, profile, limit, touch):
        tokens, namespace = self.resolve(tokens, namespace)
        nodes, total = self.world.tree.num_nodes, len(tokens) + canvas
        got = self.both(
            lambda world: world.match(
                tokens, namespace, total_tokens=total, profile=profile, max_tokens=limit, touch=touch
            )[1]
        )
        self.check_match(got, tokens, namespace, total, profile, limit)
        assert self.world.tree.num_nodes == nodes
        if touch:
            self.expect_use(tokens, namespace, *got[1:3])

    def do_admit(self, tokens, namespace, depth, canvas, profile):
        """Admit a request; its key, or None when there was no room."""
        total = len(tokens) + canvas
        peek = self.world.match(tokens, namespace, total_tokens=total, profile=profile, touch=False)[1]
        self.check_match(peek, tokens, namespace, total, profile, len(tokens))
        self.expect_use(tokens, namespace, *peek[1:3])
        key, self.next_key = self.next_key, self.next_key + 1
        before = self.contents()
        events = len(self.world.events)
        admitted, evicted = self.both(lambda world: world.admit(key, tokens, namespace, depth, total, profile))
        if evicted is not None:
            cells = [(namespace, prefix) for prefix in prefixes(tokens)[: peek[1] // PAGE]]
            self.after_eviction(before, events, cells)
        return key if admitted else None

    def do_capture(self, key, depth, ratio, relock):
        request = self.world.requests[key]
        stretches = self.stretches(request.tokens, request.namespace, 0)
        expected = self.model.capture(
            request.tokens,
            request.namespace,
            depth,
            request.kv,
            request.boundary,
            ratio,
            [(start, stop) for start, stop, _ in stretches],
        )
        assert self.both(lambda world: world.capture(key, depth, ratio)) == expected
        if relock:
            total = max(len(request.tokens), 1)
            expected = self.model.match(request.tokens, request.namespace, total, None, None)
            self.expect_use(request.tokens, request.namespace, *expected[1:3])
            assert self.both(lambda world: world.relock(key)) == expected

    @precondition(lambda self: len(self.world.requests) < 3)
    @rule(tokens=known_prompts, namespace=namespaces, depth=depths, canvas=canvases, profile=profiles)
    def admit(self, tokens, namespace, depth, canvas, profile):
        tokens, namespace = self.resolve(tokens, namespace)
        self.do_admit(tokens, namespace, depth, canvas, profile)

    @precondition(lambda self: len(self.world.requests) < 3)
    @rule(tokens=known_prompts, namespace=namespaces, depth=depths, canvas=canvases, profile=profiles, ratio=ratios)
    def admit_and_capture(self, tokens, namespace, depth, canvas, profile, ratio):
        tokens, namespace = self.resolve(tokens, namespace)
        key = self.do_admit(tokens, namespace, depth, canvas, profile)
        if key is not None:
            self.do_capture(key, depth, ratio, relock=True)

    @rule(tokens=known_prompts, depth=depths, canvas=canvases, profile=profiles, ratio=ratios)
    def serve(self, tokens, depth, canvas, profile, ratio):
        """A whole life, mostly in the first namespace."""
        tokens, namespace = self.resolve(tokens, NAMESPACES[0])
        key = self.do_admit(tokens, namespace, depth, canvas, profile)
        if key is not None:
            self.do_capture(key, depth, ratio, relock=True)
            self.both(lambda world: world.finish(key))

    @precondition(lambda self: self.world.requests)
    @rule(index=indices, ratio=ratios, depth=depths, relock=st.booleans())
    def capture(self, index, ratio, depth, relock):
        """At a depth that the request may have no pages for: -1 in its table."""
        self.do_capture(self.pick(index), depth, ratio, relock)

    @precondition(lambda self: self.world.requests)
    @rule(index=indices)
    def finish(self, index):
        key = self.pick(index)
        self.both(lambda world: world.finish(key))

    @precondition(lambda self: self.world.tree.num_nodes)
    @rule(kv=st.sampled_from([1, 1, 2, 3, 5, 13, 70]), boundary=st.sampled_from([0, 0, 1, 2, 5]))
    def evict(self, kv, boundary):
        before = self.contents()
        events = len(self.world.events)
        evictable = self.world.tree.evictable_kv_pages, self.world.tree.evictable_boundary_pages
        predicted, exact = predict_eviction(self.world, self.policy, kv, boundary)
        result = self.both(lambda world: tuple(world.tree.evict(kv, boundary)))
        assert result[0] >= min(kv, evictable[0])
        assert result[1] >= min(boundary, evictable[1])
        assert result[0] <= evictable[0]
        if exact:
            left = {(ns, pages[0], pages[-1]): node.level for node, ns, pages in self.world.layout()}
            assert left == predicted
        self.after_eviction(before, events)

    @precondition(lambda self: self.world.requests)
    @rule(index=indices, depth=st.integers(0, LAYERS), drifted=st.booleans(), whole=st.booleans())
    def shrink(self, index, depth, drifted, whole):
        key = self.pick(index)
        match = self.world.requests[key].match
        if match.node is not None:
            tokens = self.world.requests[key].tokens
            level = floor_level(depth)
            below: list = []
            for start, _, keys in self.stretches(tokens, match.namespace, 0):
                holds_cut = start * PAGE < match.cut <= (start + len(keys)) * PAGE
                if holds_cut or (whole and start * PAGE < match.cut):
                    self.model.lower(keys, level, drifted)
                if holds_cut or (whole and start == 0):
                    below = below or self.model.below(match.namespace, keys[-1][1])
            self.model.lower(below, level, False)
        self.both(lambda world: world.tree.shrink(world.requests[key].match, depth, drifted=drifted, whole_path=whole))

    @precondition(lambda self: self.world.tree.num_nodes)
    @rule(index=indices, level=st.sampled_from([2, 1, 2, 0]), drifted=st.booleans())
    def shrink_node(self, index, level, drifted):
        """What an audit finds of a node that nobody may be using."""
        layout = self.world.layout()
        index %= len(layout)
        _, namespace, pages = layout[index]
        keys = [(namespace, page) for page in pages]
        self.model.lower(keys, level, drifted)
        self.model.lower(self.model.below(namespace, pages[-1]), level, False)
        self.both(lambda world: tuple(world.tree.shrink(world.layout()[index][0], LEVELS[level], drifted=drifted)))

    @precondition(lambda self: self.world.tree.num_nodes > 2)
    @rule(namespace=st.sampled_from([None, *NAMESPACES]), defer=st.booleans())
    def flush(self, namespace, defer):
        locked = [
            request
            for request in self.world.requests.values()
            if request.match.node is not None and namespace in (None, request.match.namespace)
        ]
        result = self.both(lambda world: world.flush(namespace, defer))
        if locked and not defer:
            assert result == len(locked)
            return
        assert result[0] == bool(locked)
        for key in [key for key in self.model.cells if namespace in (None, key[0])]:
            del self.model.cells[key]
        self.pins = {key: value for key, value in self.pins.items() if namespace not in (None, key[0])}

    @rule(tokens=known_prompts, namespace=namespaces)
    def pin(self, tokens, namespace):
        tokens, namespace = self.resolve(tokens, namespace)
        key = (namespace, tuple(tokens[: len(tokens) // PAGE * PAGE]))
        cached = self.model.match(tokens, namespace, max(len(tokens), 1), None, None)[0]
        pinned = self.both(lambda world: world.tree.pin(tokens, namespace))
        if key in self.pins:
            count, expected = self.pins[key]
            assert pinned == expected
            self.pins[key] = (count + 1, expected)
        else:
            assert pinned == cached
            if pinned:
                self.pins[key] = (1, pinned)

    @rule(tokens=prompts, namespace=namespaces, index=indices)
    def unpin(self, tokens, namespace, index):
        if self.pins and index % 4:
            namespace, tokens = list(self.pins)[index % len(self.pins)]
        key = (namespace, tuple(tokens[: len(tokens) // PAGE * PAGE]))
        if key not in self.pins:
            for world in self.worlds:
                with pytest.raises(LockError):
                    world.tree.unpin(tokens, namespace)
            return
        count, pinned = self.pins.pop(key)
        if count > 1:
            self.pins[key] = (count - 1, pinned)
        self.both(lambda world: world.tree.unpin(tokens, namespace))

    @precondition(lambda self: self.world.tree.num_nodes)
    @rule(
        tokens=indices, namespace=namespaces, pressure=st.sampled_from([1, 2, 8, "shrink", "shrink"]), profile=profiles
    )
    def lock_a_match_after_pressure(self, tokens, namespace, pressure, profile):
        """Between match and lock the tree may give up pages of the match: then the lock is refused."""
        tokens, namespace = self.resolve(tokens, namespace)
        matches = {id(world): world.match(tokens, namespace, profile=profile, touch=False) for world in self.worlds}
        plain = matches[id(self.world)][1]
        node = matches[id(self.world)][0].node
        if pressure == "shrink" and node is not None:
            level = node.level - 1
            (pages,) = [pages for other, _, pages in self.world.layout() if other is node]
            keys = [(namespace, page) for page in pages]
            self.model.lower(keys + self.model.below(namespace, pages[-1]), level, False)
            self.both(lambda world: tuple(world.tree.shrink(matches[id(world)][0].node, LEVELS[level], drifted=False)))
        elif pressure != "shrink":
            before = self.contents()
            events = len(self.world.events)
            self.both(lambda world: tuple(world.tree.evict(pressure)))
            self.after_eviction(before, events)
        locked = self.both(lambda world: world.try_lock_stale(matches[id(world)][0]))
        cells = [self.model.cells.get((namespace, prefix)) for prefix in prefixes(tokens)[: plain[1] // PAGE]]
        assert locked == all(cell is not None and cell.level >= floor_level(plain[2]) for cell in cells)

    @precondition(lambda self: self.world.requests and self.world.tree.num_nodes)
    @rule(index=indices, node=indices)
    def borrow(self, index, node):
        """A request takes references of its own on cached pages, locked or not, until it ends."""
        key = self.pick(index)

        def take(world):
            layout = world.layout()
            cached = layout[node % len(layout)][0]
            world.kv.acquire(cached.kv)
            world.boundary.acquire(cached.boundary)
            world.requests[key].own_kv.append(cached.kv.reshape(-1))
            world.requests[key].own_boundary.append(cached.boundary.reshape(-1))

        self.both(take)

    @precondition(lambda self: self.world.requests)
    @rule(index=indices)
    def misuse(self, index):
        """What a caller gets wrong is refused and changes nothing (the invariants below look)."""
        key = self.pick(index)
        for world in self.worlds:
            request = world.requests[key]
            with pytest.raises(LockError):
                world.tree.lock(request.match)
            with pytest.raises(InvalidArgumentError):
                world.tree.capture(request.tokens, depth=3, kv_pages=request.kv, ratio=0.5)
            with pytest.raises(InvalidArgumentError):
                world.tree.capture(request.tokens, depth=LAYERS, kv_pages=request.kv[:1], ratio=0.5)
            held = [pages for pages in request.own_kv if pages.size]
            if held and len(request.tokens) >= PAGE:
                fresh = (7, *request.tokens)
                pages = len(fresh) // PAGE
                twice = np.full((LAYERS // BAND, pages), held[0][0])
                with pytest.raises(PageReferenceError):
                    world.tree.capture(
                        fresh,
                        depth=LAYERS,
                        kv_pages=twice,
                        boundary_pages=dict.fromkeys(BOUNDARIES, twice[0]),
                        ratio=0.5,
                    )
            free = np.flatnonzero(world.kv.refcount(np.arange(world.kv.num_pages)) == 0)
            if free.size:
                for operation in (world.kv.release, world.kv.acquire, world.kv.adopt):
                    with pytest.raises(PageReferenceError):
                        operation(free[:1])


def machine_settings():
    """The nightly profile when it is loaded, else the short one."""
    if settings.get_current_profile_name() == "radix-nightly":
        return settings.get_profile("radix-nightly")
    return settings(
        max_examples=int(os.environ.get("SHOAL_RADIX_EXAMPLES", "150")),
        stateful_step_count=int(os.environ.get("SHOAL_RADIX_STEPS", "50")),
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate] if os.environ.get("SHOAL_RADIX_NO_SHRINK") else list(Phase),
        suppress_health_check=list(HealthCheck),
    )


def test_the_package_under_test_is_the_one_asked_for():
    """The mutation script runs this file against a faulty copy; make sure that it is the copy that runs."""
    wanted = os.environ.get("SHOAL_RADIX_PACKAGE")
    assert wanted is None or Path(shoal.radix_cache.tree.__file__).is_relative_to(wanted)


TestTree = TreeMachine.TestCase
TestTree.settings = machine_settings()
