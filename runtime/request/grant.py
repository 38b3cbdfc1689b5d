"""Memory of an admitted request, and the prefix that it reuses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...radix_cache.match import Match

Pages = npt.NDArray[np.int32]
NO_PAGES: Pages = np.empty(0, np.int32)


@dataclass(slots=True, eq=False, kw_only=True)
class Grant:
    """Memory of a request from admission to its end. `Memory.release` takes it back.

    Attributes:
        match: the cached prefix that it reuses, locked; None in modes that share nothing.
        page_table: int32 [bands, pages], shared pages and own ones; `ReusePlanner.grow` lengthens it.
        own_kv, own_boundary: pages that it owns a reference of.
        tokens: prompt and canvas tokens at admission: the denominator of its prefix ratios.
        cut, depth: another request's tokens [0, cut) are reused in the layers below `depth`.
        capture_tokens, capture_depth: what its first forward captures; 0 tokens: nothing.
        boundary_table: pages for the boundary states at each depth captured.
        capture_table: int32 [bands, pages], the KV pages offered to the tree, where some are copies; None: the
            request's own.
        refresh_interval: NFE between prefix refreshes; None: its first forward is the only one.
        join, join_depth: what the request reuses of its own from its first forward on: tokens [0, join) stay as they
            are in the layers below `join_depth`.
        settled: positions [join, settled) keep their KVs at a block start of the schedule `settled`.
        settled_starts: block starts since the latest one that computed everything behind the join.
        resume: boundary pages of [0, join) at `join_depth`, for a prefix refresh; None: there is none.
    """

    match: Match | None = None
    page_table: Pages
    capture_table: Pages | None = None
    own_kv: Pages
    tokens: int
    own_boundary: Pages = field(default_factory=lambda: NO_PAGES)
    cut: int = 0
    depth: int = 0
    capture_tokens: int = 0
    capture_depth: int = 0
    boundary_table: dict[int, Pages] = field(default_factory=dict)
    refresh_interval: int | None = None
    join: int = 0
    join_depth: int = 0
    settled: int = 0
    settled_starts: int = 0
    resume: Pages | None = None
