"""Summaries of trees against every prefix that the tree holds, and what hashes of prompts say about them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.radix_cache.config import TreeConfig
from shoal.radix_cache.errors import InvalidArgumentError
from shoal.radix_cache.node import Namespace
from shoal.radix_cache.summary import prefix_hashes, summarize
from shoal.radix_cache.tree import RadixTree

PAGE = 4
CONFIG = TreeConfig(PAGE, 8, 4, (4,), "lru")
SPACES = (Namespace(), Namespace("tenant"), Namespace("", "final"))
TOKENS = st.lists(st.integers(0, 2), max_size=40)
PROMPTS = st.lists(st.tuples(TOKENS, st.sampled_from(SPACES)), max_size=12)


def tree_of(prompts) -> RadixTree:
    tree = RadixTree(CONFIG)
    for tokens, space in prompts:
        tree.capture(tokens, space, depth=8, ratio=0.5)
    return tree


def summary(tree: RadixTree, stride: int, limit: int = 10_000) -> list[int]:
    return summarize(tree.roots(), stride, limit).tolist()


def held(prompts, stride: int) -> set[tuple[Namespace, tuple[int, ...]]]:
    """Every prefix of whole strides that lies in the captured whole pages of any prompt."""
    return {
        (space, tuple(tokens[:end]))
        for tokens, space in prompts
        for end in range(stride, len(tokens) // PAGE * PAGE + 1, stride)
    }


@given(PROMPTS, st.sampled_from([PAGE, 2 * PAGE, 3 * PAGE]))
@settings(max_examples=100, deadline=None)
def test_a_summary_names_every_prefix_that_the_tree_holds_and_no_other(prompts, stride):
    expected = {int(prefix_hashes(tokens, space, stride)[-1]) for space, tokens in held(prompts, stride)}
    found = summary(tree_of(prompts), stride)
    assert found == sorted(expected)
    assert len(held(prompts, stride)) == len(expected)  # no two of them alike


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_prompts_share_hashes_as_far_as_they_share_tokens(first, second, stride):
    common = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    one, two = (prefix_hashes(tokens, SPACES[0], stride).tolist() for tokens in (first, second))
    assert [len(one), len(two)] == [len(first) // stride, len(second) // stride]
    alike = [a == b for a, b in zip(one, two, strict=False)]
    assert alike == [(number + 1) * stride <= common for number in range(len(alike))]
    assert not set(one) & set(prefix_hashes(first, SPACES[1], stride).tolist())


def test_parts_of_a_namespace_are_kept_apart():
    spaces = (Namespace("ab", "c"), Namespace("a", "bc"), Namespace("", "abc"), Namespace("\ud800", ""))
    assert len({int(prefix_hashes([1, 2], space, 2)[0]) for space in spaces}) == len(spaces)


def test_a_summary_has_at_most_its_limit_and_what_was_used_last():
    prompts = [([number] * 8, SPACES[0]) for number in range(20)]
    tree = tree_of(prompts)
    tree.lock(match := tree.match([7] * 8))  # the latest use
    found = summary(tree, 4, limit=6)
    assert len(found) == 6
    kept = {number for number in range(20) if set(prefix_hashes([number] * 8, SPACES[0], 4).tolist()) <= set(found)}
    assert kept == {7, 18, 19}
    tree.unlock(match)


def test_what_was_evicted_is_named_no_more_and_a_summary_changes_nothing():
    tree = tree_of([([number] * 8, SPACES[0]) for number in range(3)])
    before = tree.snapshot()
    assert len(summary(tree, 4)) == 6
    assert tree.snapshot() == before
    tree.flush()
    assert summary(tree, 4) == []


def test_hashes_do_not_depend_on_how_the_tree_is_split():
    tokens = list(range(40))
    tree = tree_of([(tokens, SPACES[0])])
    whole = summary(tree, 8)
    tree.capture([*tokens[:12], *[99] * 8], SPACES[0], depth=8, ratio=0.5)  # splits inside of a stride
    assert set(whole) <= set(summary(tree, 8))
    assert whole == sorted(prefix_hashes(tokens, SPACES[0], 8).tolist())


def test_what_is_refused():
    for stride in (0, -4):
        with pytest.raises(InvalidArgumentError, match="stride"):
            prefix_hashes([1], SPACES[0], stride)
    with pytest.raises(InvalidArgumentError, match="limit"):
        summarize([], 4, 0)
    with pytest.raises(InvalidArgumentError, match="tokens"):
        prefix_hashes(np.array([0.5]), SPACES[0], 1)
