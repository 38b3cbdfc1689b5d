"""Plans what a request reuses and captures, and its forwards.

Cut s and depth d come from the tree: KVs of another request. Join and depth c are what the request reuses of its own
first forward, once its whole prompt (in whole pages) has been captured. Since c is the profile's depth at a larger
prefix ratio, c >= d: the request never recomputes what it shares, so pages in the tree are never written again.

With a refresh interval of 1 a request reuses nothing of its own: every block start repeats the first forward, so a miss
is exactly mode `dual`. Each block start writes the request's pages again, so the tree gets copies.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from ...radix_cache.depth_profile import DepthProfile
from ...radix_cache.match import Match
from ...radix_cache.node import Namespace
from ...radix_cache.tree import RadixTree
from ..refresh_schedules import RefreshSchedule
from ..request.forward import ForwardItem, Grow
from ..request.grant import NO_PAGES, Grant, Pages
from ..request.lookup import CacheLookup
from ..request.request import Request
from .memory import Memory
from .modes import MODES, SCHEDULES


class CapturePlan(NamedTuple):
    """Leading tokens that a first forward captures, to which depth, the depths of boundary states, and the request's
    refresh interval."""

    tokens: int
    depth: int
    levels: tuple[int, ...]
    refresh_interval: int | None


NO_CAPTURE = CapturePlan(0, 0, (), None)
_BY_ENTROPY = 1 << 62
"""The refresh interval of a request whose prefix refreshes are due by entropy."""


def held(request: Request) -> Grant:
    """The grant of a request that is admitted."""
    assert request.grant is not None, request.rid
    return request.grant


def _copies(grant: Grant) -> Pages | None:
    """int32 [2, n] page ids, source and destination, of captured pages that the request writes again; None: none."""
    if grant.capture_table is None:
        return None
    bands, pages = grant.capture_table.shape
    own = grant.page_table[:bands, :pages]
    differs = own != grant.capture_table
    return np.stack((own[differs], grant.capture_table[differs]))


class ReusePlanner:
    """Plans memory and forwards of single requests.

    Args:
        memory: pools and trees.
        shift: 1 for models whose logits are shifted by one position, else 0.
        refresh_interval, reuse_margin: see EngineConfig.

    Attributes:
        stores: whether captures go into the tree.
    """

    stores = True

    def __init__(
        self, memory: Memory, shift: int, refresh_interval: int | None = None, reuse_margin: int | None = None
    ):
        self.memory = memory
        self.shift = shift
        self.refresh_interval = refresh_interval
        self.reuse_margin = memory.profile.reuse_margin if reuse_margin is None else reuse_margin

    def profile(self, request: Request) -> DepthProfile:
        """What a request's capture goes by: one profile for all requests, except in measurements."""
        return self.memory.profile

    def trees(self, request: Request) -> tuple[RadixTree, DepthProfile] | None:
        """The tree that a request shares prefixes through, and the depths of this reuse; None: it shares nothing."""
        return self.memory.tree_for(request.spec.cache_mode)

    def namespace(self, request: Request) -> Namespace:
        """Namespace of a request's prefixes."""
        spec = request.spec
        final = MODES[spec.cache_mode].captures == "finished"
        return Namespace(spec.cache_salt, "final" if final else self.profile(request).capture)

    def cached_tokens(self, request: Request) -> int:
        """Prompt tokens in the tree now; changes nothing."""
        trees = self.trees(request)
        if trees is None:
            return 0
        return trees[0].match(request.prompt, self.namespace(request), touch=False).num_tokens

    def lookup(self, request: Request) -> CacheLookup:
        """What `admit` would find for a request; changes nothing."""
        trees = self.trees(request)
        match = None if trees is None else self._match(request, *trees)
        return CacheLookup(
            prompt_tokens=len(request.prompt), total_tokens=request.extent,
            cached_tokens=self.cached_tokens(request), cut=0 if match is None else match.cut,
            depth=0 if match is None else match.depth, num_layers=self.memory.config.num_layers,
        )  # fmt: skip

    def _match(self, request: Request, tree: RadixTree, profile: DepthProfile) -> Match:
        """The cut that the request may reuse, not locked."""
        size = self.memory.config.page_size
        most = min(
            (len(request.prompt) - self.shift) // size * size,
            self.reusable(request, self.cached_tokens(request)),
        )
        return tree.match(
            request.prompt, self.namespace(request), total_tokens=request.extent, profile=profile,
            max_tokens=most, touch=False,
        )  # fmt: skip

    def admit(self, request: Request, capture: bool = True, spare: int = 0) -> Grant | None:
        """Match, lock and allocate everything that the request needs now; None when memory is short.

        With `capture` off the request shares nothing: for pools too small for the request and a capture together.
        `spare` KV pages stay free or evictable.
        """
        memory, config = self.memory, self.memory.config
        tokens = request.extent
        page_size, pages = config.page_size, memory.pages_for(tokens)
        bands = config.num_bands
        trees = self.trees(request) if capture else None
        whole = (len(request.prompt) - self.shift) // page_size * page_size
        match, cut, depth = None, 0, 0
        if trees is not None:
            tree, _ = trees
            match = self._match(request, *trees)
            tree.lock(match)
            cut, depth = match.cut, match.depth
        plan = self._plan_capture(request, whole) if trees is not None else NO_CAPTURE
        counts = {level: (whole - (cut if level <= depth else 0)) // page_size for level in plan.levels}
        shared_bands, shared_pages = config.bands(depth), cut // page_size
        own = bands * pages - shared_bands * shared_pages
        copied = self._pages_to_copy(plan, shared_bands * shared_pages)
        reserved = memory.reserve(own + copied, sum(counts.values()), spare)
        if reserved is None:
            memory.unlock(request.spec.cache_mode, match)
            return None
        own_kv, own_boundary = reserved
        table = np.empty((bands, pages), np.int32)
        mine = np.ones(table.shape, np.bool_)
        if cut and match is not None:
            mine[:shared_bands, :shared_pages] = False
            table[:shared_bands, :shared_pages] = match.kv_pages
        table[mine] = own_kv[:own]
        capture_table = None
        if copied:
            offered = np.s_[: config.bands(plan.depth), : plan.tokens // page_size]
            capture_table = table[offered].copy()
            capture_table[mine[offered]] = own_kv[own:]
        ends = np.cumsum(list(counts.values()), dtype=np.int64).tolist()
        states = {level: own_boundary[end - counts[level] : end] for level, end in zip(counts, ends, strict=True)}
        return Grant(
            match=match, page_table=table, capture_table=capture_table, own_kv=own_kv, tokens=tokens,
            own_boundary=own_boundary, cut=cut, depth=depth,
            capture_tokens=plan.tokens, capture_depth=plan.depth, boundary_table=states,
            refresh_interval=plan.refresh_interval, join=cut, join_depth=depth,
        )  # fmt: skip

    def missing_pages(self, request: Request) -> int:
        """Pages of each band that an admitted request needs for positions that have come into being."""
        if request.spec.sampling.canvas_window is None:
            return 0
        columns: int = held(request).page_table.shape[1]
        return self.memory.pages_for(request.extent) - columns

    def remaining_pages(self, request: Request) -> int:
        """KV pages that a request may still take, once it has those of the positions that exist now."""
        return (
            self.memory.pages_for(request.total_tokens) - self.memory.pages_for(request.extent)
        ) * self.memory.config.num_bands

    def grow(self, request: Request) -> Grow | None:
        """Take the pages that a request misses, for the caller to tell the worker; None when memory is short."""
        grant, bands = held(request), self.memory.config.num_bands
        reserved = self.memory.reserve(self.missing_pages(request) * bands, 0)
        if reserved is None:
            return None
        pages, columns = reserved[0].reshape(bands, -1), grant.page_table.shape[1]
        grant.page_table = np.concatenate((grant.page_table, pages), axis=1)
        grant.own_kv = np.concatenate((grant.own_kv, reserved[0]))
        return Grow(request.rid, columns, pages)

    def starts(self, request: Request) -> None:
        """An admitted request starts: count its cache hit as a use."""
        trees, grant = self.trees(request), request.grant
        if grant is not None and grant.match is not None and trees is not None:
            trees[0].touch(grant.match)

    def reusable(self, request: Request, cached: int) -> int:
        """How many of `cached` prompt tokens may be reused: of finished sequences all, else pages before a margin.

        A prefix that the caller computed on its own (`shared_prefix`) needs no margin, since nothing stood behind it
        then. That holds only if all of it is cached: a shorter match comes from another prompt that parts from this
        one.
        """
        spec = request.spec
        if MODES[spec.cache_mode].captures == "finished":
            return cached
        size = self.memory.config.page_size
        warmed = (spec.shared_prefix - self.shift) // size * size
        unmargined = min(cached, spec.shared_prefix) if cached >= warmed else 0
        return max(0, cached - self.reuse_margin, unmargined) // size * size

    def interval(self, request: Request, whole: int) -> int | None:
        """NFE between a request's prefix refreshes; None: its first forward is the only one."""
        interval = self.refresh_interval or None
        if self.refresh_interval is None:
            interval = self.profile(request).interval(whole / request.extent)
        return interval if request.spec.sampling.refresh_entropy is None or interval == 1 else _BY_ENTROPY

    def _plan_capture(self, request: Request, whole: int) -> CapturePlan:
        """The capture of the first forward, for a prompt of `whole` tokens in whole pages."""
        config, profile, spec = self.memory.config, self.profile(request), request.spec
        # A preempted request has commits on its canvas, a scored answer tokens behind the prompt: no first forward.
        again = request.tally.preemptions and request.canvas.block
        if MODES[spec.cache_mode].captures != "prompt" or not whole or again or spec.targets is not None:
            return NO_CAPTURE
        own = profile.depth(whole / request.extent)
        if not own:
            return NO_CAPTURE
        interval = self.interval(request, whole)
        depth = own if interval is not None else profile.max_depth
        levels = tuple(level for level in config.boundary_depths if level <= depth)
        return CapturePlan(whole, depth, levels, interval)

    def _pages_to_copy(self, plan: CapturePlan, shared: int) -> int:
        """KV pages to copy for the tree, since the request writes its own again; `shared` pages are the tree's."""
        if not self.stores or not plan.tokens or plan.refresh_interval != 1:
            return 0
        config = self.memory.config
        return config.bands(plan.depth) * (plan.tokens // config.page_size) - shared

    def first_forward(self, request: Request) -> ForwardItem:
        """The prefix refresh that starts a request; on a miss a plain full forward."""
        grant, targets = held(request), request.spec.targets
        cut, depth = grant.cut, grant.depth
        resumes = cut > 0 and depth < self.memory.config.num_layers
        captures = tuple(
            (level, cut if level <= depth else 0, pages) for level, pages in grant.boundary_table.items() if len(pages)
        )
        block_start, block_stop = request.block_span()
        if targets is not None:
            targets = targets + np.array((len(request.prompt), 0))
        elif block_start == block_stop:  # no logits are read: one shows whether they are finite
            targets = np.array([(request.extent - 1, 0)])
        return ForwardItem(
            request.rid, cut, request.extent, request.extent, block_start, block_stop,
            join=0 if resumes else cut,
            depth=depth if resumes else 0,
            resume=grant.match.boundary_pages if resumes and grant.match is not None else None,
            captures=captures,
            copies=_copies(grant),
            targets=targets,
        )  # fmt: skip

    def captured(self, request: Request) -> None:
        """After the first forward: offer the prompt to the tree and keep what the request resumes from."""
        memory, config, grant = self.memory, self.memory.config, held(request)
        request.tally.captured_tokens = grant.capture_tokens
        if not grant.capture_tokens:
            mode = MODES[request.spec.cache_mode]
            if mode.refreshes_prefix and grant.match is not None and 0 < grant.depth < config.num_layers:
                grant.refresh_interval = self.interval(request, grant.join)
                grant.resume = grant.match.boundary_pages
            return
        whole, depth = grant.capture_tokens, grant.capture_depth
        pages, ratio = whole // config.page_size, whole / grant.tokens
        boundaries = {level: self._boundary_row(grant, level, pages) for level in grant.boundary_table}
        offered = grant.page_table[: config.bands(depth), :pages]
        if self.stores:
            memory.tree.capture(
                request.prompt[:whole], self.namespace(request), depth=depth, ratio=ratio,
                kv_pages=offered if grant.capture_table is None else grant.capture_table,
                boundary_pages=boundaries,
            )  # fmt: skip
        if grant.refresh_interval == 1:
            self._captured_copies(grant)
            return
        grant.join, grant.join_depth = whole, self.profile(request).depth(ratio)
        keep = NO_PAGES
        if grant.refresh_interval is not None and grant.join_depth < config.num_layers:
            grant.resume = boundaries[grant.join_depth]
            keep = grant.boundary_table[grant.join_depth]
        memory.boundary.release(grant.own_boundary[~np.isin(grant.own_boundary, keep)])
        grant.own_boundary = keep

    def _captured_copies(self, grant: Grant) -> None:
        """With an interval of 1: leave the copies to the tree, and resume later refreshes from the cache hit."""
        memory = self.memory
        if grant.match is not None and 0 < grant.depth < memory.config.num_layers:
            grant.resume = grant.match.boundary_pages
        if grant.capture_table is not None:
            copies = np.isin(grant.own_kv, grant.page_table, invert=True)
            memory.kv.release(grant.own_kv[copies])
            grant.own_kv = grant.own_kv[~copies]
        memory.boundary.release(grant.own_boundary)
        grant.own_boundary = NO_PAGES

    def _boundary_row(self, grant: Grant, level: int, pages: int) -> Pages:
        """Boundary pages at `level` for the whole captured prompt; -1 where the request has no states."""
        own = grant.boundary_table[level]
        row = np.full(pages, -1, np.int32)
        row[pages - len(own) :] = own
        if level == grant.depth and grant.match is not None:
            row[: pages - len(own)] = grant.match.boundary_pages
        return row

    def refresh(self, request: Request) -> ForwardItem:
        """The forward that starts a later block: a canvas refresh, or a prefix refresh when one is due."""
        block_start, block_stop = request.block_span()
        extent, mode, grant = request.extent, MODES[request.spec.cache_mode], held(request)
        start = grant.join if mode.keeps_join else 0
        due = self._is_due(request)
        if mode.refreshes_prefix and start and due and grant.resume is not None:
            return ForwardItem(
                request.rid, start, extent, extent, block_start, block_stop, join=0, depth=grant.join_depth,
                resume=grant.resume,
            )  # fmt: skip
        if not due and self._keeps_settled(request):
            start = max(start, min(grant.settled, block_start - self.shift))
        return ForwardItem(request.rid, start, extent, extent, block_start, block_stop, join=start)

    def _is_due(self, request: Request) -> bool:
        """Whether the next block start refreshes everything that it may, by entropy or by the interval."""
        tally, sampling = request.tally, request.spec.sampling
        if sampling.refresh_entropy is not None and tally.entropy > sampling.refresh_entropy:
            return True
        interval = held(request).refresh_interval
        return interval is not None and tally.nfe - tally.nfe_at_refresh >= interval

    def _keeps_settled(self, request: Request) -> bool:
        """Whether the next block start leaves settled blocks as they are."""
        sampling = request.spec.sampling
        schedule = cast(RefreshSchedule, sampling.refresh_schedule or "full")  # the profiler asks without intake
        if not SCHEDULES[schedule].keeps_settled:
            return False
        every = sampling.full_refresh_every
        return every is None or held(request).settled_starts + 1 < every

    def refreshed(self, request: Request, item: ForwardItem) -> None:
        """After a first forward or a refresh: the blocks before the current one are settled."""
        grant = held(request)
        first = grant.join if MODES[request.spec.cache_mode].keeps_join else 0
        grant.settled_starts = grant.settled_starts + 1 if request.started and item.start > first else 0
        grant.settled, request.tally.entropy = request.block_span()[0], 0.0

    def block_step(self, request: Request) -> ForwardItem:
        """A step inside a block: over the block alone, the block and all behind it, or everything, by cache mode."""
        block_start, block_stop = request.block_span()
        extent, stop_at = request.extent, MODES[request.spec.cache_mode].step_stop
        start = 0 if stop_at == "all" else block_start - self.shift
        stop = block_stop if stop_at == "block" else extent
        return ForwardItem(request.rid, start, stop, extent, block_start, block_stop, join=start)

    def final_forward(self, request: Request) -> ForwardItem | None:
        """The pass over a finished sequence that mode `lm` captures; None if there is nothing new to capture."""
        spec, grant = request.spec, request.grant
        if MODES[spec.cache_mode].captures != "finished" or grant is None or not request.started:
            return None
        if spec.targets is not None:
            return None
        length = len(request.prompt) + request.canvas.frontier
        if length // self.memory.config.page_size * self.memory.config.page_size <= grant.join:
            return None
        return ForwardItem(request.rid, grant.join, length, length, length, length, join=grant.join)

    def final_captured(self, request: Request) -> None:
        """After that pass: offer prompt and answer, all layers, to the tree."""
        config, canvas = self.memory.config, request.canvas
        tokens = np.concatenate((request.prompt, np.array(canvas.tokens[: canvas.frontier], np.int64)))
        pages = len(tokens) // config.page_size
        self.memory.lm_tree.capture(
            tokens[: pages * config.page_size], self.namespace(request), depth=config.num_layers, ratio=1.0,
            kv_pages=held(request).page_table[:, :pages], boundary_pages={},
        )  # fmt: skip
