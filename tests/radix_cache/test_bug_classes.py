"""Bugs that other servers' prefix caches had, each as a case of its own."""

import numpy as np
import pytest

from shoal.radix_cache.errors import TreeInUseError
from shoal.radix_cache.eviction_policy import EVICTION_POLICIES
from shoal.radix_cache.tree import Namespace, RadixTree

from .single import CONFIG, P, Request, make_world


def test_parent_walk_after_split():
    """A handle from before a split must reach the root through both parts, or the upper part stays locked."""
    tree, kv, boundary = make_world()
    long = np.arange(6 * P)
    Request(tree, kv, boundary, long).finish()
    match = tree.match(long)
    tree.lock(match)
    for pages in (4, 2, 1):
        Request(tree, kv, boundary, np.concatenate([long[: pages * P], [90 + pages] * P])).finish()
    chain, node = [], match.node
    while node is not None:
        chain.append(node.num_tokens)
        node = node.parent
    assert chain == [2 * P, 2 * P, P, P, 0]
    tree.unlock(match)
    tree.check_invariants()
    assert not any(node.locks for node in tree.nodes())
    tree.evict(400, 200)
    assert (tree.num_nodes, kv.num_free, boundary.num_free) == (0, 400, 200)


def test_lock_counts_on_split():
    """Two requests lock the same node at different lengths; a split between them must keep both counts."""
    tree, kv, boundary = make_world()
    Request(tree, kv, boundary, np.arange(4 * P)).finish()
    whole = tree.match(np.arange(4 * P))
    part = tree.match(np.arange(2 * P))
    tree.lock(whole)
    tree.lock(part)
    Request(tree, kv, boundary, np.concatenate([np.arange(2 * P), [99] * P])).finish()
    upper, *_ = tree.nodes()
    assert (upper.num_tokens, upper.locks) == (2 * P, 2)
    tree.unlock(whole)
    tree.check_invariants()
    tree.evict(400)
    assert tree.match(np.arange(4 * P)).cut == 2 * P
    tree.unlock(part)
    tree.evict(400)
    assert tree.num_nodes == 0


def test_lock_taken_after_a_split_behind_the_cut():
    """Matched, then split behind the cut by somebody else, then locked: only what the cut needs is held."""
    tree, kv, boundary = make_world()
    Request(tree, kv, boundary, np.arange(4 * P)).finish()
    match = tree.match(np.arange(2 * P))
    Request(tree, kv, boundary, np.concatenate([np.arange(2 * P), [99] * P])).finish()
    tree.lock(match)
    tree.evict(400)
    tree.check_invariants()
    assert tree.num_tokens == 2 * P
    tree.shrink(match, 4)
    assert tree.match(np.arange(2 * P)).depth == 4
    tree.unlock(match)


def test_dirty_values():
    """What a match returned must not change under its holder, whatever the tree or the caller does later."""
    tree, kv, boundary = make_world()
    request = Request(tree, kv, boundary, np.arange(4 * P))
    match = tree.match(np.arange(4 * P))
    tree.lock(match)
    pages, states = match.kv_pages.copy(), match.boundary_pages.copy()
    Request(tree, kv, boundary, np.concatenate([np.arange(2 * P), [99] * P])).finish()
    tree.shrink(match, 4)
    request.kv_pages[:] = -7
    np.testing.assert_array_equal(match.kv_pages, pages)
    np.testing.assert_array_equal(match.boundary_pages, states)
    again = tree.match(np.arange(4 * P))
    assert again.kv_pages.tolist() == np.delete(pages[:1], [], axis=1).tolist()
    tree.unlock(match)


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_eviction_counts_pages_not_tokens(policy):
    """With pages of more than one token: as many pages as asked for, no more leaves than needed."""
    tree, kv, boundary = make_world(policy=policy)
    for start in range(0, 50, 10):
        Request(tree, kv, boundary, np.arange(start, start + 2 * P)).finish()
    assert tree.num_kv_pages == 5 * 4
    result = tree.evict(5)
    assert (result.kv_pages, tree.num_kv_pages, kv.num_free) == ((8, 12, 388) if policy != "cost" else (6, 14, 386))
    tree.check_invariants()


def test_aborted_request_before_and_after_capture():
    """Before its capture an aborted request leaves nothing; after it, a complete capture and no page of its own."""
    tree, kv, boundary = make_world()
    pages = kv.alloc(8)
    match = tree.match(np.arange(4 * P))
    tree.lock(match)
    tree.unlock(match)
    kv.release(pages)
    assert (tree.num_nodes, kv.num_free) == (0, 400)
    request = Request(tree, kv, boundary, np.arange(4 * P))
    request.finish()
    assert (tree.match(np.arange(4 * P)).cut, tree.num_kv_pages, kv.num_free) == (4 * P, 8, 392)
    tree.check_invariants()


def test_literal_mask_tokens_in_a_prompt():
    """A prompt may contain the mask token's id: it matches itself and nothing else."""
    tree, kv, boundary = make_world()
    mask = 126336
    prompt = [1, mask, mask, 2, mask, mask, mask, mask]
    Request(tree, kv, boundary, prompt).finish()
    assert tree.match(prompt).cut == 8
    assert tree.match([1, 5, 5, 2, mask, mask, mask, mask]).num_tokens == 0
    assert tree.match([1, mask, mask, 2, 0, 0, 0, 0]).cut == 4


def test_flush_while_locked_in_another_namespace():
    """A flush of one namespace neither waits for nor touches another."""
    tree, kv, boundary = make_world()
    for salt in ("a", "b"):
        Request(tree, kv, boundary, np.arange(P), namespace=Namespace(salt)).finish()
    match = tree.match(np.arange(P), Namespace("a"))
    tree.lock(match)
    assert not tree.flush(Namespace("b")).deferred
    with pytest.raises(TreeInUseError) as caught:
        tree.flush(Namespace("a"))
    assert caught.value.locks == 1
    assert tree.match(np.arange(P), Namespace("a")).cut == P
    tree.unlock(match)
    tree.flush(Namespace("a"))
    assert kv.num_free == 400


def test_deferred_flush_lets_the_holder_finish_and_others_capture_anew():
    tree, kv, boundary = make_world()
    Request(tree, kv, boundary, np.arange(2 * P)).finish()
    match = tree.match(np.arange(2 * P))
    tree.lock(match)
    held = match.kv_pages.copy()
    assert tree.flush(defer=True) == (True, 0, 2)
    assert (kv.refcount(held) == 1).all()
    fresh = Request(tree, kv, boundary, np.arange(2 * P), ratio=0.1)
    assert not np.isin(fresh.kv_pages, held).any()
    assert tree.match(np.arange(2 * P)).kv_pages.tolist() == fresh.kv_pages.tolist()
    tree.unlock(match)
    fresh.finish()
    tree.check_invariants()
    assert kv.num_free == 400 - 4


def test_a_very_long_conversation_needs_no_recursion():
    """Two thousand turns are a path of two thousand nodes."""
    plan = RadixTree(CONFIG)
    tokens = np.arange(2000 * P)
    for turn in range(1, 2001):
        plan.capture(tokens[: turn * P], depth=8, ratio=0.5)
    assert plan.num_nodes == 2000
    assert plan.match(tokens).cut == 2000 * P
    assert len(list(plan.nodes())) == 2000
    plan.snapshot()
    plan.shrink(next(plan.nodes()), 4)
    assert plan.match(tokens).depth == 4
    plan.flush()
    assert plan.num_nodes == 0
