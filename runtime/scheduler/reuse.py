"""What a request reuses of the cache, what it will capture, and the forwards that follow from it.

Cut s and depth d come from the tree: what another request left. Join and depth c are what the request reuses of itself
after its first forward, when its whole prompt (in whole pages) has been captured. Since c is the profile's depth at a
larger prefix ratio, c >= d: it never recomputes what it shares, so pages in the tree are never written again.

With a refresh interval of 1 a request reuses nothing of itself: every block start computes again what the first forward
computed, so that on a miss it is mode `dual`. Its own pages are then written again and again, and the tree gets copies.
"""

from __future__ import annotations

import numpy as np

from ...radix_cache.node import Namespace
from ..request.forward import ForwardItem
from ..request.request import Pages, Request
from .memory import Memory


class ReusePlanner:
    """Plans memory and forwards of single requests.

    Args:
        memory: pools and trees.
        shift: 1 for models whose logits are shifted by one position, else 0.
        refresh_interval, reuse_margin: see EngineConfig.

    Attributes:
        stores: whether the tree is given what requests capture.
    """

    stores = True

    def __init__(
        self, memory: Memory, shift: int, refresh_interval: int | None = None, reuse_margin: int | None = None
    ):
        self.memory = memory
        self.shift = shift
        self.refresh_interval = refresh_interval
        self.reuse_margin = memory.profile.reuse_margin if reuse_margin is None else reuse_margin

    def namespace(self, request: Request) -> Namespace:
        """Namespace of a request's prefixes."""
        return Namespace(request.cache_salt, "final" if request.cache_mode == "lm" else self.memory.profile.capture)

    def cached_tokens(self, request: Request) -> int:
        """Prompt tokens that the tree knows at the moment; changes nothing."""
        trees = self.memory.tree_for(request.cache_mode)
        if trees is None:
            return 0
        return trees[0].match(request.prompt, self.namespace(request), touch=False).num_tokens

    def admit(self, request: Request, capture: bool = True) -> bool:
        """Match, lock and allocate everything that the request needs to its end; False when memory is short.

        With `capture` off the request shares nothing: for pools too small to hold a capture beside it.
        """
        memory, config = self.memory, self.memory.config
        page_size, pages = config.page_size, memory.pages_for(request.total_tokens)
        bands = config.num_bands
        table = np.empty((bands, pages), np.int32)
        cut = depth = 0
        request.capture_tokens = request.capture_depth = 0
        request.refresh_interval = None
        trees = memory.tree_for(request.cache_mode) if capture else None
        whole = (len(request.prompt) - self.shift) // page_size * page_size
        if trees is not None:
            tree, profile = trees
            match = tree.match(
                request.prompt, self.namespace(request), total_tokens=request.total_tokens, profile=profile,
                max_tokens=min(whole, self.reusable(request, self.cached_tokens(request))), touch=False,
            )  # fmt: skip
            tree.lock(match)
            request.match, cut, depth = match, match.cut, match.depth
        shared_bands, shared_pages = config.bands(depth), cut // page_size
        boundaries = self._plan_capture(request, whole, cut, depth) if trees is not None else {}
        own = bands * pages - shared_bands * shared_pages
        copied = self._pages_to_copy(request, shared_bands * shared_pages)
        reserved = memory.reserve(own + copied, sum(boundaries.values()))
        if reserved is None:
            memory.release(request)
            return False
        request.own_kv, request.own_boundary = reserved
        mine = np.ones(table.shape, np.bool_)
        if cut and request.match is not None:
            mine[:shared_bands, :shared_pages] = False
            table[:shared_bands, :shared_pages] = request.match.kv_pages
        table[mine] = request.own_kv[:own]
        request.page_table = table
        request.capture_table = None
        if copied:
            offered = np.s_[: config.bands(request.capture_depth), : request.capture_tokens // page_size]
            request.capture_table = table[offered].copy()
            request.capture_table[mine[offered]] = request.own_kv[own:]
        request.boundary_table = {}
        begin = 0
        for level, count in boundaries.items():
            request.boundary_table[level] = request.own_boundary[begin : begin + count]
            begin += count
        request.cached_tokens, request.cached_depth = cut, depth
        request.join, request.depth = cut, depth
        return True

    def starts(self, request: Request) -> None:
        """The request that was admitted runs now: what it found in the cache is used."""
        trees = self.memory.tree_for(request.cache_mode)
        if request.match is not None and trees is not None:
            trees[0].touch(request.match)

    def reusable(self, request: Request, cached: int) -> int:
        """How many of `cached` prompt tokens may be reused: in mode `lm` all, else whole pages before a margin.

        What the caller has warmed on its own (`shared_prefix`) needs no margin: nothing stood behind it then. Only if
        all of it is there: where the cache knows less, it is another prompt that parts from this one.
        """
        if request.cache_mode == "lm":
            return cached
        size = self.memory.config.page_size
        warmed = (request.shared_prefix - self.shift) // size * size
        unmargined = min(cached, request.shared_prefix) if cached >= warmed else 0
        return max(0, cached - self.reuse_margin, unmargined) // size * size

    def _interval(self, request: Request, whole: int) -> int | None:
        """NFE between a request's prefix refreshes; None: its first forward is the only one."""
        if self.refresh_interval is None:
            return self.memory.profile.interval(whole / request.total_tokens)
        return self.refresh_interval or None

    def _plan_capture(self, request: Request, whole: int, cut: int, depth: int) -> dict[int, int]:
        """Decide how much the first forward captures; boundary pages needed for each depth."""
        config, profile = self.memory.config, self.memory.profile
        # A request that was put back has commits on its canvas: not what a first forward sees. Nor has a scored answer.
        again = request.retractions and request.block
        if request.cache_mode != "bicache" or not whole or again or request.targets is not None:
            return {}
        own = profile.depth(whole / request.total_tokens)
        if not own:
            return {}
        request.capture_tokens = whole
        request.refresh_interval = self._interval(request, whole)
        request.capture_depth = own if request.refresh_interval is not None else profile.max_depth
        levels = [level for level in config.boundary_depths if level <= request.capture_depth]
        size = config.page_size
        return {level: (whole - (cut if level <= depth else 0)) // size for level in levels}

    def _pages_to_copy(self, request: Request, shared: int) -> int:
        """KV pages of the capture that the request will write again itself; `shared` of its pages are the tree's."""
        if not self.stores or not request.capture_tokens or request.refresh_interval != 1:
            return 0
        config = self.memory.config
        return config.bands(request.capture_depth) * (request.capture_tokens // config.page_size) - shared

    def first_forward(self, request: Request) -> ForwardItem:
        """The prefix refresh that starts a request; on a miss a plain full forward."""
        cut, depth = request.cached_tokens, request.cached_depth
        resumes = cut > 0 and depth < self.memory.config.num_layers
        captures = tuple(
            (level, cut if level <= depth else 0, pages)
            for level, pages in request.boundary_table.items()
            if len(pages)
        )
        block_start, block_stop = request.block_span()
        targets = None if request.targets is None else request.targets + np.array((len(request.prompt), 0))
        if targets is None and block_start == block_stop:  # nobody reads its logits: one shows whether they are finite
            targets = np.array([(request.total_tokens - 1, 0)])
        return ForwardItem(
            request.rid, cut, request.total_tokens, request.total_tokens, block_start, block_stop,
            join=0 if resumes else cut,
            depth=depth if resumes else 0,
            resume=request.match.boundary_pages if resumes and request.match is not None else None,
            captures=captures,
            copies=self._copies(request),
            targets=targets,
        )  # fmt: skip

    @staticmethod
    def _copies(request: Request) -> Pages | None:
        """Page ids [2, n], from and to: what of the capture is not the request's or the tree's own page."""
        if request.capture_table is None or request.page_table is None:
            return None
        bands, pages = request.capture_table.shape
        own = request.page_table[:bands, :pages]
        differs = own != request.capture_table
        return np.stack((own[differs], request.capture_table[differs]))

    def captured(self, request: Request) -> None:
        """After the first forward: offer the prompt to the tree and keep what the request resumes from."""
        memory, config = self.memory, self.memory.config
        if not request.capture_tokens:
            if request.cache_mode == "bicache" and request.match is not None and 0 < request.depth < config.num_layers:
                request.refresh_interval = self._interval(request, request.join)
                request.resume = request.match.boundary_pages
            return
        assert request.page_table is not None
        whole, depth = request.capture_tokens, request.capture_depth
        pages, ratio = whole // config.page_size, whole / request.total_tokens
        boundaries = {level: self._boundary_row(request, level, pages) for level in request.boundary_table}
        offered = request.page_table[: config.bands(depth), :pages]
        if self.stores:
            memory.tree.capture(
                request.prompt[:whole], self.namespace(request), depth=depth, ratio=ratio,
                kv_pages=offered if request.capture_table is None else request.capture_table,
                boundary_pages=boundaries,
            )  # fmt: skip
        if request.refresh_interval == 1:
            self._captured_copies(request)
            return
        request.join, request.depth = whole, memory.profile.depth(ratio)
        keep = np.empty(0, np.int32)
        if request.refresh_interval is not None and request.depth < config.num_layers:
            request.resume = boundaries[request.depth]
            keep = request.boundary_table[request.depth]
        memory.boundary.release(request.own_boundary[~np.isin(request.own_boundary, keep)])
        request.own_boundary = keep

    def _captured_copies(self, request: Request) -> None:
        """With an interval of 1: leave the copies to the tree, and go on with what the request found there."""
        memory = self.memory
        if request.match is not None and 0 < request.depth < memory.config.num_layers:
            request.resume = request.match.boundary_pages
        if request.capture_table is not None and request.page_table is not None:
            copies = np.isin(request.own_kv, request.page_table, invert=True)
            memory.kv.release(request.own_kv[copies])
            request.own_kv = request.own_kv[~copies]
        memory.boundary.release(request.own_boundary)
        request.own_boundary = np.empty(0, np.int32)

    def _boundary_row(self, request: Request, level: int, pages: int) -> Pages:
        """Boundary pages at `level` for the whole captured prompt; -1 where the request never had these states."""
        own = request.boundary_table[level]
        row = np.full(pages, -1, np.int32)
        row[pages - len(own) :] = own
        if level == request.cached_depth and request.match is not None:
            row[: pages - len(own)] = request.match.boundary_pages
        return row

    def refresh(self, request: Request) -> ForwardItem:
        """The forward that starts a later block: a canvas refresh, or a prefix refresh when one is due."""
        block_start, block_stop = request.block_span()
        total, mode = request.total_tokens, request.cache_mode
        start = request.join if mode in ("bicache", "lm") else 0
        interval = request.refresh_interval
        due = interval is not None and request.nfe - request.nfe_at_refresh >= interval
        if mode == "bicache" and start and due and request.resume is not None:
            return ForwardItem(
                request.rid, start, total, total, block_start, block_stop, join=0, depth=request.depth,
                resume=request.resume,
            )  # fmt: skip
        return ForwardItem(request.rid, start, total, total, block_start, block_stop, join=start)

    def block_step(self, request: Request) -> ForwardItem:
        """A step inside a block: over the block alone, the block and all behind it, or everything, by cache mode."""
        block_start, block_stop = request.block_span()
        total, mode = request.total_tokens, request.cache_mode
        start = 0 if mode == "none" else block_start - self.shift
        stop = block_stop if mode in ("dual", "bicache", "lm") else total
        return ForwardItem(request.rid, start, stop, total, block_start, block_stop, join=start)

    def final_forward(self, request: Request) -> ForwardItem | None:
        """Mode `lm`: the pass over the finished sequence whose KVs are captured; None when there is nothing new."""
        if request.cache_mode != "lm" or request.page_table is None or not request.started:
            return None
        if request.targets is not None:
            return None
        length = len(request.prompt) + request.frontier
        if length // self.memory.config.page_size * self.memory.config.page_size <= request.join:
            return None
        return ForwardItem(request.rid, request.join, length, length, length, length, join=request.join)

    def final_captured(self, request: Request) -> None:
        """Mode `lm`: offer prompt and answer, all layers, to the tree."""
        assert request.page_table is not None
        config = self.memory.config
        tokens = np.concatenate((request.prompt, np.array(request.canvas[: request.frontier], np.int64)))
        pages = len(tokens) // config.page_size
        self.memory.lm_tree.capture(
            tokens[: pages * config.page_size], self.namespace(request), depth=config.num_layers, ratio=1.0,
            kv_pages=request.page_table[:, :pages], boundary_pages={},
        )  # fmt: skip
