"""Snapshot, rendering, events, counts, and the checks that watch over them."""

import json

import numpy as np
import pytest

from shoal.radix_cache.config import TreeConfig
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.errors import InvalidArgumentError, InvariantError, PageReferenceError, RadixCacheError
from shoal.radix_cache.page_allocator import PageAllocator
from shoal.radix_cache.tree import Namespace, RadixTree

from .single import CONFIG, P, Request, make_world


@pytest.fixture
def shared():
    """Two prompts that share two pages; the first is locked, one of their pages pinned."""
    tree, kv, boundary = make_world(kv_page_bytes=100, boundary_page_bytes=10)
    Request(tree, kv, boundary, np.arange(4 * P), ratio=0.75).finish()
    Request(tree, kv, boundary, np.concatenate([np.arange(2 * P), [7] * P]), depth=4).finish()
    match = tree.match(np.arange(4 * P), total_tokens=5 * P)
    tree.lock(match)
    tree.pin(np.arange(P))
    return tree, kv, boundary, match


def test_snapshot(shared):
    tree, *_ = shared
    snapshot = json.loads(json.dumps(tree.snapshot()))
    assert (snapshot["format"], snapshot["version"]) == ("shoal-radix-tree", 1)
    assert (snapshot["num_nodes"], snapshot["num_tokens"]) == (4, 5 * P)
    assert (snapshot["kv_pages"], snapshot["kv_bytes"]) == (9, 900)
    assert snapshot["boundary_bytes"] == 90
    (space,) = snapshot["namespaces"]
    assert (space["salt"], space["capture"]) == ("", "first")
    (pinned,) = space["nodes"]
    assert {name: pinned[name] for name in ("tokens", "depth", "ratio", "locks", "pins", "hits", "references")} == {
        "tokens": P,
        "depth": 8,
        "ratio": 0.75,
        "locks": 1,
        "pins": 1,
        "hits": 1,
        "references": 2,
    }
    assert pinned["bytes_by_band"] == [100, 100]
    assert pinned["hits_by_depth"] == {"8": 1}
    (middle,) = pinned["children"]
    assert sorted(child["depth"] for child in middle["children"]) == [4, 8]


def test_render(shared):
    from rich.console import Console

    tree, *_ = shared
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tree.render())
    text = console.export_text()
    assert "4 nodes, 20 tokens" in text
    assert "depth 8/16" in text
    assert "depth 4/16" in text
    assert "1 locks" in text
    assert "pinned" in text
    assert "████░░░░" in text


def test_events():
    seen: list = []
    kv, boundary = PageAllocator(40), PageAllocator(40)
    tree = RadixTree(CONFIG, kv, boundary, on_event=seen.append)
    Request(tree, kv, boundary, np.arange(2 * P)).finish()
    tree.shrink(tree.match(np.arange(2 * P)), 4)
    Request(tree, kv, boundary, np.arange(2 * P), ratio=0.9).finish()
    tree.evict(1)
    assert [(event.kind, event.num_tokens, event.depth, event.kv_pages, event.boundary_pages) for event in seen] == [
        ("stored", 8, 8, 4, 4),
        ("trimmed", 8, 4, 2, 2),
        ("stored", 8, 8, 2, 2),
        ("evicted", 8, 0, 4, 4),
    ]
    assert tree.events.totals == {"stored": 2, "trimmed": 1, "evicted": 1}


