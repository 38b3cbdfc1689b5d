"""A tree with pools and the requests that use it, driven the way the scheduler does; results are plain data."""

from dataclasses import dataclass, field

import numpy as np

from shoal.radix_cache.errors import OutOfPagesError, StaleMatchError, TreeInUseError
from shoal.radix_cache.node import Node
from shoal.radix_cache.page_allocator import PageAllocator
from shoal.radix_cache.tree import RadixTree, TreeConfig

PAGE = 2
LAYERS = 10
BAND = 2
BOUNDARIES = (4, 6)
LEVELS = (0, *BOUNDARIES, LAYERS)
KV_PAGES = 70
BOUNDARY_PAGES = 28


def prefixes(tokens):
    """The page-aligned prefixes of a prompt, shortest first, as tuples."""
    tokens = tuple(int(token) for token in tokens)
    return [tokens[: (page + 1) * PAGE] for page in range(len(tokens) // PAGE)]


@dataclass
class Request:
    """What a running request holds: one locked match, and pages of its own."""

    namespace: object
    tokens: tuple
    match: object
    kv: np.ndarray
    boundary: dict
    own_kv: list = field(default_factory=list)
    own_boundary: list = field(default_factory=list)


class World:
    """One tree and its requests."""

    def __init__(self, policy):
        self.kv = PageAllocator(KV_PAGES)
        self.boundary = PageAllocator(BOUNDARY_PAGES)
        config = TreeConfig(
            page_size=PAGE, num_layers=LAYERS, layers_per_band=BAND, boundary_depths=BOUNDARIES, policy=policy
        )
        self.events: list = []
        self.tree = RadixTree(config, self.kv, self.boundary, on_event=self.events.append)
        self.requests = {}

    def match(self, tokens, namespace, **options):
        match = self.tree.match(tokens, namespace, **options)
        return match, (
            match.num_tokens,
            match.cut,
            match.depth,
            match.kv_pages.tolist(),
            match.boundary_pages.tolist(),
        )

    def admit(self, key, tokens, namespace, depth, total, profile):
        """Match, lock, allocate the rest (evicting when short): True, or False when there is no room."""
        match, _ = self.match(tokens, namespace, total_tokens=total, profile=profile, max_tokens=len(tokens))
        self.tree.lock(match)
        pages = len(tokens) // PAGE
        shared, bands = match.cut // PAGE, self.tree.config.bands(match.depth)
        kv = np.full((LAYERS // BAND, pages), -1, dtype=np.int32)
        kv[:bands, :shared] = match.kv_pages
        boundary = {at: np.full(pages, -1, dtype=np.int32) for at in BOUNDARIES}
        if match.depth in boundary:
            boundary[match.depth][:shared] = match.boundary_pages
        # Own pages for what the first forward computes: all but the shared block, and states from `match.depth` on.
        wanted = np.zeros(kv.shape, dtype=bool)
        wanted[: self.tree.config.bands(depth)] = True
        wanted[:bands, :shared] = False
        states = {at: np.arange(pages) >= (shared if at <= match.depth else 0) for at in BOUNDARIES if at <= depth}
        need = int(wanted.sum()), int(sum(mask.sum() for mask in states.values()))
        request = Request(namespace, tuple(tokens), match, kv, boundary)
        evicted = None
        try:
            short = max(0, need[0] - self.kv.num_free), max(0, need[1] - self.boundary.num_free)
            if any(short):
                evicted = tuple(self.tree.evict(*short))
            own = self.kv.alloc(need[0])
            request.own_kv.append(own)
            kv[wanted] = own
            for at, mask in states.items():
                own = self.boundary.alloc(int(mask.sum()))
                request.own_boundary.append(own)
                boundary[at][mask] = own
        except OutOfPagesError:
            self._give_back(request)
            return False, evicted
        self.requests[key] = request
        return True, evicted

    def capture(self, key, depth, ratio):
        """Capture the request's pages, then lock its own prompt and let the first match go."""
        request = self.requests[key]
        result = self.tree.capture(
            request.tokens,
            request.namespace,
            depth=depth,
            kv_pages=request.kv[: self.tree.config.bands(depth)],
            boundary_pages=request.boundary,
            ratio=ratio,
        )
        return (
            result.num_tokens,
            result.new_tokens,
            result.token_layers,
            result.kv_pages.tolist(),
            result.boundary_pages.tolist(),
        )

    def relock(self, key):
        request = self.requests[key]
        match, result = self.match(request.tokens, request.namespace)
        self.tree.lock(match)
        # What only the first match held is no longer the request's to offer.
        old = request.match
        self.tree.unlock(old)
        request.kv[: self.tree.config.bands(old.depth), : old.cut // PAGE] = -1
        if old.depth in request.boundary:
            request.boundary[old.depth][: old.cut // PAGE] = -1
        request.match = match
        return result

    def finish(self, key):
        self._give_back(self.requests.pop(key))

    def _give_back(self, request):
        self.tree.unlock(request.match)
        for pages in request.own_kv:
            self.kv.release(pages)
        for pages in request.own_boundary:
            self.boundary.release(pages)

    def try_lock_stale(self, match):
        try:
            self.tree.lock(match)
        except StaleMatchError:
            return False
        self.tree.unlock(match)
        return True

    def flush(self, namespace, defer):
        try:
            return tuple(self.tree.flush(namespace, defer=defer))
        except TreeInUseError as error:
            return error.locks

    def layout(self):
        """[(node, namespace, prefixes of its pages)] from the parent links alone, not from the walk under test."""
        rows: list = []
        for node in self.tree.nodes():
            tokens: tuple = ()
            above: Node | None = node
            while above is not None:
                tokens = (*above.token_ids.tolist(), *tokens)
                above = above.parent
            rows.append((node, node.namespace, prefixes(tokens)[-node.num_pages :]))
        return rows

    def request_references(self):
        """References that the requests' own pages account for (locks are counted apart): kv, boundary."""
        kv = np.zeros(KV_PAGES, dtype=np.int64)
        boundary = np.zeros(BOUNDARY_PAGES, dtype=np.int64)
        for request in self.requests.values():
            for pages in request.own_kv:
                np.add.at(kv, pages, 1)
            for pages in request.own_boundary:
                np.add.at(boundary, pages, 1)
        return kv, boundary
