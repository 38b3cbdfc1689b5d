"""What each policy gives up first."""

import numpy as np
import pytest

from shoal.radix_cache.config import TreeConfig
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.errors import InvalidArgumentError
from shoal.radix_cache.eviction_policy import EVICTION_POLICIES, CostAware

from .single import P, Request, make_world

SHALLOW = DepthProfile.constant(4, 16)


def prompt(name):
    return np.full(P, name)


def stored(tree, names):
    return {name: tree.match(prompt(name), touch=False).depth for name in names}


def fill(policy, names, **changes):
    tree, kv, boundary = make_world(policy=policy, **changes)
    for name in names:
        Request(tree, kv, boundary, prompt(name)).finish()
    return tree


def test_lru_drops_the_longest_unused():
    tree = fill("lru", [1, 2, 3])
    tree.match(prompt(1))
    tree.evict(1)
    assert stored(tree, [1, 2, 3]) == {1: 8, 2: 0, 3: 8}


def test_a_match_that_only_looks_is_no_use():
    tree = fill("lru", [1, 2])
    tree.match(prompt(1), touch=False)
    tree.evict(1)
    assert stored(tree, [1, 2]) == {1: 0, 2: 8}


def test_lfu_drops_the_least_used_however_recent():
    tree = fill("lfu", [1, 2])
    tree.match(prompt(1))
    tree.match(prompt(1))
    tree.match(prompt(2))
    tree.evict(1)
    assert stored(tree, [1, 2]) == {1: 8, 2: 0}


def test_slru_spares_what_was_used_twice():
    tree = fill("slru", [1, 2, 3])
    for name in (1, 1, 2, 3):
        tree.match(prompt(name))
    tree.evict(3)
    assert stored(tree, [1, 2, 3]) == {1: 8, 2: 0, 3: 0}


def test_cost_trims_bands_that_nobody_uses_before_it_drops_a_node():
    """Node 1 is used at depth 8, node 2 at depth 4 only: 2 loses its second band first, then both their tops."""
    tree = fill("cost", [1, 2])
    for _ in range(3):
        tree.match(prompt(1))
        tree.match(prompt(2), profile=SHALLOW)
    assert tree.evict(1).nodes_trimmed == 1
    assert stored(tree, [1, 2]) == {1: 8, 2: 4}
    tree.evict(1)
    tree.check_invariants()
    assert sorted(stored(tree, [1, 2]).values()) == [4, 4]
    assert tree.evict(2).nodes_dropped == 2


def test_cost_keeps_more_token_layers_than_lru_under_the_same_pressure():
    """Half of the requests stop at depth 4: with the memory of the unused bands more prefixes stay."""

    def kept(policy):
        tree, kv, boundary = make_world(policy=policy)
        saved = 0
        draw = np.random.default_rng(3)
        for _ in range(1500):
            name = min(int(draw.zipf(1.2)), 60)
            profile = None if name % 2 else SHALLOW
            match = tree.match(prompt(name), profile=profile)
            saved += match.token_layers
            if not match.cut:
                short = max(0, tree.num_kv_pages + 2 - 40)
                if short:
                    tree.evict(short)
                Request(tree, kv, boundary, prompt(name)).finish()
        return saved

    assert kept("cost") > 1.04 * kept("lru")


def test_cost_ages():
    """A node used often long ago goes before one used a few times since the clock has moved on."""
    tree = fill("cost", [1])
    for _ in range(4):
        tree.match(prompt(1))
    kv, boundary = tree._storage.kv, tree._storage.boundary
    for name in range(10, 40):
        Request(tree, kv, boundary, prompt(name)).finish()
        for _ in range(2):
            tree.match(prompt(name))
        tree.evict(2)
    assert stored(tree, [1]) == {1: 0}


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_locked_and_pinned_nodes_stay(policy):
    tree = fill(policy, [1, 2, 3])
    match = tree.match(prompt(1))
    tree.lock(match)
    assert tree.pin(prompt(2)) == P
    assert tree.evict(400).kv_pages == 2
    assert stored(tree, [1, 2, 3]) == {1: 8, 2: 8, 3: 0}
    tree.unlock(match)
    tree.unpin(prompt(2))
    assert tree.evict(400).kv_pages == 4


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_only_boundary_pages_short(policy):
    tree = fill(policy, [1, 2])
    result = tree.evict(0, 1)
    assert result.boundary_pages >= 1
    tree.check_invariants()


def test_cost_values_are_layers_per_byte():
    config = TreeConfig(4, 16, 4, (4, 12), policy="cost", kv_page_bytes=8, boundary_page_bytes=2)
    # Levels 4, 12, 16: 4 layers for 8 + 2, 8 layers for 16 + 2, 4 layers for 8 bytes (no states at the top).
    policy = CostAware(config.layers_per_byte)
    assert policy.values == pytest.approx([0, 0.4 / 0.5, (8 / 18) / 0.5, 1.0])


def test_unknown_policy():
    with pytest.raises(InvalidArgumentError, match="policy"):
        TreeConfig(4, 16, policy="fifo")
