"""Pages and trees: allocation, eviction and accounting over both pools."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...radix_cache.config import TreeConfig
from ...radix_cache.depth_profile import DepthProfile
from ...radix_cache.errors import InvariantError
from ...radix_cache.match import Match
from ...radix_cache.page_allocator import PageAllocator
from ...radix_cache.summary import summarize
from ...radix_cache.tree import RadixTree
from ..config import CacheMode
from ..errors import CacheInUseError, PoolTooSmallError
from ..request.grant import Pages
from ..request.request import Request
from .modes import MODES


class Memory:
    """Allocators of both pools and one radix tree for each kind of capture, over the same pages.

    `bicache` keeps first-forward captures with boundary states in one tree, `lm` finished sequences of all layers in
    another: their nodes differ in shape, and neither mode may see what the other stored.
    """

    def __init__(self, tree: TreeConfig, profile: DepthProfile, kv_pages: int, boundary_pages: int):
        self.config = tree
        self.profile = profile
        self.reuse_profile = profile  # depths of reuse across requests; audits may lower them
        self.lm_profile = DepthProfile.constant(tree.num_layers, tree.num_layers, capture="final")
        self.kv = PageAllocator(kv_pages)
        self.boundary = PageAllocator(boundary_pages)
        self.tree = RadixTree(tree, self.kv, self.boundary)
        lm_config = TreeConfig(tree.page_size, tree.num_layers, tree.layers_per_band, (), tree.policy)
        self.lm_tree = RadixTree(lm_config, self.kv, self.boundary)

    def tree_for(self, mode: CacheMode) -> tuple[RadixTree, DepthProfile] | None:
        """Tree and profile of a cache mode; None for modes that share nothing between requests."""
        match MODES[mode].captures:
            case "prompt":
                return self.tree, self.reuse_profile
            case "finished":
                return self.lm_tree, self.lm_profile
            case None:
                return None

    def pages_for(self, tokens: int) -> int:
        """Pages of one band that hold `tokens` positions."""
        return -(-tokens // self.config.page_size)

    def check_fits(self, prompt_tokens: int, canvas_tokens: int) -> None:
        """Raise PoolTooSmallError for a request that could not run even alone."""
        if self.pages_for(prompt_tokens + canvas_tokens) * self.config.num_bands > self.kv.num_pages:
            tokens = self.kv.num_pages // self.config.num_bands * self.config.page_size
            raise PoolTooSmallError(
                f"prompt and canvas have {prompt_tokens} + {canvas_tokens} tokens; the KV pool holds {tokens}",
                field="prompt", value=prompt_tokens + canvas_tokens, limit=tokens,
            )  # fmt: skip

    def reserve(self, kv_pages: int, boundary_pages: int, spare: int = 0) -> tuple[Pages, Pages] | None:
        """Allocate pages of both pools, evicting cached prefixes as needed.

        Returns None, and evicts nothing, if that would not suffice, or would leave fewer than `spare` KV pages free or
        evictable.
        """
        short = (kv_pages - self.kv.num_free, boundary_pages - self.boundary.num_free)
        if short[0] + spare > self.kv.num_reclaimable or short[1] > self.boundary.num_reclaimable:
            return None
        for tree in (self.lm_tree, self.tree):
            if max(short) <= 0:
                break
            tree.evict(max(0, short[0]), max(0, short[1]))
            short = (kv_pages - self.kv.num_free, boundary_pages - self.boundary.num_free)
        if max(short) > 0:
            return None
        return self.kv.alloc(kv_pages), self.boundary.alloc(boundary_pages)

    def release(self, request: Request) -> None:
        """Take back a request's grant: its lock and its pages. Safe to call twice."""
        grant, request.grant = request.grant, None
        if grant is None:
            return
        self.unlock(request.spec.cache_mode, grant.match)
        self.kv.release(grant.own_kv)
        self.boundary.release(grant.own_boundary)

    def unlock(self, mode: CacheMode, match: Match | None) -> None:
        """Give up the lock on a cached prefix of a cache mode's tree."""
        trees = self.tree_for(mode)
        if match is not None and match.locked and trees is not None:
            trees[0].unlock(match)

    def flush(self) -> None:
        """Drop every cached prefix of both trees. Raises CacheInUseError, with nothing dropped, while any is locked."""
        trees = (self.tree, self.lm_tree)
        locked = sum(tree.num_locks for tree in trees)
        if locked:
            message = f"flush refused: {locked} running requests share a cached prefix"
            raise CacheInUseError(message, field="flush_cache", value=locked, limit=0)
        for tree in trees:
            tree.flush()

    def summary(self, stride: int, limit: int) -> bytes:
        """Hashes of what both trees hold, 8 bytes each: see `summarize`. Changes nothing."""
        return summarize([*self.tree.roots(), *self.lm_tree.roots()], stride, limit).tobytes()

    def check(self, requests: Iterable[Request]) -> None:
        """Check that free + tree + request pages are all pages, page by page. Raises InvariantError with numbers."""
        held = list(requests)
        kv, boundary = np.zeros(self.kv.num_pages, np.int64), np.zeros(self.boundary.num_pages, np.int64)
        for tree in (self.tree, self.lm_tree):
            tree.check_invariants(sole_owner=False)
            references = tree.page_references(include_locks=True)
            kv += references.kv
            boundary += references.boundary
        for request in held:
            if request.grant is not None:
                np.add.at(kv, request.grant.own_kv, 1)
                np.add.at(boundary, request.grant.own_boundary, 1)
        for name, allocator, expected in (("KV", self.kv, kv), ("boundary", self.boundary, boundary)):
            allocator.check_invariants()
            actual = allocator.refcount(np.arange(allocator.num_pages))
            wrong = np.flatnonzero(actual != expected)
            free = int((expected == 0).sum())
            if len(wrong) or free != allocator.num_free:
                page = int(wrong[0]) if len(wrong) else -1
                raise InvariantError(
                    f"{name} pages: {allocator.num_free} free, {free} unreferenced of {allocator.num_pages}; "
                    f"{len(wrong)} with another count than tree and {len(held)} requests hold, first: page {page}"
                )