def test_page_references_count_trees_and_locks(shared):
    tree, kv, boundary, match = shared
    of_tree = tree.page_references()
    both = tree.page_references(include_locks=True)
    assert int(of_tree.kv.sum()) == tree.num_kv_pages
    assert int(both.kv.sum()) == tree.num_kv_pages + match.kv_pages.size
    assert (kv.refcount(np.arange(400)) == both.kv).all()
    assert (boundary.refcount(np.arange(200)) == both.boundary).all()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda tree: tree.match([[1, 2]]), "tokens"),
        (lambda tree: tree.match([0.5]), "tokens"),
        (lambda tree: tree.match([2**40]), "tokens"),
        (lambda tree: tree.match([1] * 8, total_tokens=7), "total_tokens"),
        (lambda tree: tree.match([1], max_tokens=-1), "max_tokens"),
        (lambda tree: tree.match([1], profile=DepthProfile.constant(4, 8)), "profile"),
        (lambda tree: tree.capture([1] * 4, depth=17, ratio=0.5), "depth"),
        (lambda tree: tree.capture([1] * 4, depth=6, ratio=0.5), "depth"),
        (lambda tree: tree.capture([1] * 4, depth=-4, ratio=0.5), "depth"),
        (lambda tree: tree.capture([1] * 4, depth=4, ratio=1.5), "ratio"),
        (lambda tree: tree.capture([1] * 4, depth=4, ratio=float("nan")), "ratio"),
        (lambda tree: tree.capture([1] * 4, depth=4, ratio=0.5), "kv_pages"),
        (lambda tree: tree.capture([1] * 4, depth=4, kv_pages=[[0.5]], ratio=0.5), "kv_pages"),
        (lambda tree: tree.capture([1] * 4, depth=4, kv_pages=[[0]], ratio=0.5), "boundary_pages"),
        (
            lambda tree: tree.capture([1] * 4, depth=4, kv_pages=[[0]], boundary_pages={4: [0, 1]}, ratio=0.5),
            "boundary_pages[4]",
        ),
        (lambda tree: tree.evict(-1), "num_pages"),
        (lambda tree: tree.shrink(tree.match([1]), 17), "depth"),
    ],
)
def test_bad_arguments_name_the_field_and_change_nothing(call, field):
    tree, kv, _ = make_world()
    with pytest.raises(InvalidArgumentError) as caught:
        call(tree)
    assert caught.value.field == field
    assert isinstance(caught.value, RadixCacheError)
    assert (tree.num_nodes, kv.num_free) == (0, 400)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"page_size": 0}, "page_size"),
        ({"layers_per_band": 0}, "layers_per_band"),
        ({"boundary_depths": (8, 4)}, "boundary_depths"),
        ({"boundary_depths": (6,)}, "boundary_depths"),
        ({"boundary_depths": (16,)}, "boundary_depths"),
        ({"boundary_depths": (0,)}, "boundary_depths"),
        ({"kv_page_bytes": 0}, "kv_page_bytes"),
    ],
)
def test_bad_configs(changes, field):
    with pytest.raises(InvalidArgumentError) as caught:
        make_world(**changes)
    assert caught.value.field == field


def test_pools_have_to_fit_the_config():
    with pytest.raises(InvalidArgumentError, match="boundary"):
        RadixTree(CONFIG, PageAllocator(4))
    with pytest.raises(InvalidArgumentError, match="kv"):
        RadixTree(CONFIG, None, PageAllocator(4))
    kv = PageAllocator(4)
    everything = RadixTree(TreeConfig(page_size=P, num_layers=6, layers_per_band=4), kv)
    pages = kv.alloc(2).reshape(2, 1)
    everything.capture([1] * P, Namespace("", "final"), depth=6, kv_pages=pages, ratio=1.0)
    match = everything.match([1] * P, Namespace("", "final"))
    assert (match.depth, match.kv_pages.shape, match.boundary_pages.size) == (6, (2, 1), 0)


def test_a_failed_adoption_of_boundary_pages_gives_the_kv_pages_back():
    tree, kv, boundary = make_world()
    pages = kv.alloc(2).reshape(2, 1)
    states = boundary.alloc(1)
    with pytest.raises(PageReferenceError):
        tree.capture([1] * P, depth=8, kv_pages=pages, boundary_pages={4: states, 8: states}, ratio=0.5)
    assert (kv.refcount(pages) == 1).all()
    assert not kv.held.any()
    tree.check_invariants()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree, node: setattr(node, "locks", node.locks + 1),
        lambda tree, node: setattr(node, "pins", node.pins + 1),
        lambda tree, node: setattr(node, "level", 1),
        lambda tree, node: setattr(node, "kv", node.kv[::-1, ::-1][:1]),
        lambda tree, node: setattr(node, "kv", np.zeros_like(node.kv)),
        lambda tree, node: setattr(node, "tokens", node.tokens[:-4]),
        lambda tree, node: setattr(node, "last_used", 10**9),
        lambda tree, node: setattr(node, "namespace", Namespace("other")),
        lambda tree, node: setattr(tree._storage, "num_tokens", 1),
        lambda tree, node: setattr(tree._storage, "idle_kv_pages", 2),
        lambda tree, node: tree._storage.kv.offer(node.kv[:1, :1]),
        lambda tree, node: tree._storage.kv.give_up(node.kv[:1, :1]),
        lambda tree, node: tree._storage.queue.void(list(tree.nodes())[-1]),
    ],
)
def test_check_invariants_notices(shared, damage):
    tree, *_ = shared
    tree.check_invariants()
    damage(tree, next(tree.nodes()))
    with pytest.raises(InvariantError):
        tree.check_invariants()
