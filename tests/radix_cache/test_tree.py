"""The tree's operations one at a time, on small cases that can be checked by hand."""

import numpy as np
import pytest

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.errors import LockError, OutOfPagesError, StaleMatchError, TreeInUseError
from shoal.radix_cache.page_allocator import PageAllocator
from shoal.radix_cache.tree import RadixTree

from .single import CONFIG, Request


@pytest.fixture
def world():
    kv, boundary = PageAllocator(200), PageAllocator(100)
    return RadixTree(CONFIG, kv, boundary), kv, boundary


def test_capture_then_match(world):
    tree, kv, boundary = world
    tokens = np.arange(18)
    request = Request(tree, kv, boundary, tokens)
    match = tree.match(tokens, total_tokens=32)
    assert (match.num_tokens, match.cut, match.depth) == (16, 16, 8)
    np.testing.assert_array_equal(match.kv_pages, request.kv_pages)
    np.testing.assert_array_equal(match.boundary_pages, request.boundary_pages[8])
    tree.lock(match)
    request.finish()
    tree.check_invariants()
    assert tree.evict(1).kv_pages == 0
    tree.unlock(match)
    assert tree.evictable_kv_pages == 8
    assert tree.evict(1).kv_pages == 8
    assert kv.num_free == 200
    assert boundary.num_free == 100
    tree.check_invariants()


def test_profile_bounds_the_depth_and_the_cut_maximises(world):
    tree, kv, boundary = world
    Request(tree, kv, boundary, np.arange(8), depth=8).finish()
    Request(tree, kv, boundary, np.arange(16), depth=4).finish()
    profile = DepthProfile(16, ((0.1, 4), (0.5, 8)))
    match = tree.match(np.arange(16), total_tokens=16, profile=profile)
    assert (match.num_tokens, match.cut, match.depth) == (16, 16, 4)
    match = tree.match(np.arange(12), total_tokens=12, profile=profile)
    assert (match.num_tokens, match.cut, match.depth) == (12, 8, 8)
    match = tree.match(np.arange(12), total_tokens=1000, profile=profile)
    assert (match.num_tokens, match.cut, match.depth) == (12, 0, 0)
    assert match.kv_pages.shape == (0, 0)


def test_split_on_capture_keeps_the_lock(world):
    tree, kv, boundary = world
    Request(tree, kv, boundary, np.arange(16)).finish()
    match = tree.match(np.arange(16))
    tree.lock(match)
    other = np.concatenate([np.arange(8), [70] * 8])
    Request(tree, kv, boundary, other).finish()
    tree.check_invariants()
    assert tree.num_nodes == 3
    tree.evict(200)
    tree.check_invariants()
    assert tree.match(np.arange(16)).cut == 16
    assert tree.match(other).cut == 8
    tree.unlock(match)
    tree.evict(200)
    assert tree.num_nodes == 0


def test_shrink_and_raise(world):
    tree, kv, boundary = world
    Request(tree, kv, boundary, np.arange(8)).finish()
    match = tree.match(np.arange(8))
    tree.lock(match)
    tree.shrink(match, 7)
    tree.check_invariants()
    assert tree.match(np.arange(8)).depth == 4
    same = Request(tree, kv, boundary, np.arange(8), ratio=0.5)
    assert same.result.token_layers == 0
    better = Request(tree, kv, boundary, np.arange(8), ratio=0.6)
    assert better.result.token_layers == 32
    assert better.result.kv_pages.tolist() == better.kv_pages[1].tolist()
    again = tree.match(np.arange(8))
    assert again.depth == 8
    with pytest.raises(LockError):
        tree.lock(match)
    tree.unlock(match)
    with pytest.raises(StaleMatchError):
        tree.lock(match)
    same.finish()
    better.finish()
    tree.check_invariants()


def test_flush_refused_then_deferred(world):
    tree, kv, boundary = world
    Request(tree, kv, boundary, np.arange(8)).finish()
    match = tree.match(np.arange(8))
    tree.lock(match)
    with pytest.raises(TreeInUseError):
        tree.flush()
    assert tree.flush(defer=True).deferred
    assert tree.match(np.arange(8)).num_tokens == 0
    tree.check_invariants()
    tree.unlock(match)
    tree.check_invariants()
    assert (kv.num_free, boundary.num_free, tree.num_nodes) == (200, 100, 0)


def test_a_capture_below_the_first_level_stores_nothing(world):
    tree, kv, boundary = world
    assert tree.capture(np.arange(8), depth=0, ratio=0.5).num_tokens == 8
    assert (tree.num_nodes, kv.num_free, boundary.num_free) == (0, 200, 100)


def test_a_use_is_counted_when_the_request_begins(world):
    tree, kv, boundary = world
    Request(tree, kv, boundary, np.arange(16)).finish()
    match = tree.match(np.arange(16), max_tokens=8, touch=False)
    with pytest.raises(LockError, match="not locked"):
        tree.touch(match)
    tree.lock(match)
    assert [sum(node.hits) for node in tree.nodes() if node.parent is not None] == [0, 0]
    tree.touch(match)
    tree.touch(match)
    assert {node.end: sum(node.hits) for node in tree.nodes() if node.parent is not None} == {8: 2, 16: 0}
    tree.check_invariants()
    tree.unlock(match)
    with pytest.raises(LockError, match="not locked"):
        tree.touch(match)
    nothing = tree.match([77, 78], touch=False)
    tree.lock(nothing)
    tree.touch(nothing)
    tree.unlock(nothing)


def test_planning_tree():
    tree = RadixTree(CONFIG)
    tree.capture([1, 2, 3, 4, 5, 6, 7, 8], depth=8, ratio=0.5)
    match = tree.match([1, 2, 3, 4, 9, 9, 9, 9], touch=False)
    assert (match.num_tokens, match.depth) == (4, 8)
    assert tree.evictable_kv_pages == 4
    assert tree.evict(1).kv_pages == 4
    tree.check_invariants()


def test_alloc_says_what_is_missing():
    pool = PageAllocator(3)
    pool.alloc(2)
    with pytest.raises(OutOfPagesError) as caught:
        pool.alloc(2)
    assert (caught.value.needed, caught.value.free, pool.num_free) == (2, 1, 1)
