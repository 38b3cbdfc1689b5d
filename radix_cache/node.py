"""A node of the radix tree, and the namespace that it belongs to."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOKEN_BYTES = 4

Pages = npt.NDArray[np.int32]


class Namespace(NamedTuple):
    """Two requests share cached prefixes only when their namespaces are equal.

    `salt` is the client's `cache_salt`; `capture` the kind of forward that the KVs come from ("first", "alone",
    "final"): KVs from different kinds of context must not be mixed along one path.
    """

    salt: str = ""
    capture: str = "first"


class Node:
    """A run of page-aligned tokens below a parent, with the pages that hold their KVs.

    The arrays are never written after they were set, only replaced: matches may hold views of them.

    Attributes:
        namespace: the namespace of the tree that it hangs in.
        tokens: its token ids, int32 in machine order (bytes compare and hash at memory speed; 4 bytes a token).
        num_pages: len(tokens) / page_size.
        end: tokens from the root to its end; a split changes it for neither part.
        parent: the node above; None for a root and for a node that was dropped.
        children: by the bytes of a child's first page of tokens.
        child_levels: number of children at each level, so that "has a child as deep as itself" needs no scan; None
            for a node that never had children.
        level: index of its valid depth in `TreeConfig.levels`; never above the parent's.
        kv: int32 [bands at its level, num_pages]; None in a tree without page ids.
        boundary: int32 [stored boundary depths up to its level, num_pages]; None likewise.
        ratio: prefix ratio at the capture that filled its deepest band.
        drifted: an audit lowered it; only a strictly better ratio may raise it again.
        last_used: the tree's counter at its last use.
        age: the eviction policy's clock at its last use.
        hits: how often a request stopped at each level of it; the sum is the number of uses. May be shared while zero.
        locks: matches locked at this node or below; pins: likewise for pinned prefixes.
        offered: whether its pages are marked as offered in their allocators (which lags behind locks and pins).
        generation: grows when pages were given up, so that a stale match is noticed.
        ticket: number of its valid entry in the eviction queue; -1 for none.
    """

    __slots__ = (
        "age",
        "boundary",
        "child_levels",
        "children",
        "drifted",
        "end",
        "generation",
        "hits",
        "kv",
        "last_used",
        "level",
        "locks",
        "namespace",
        "num_pages",
        "offered",
        "parent",
        "pins",
        "ratio",
        "ticket",
        "tokens",
    )

    def __init__(
        self, namespace: Namespace, tokens: bytes, num_pages: int, parent: "Node | None", level: int, hits: list[int]
    ):
        self.namespace = namespace
        self.tokens = tokens
        self.num_pages = num_pages
        self.end: int = len(tokens) // TOKEN_BYTES + (0 if parent is None else parent.end)
        self.parent = parent
        self.children: dict[bytes, Node] = {}
        self.child_levels: list[int] | None = None
        self.level = level
        self.kv: Pages | None = None
        self.boundary: Pages | None = None
        self.ratio = 0.0
        self.drifted = False
        self.last_used = 0
        self.age = 0.0
        self.hits = hits
        self.locks = 0
        self.pins = 0
        self.offered = True
        self.generation = 0
        self.ticket = -1

    @property
    def num_tokens(self) -> int:
        """Tokens of this node alone."""
        return len(self.tokens) // TOKEN_BYTES

    @property
    def is_root(self) -> bool:
        """Roots hold no tokens; every other node holds at least a page."""
        return not self.tokens

    @property
    def in_use(self) -> bool:
        """Locked or pinned: neither evicted nor trimmed under pressure."""
        return self.locks > 0 or self.pins > 0

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """Its tokens as int32 [num_tokens], a read-only view."""
        return np.frombuffer(self.tokens, dtype=np.int32)

    def uses(self, level: int) -> int:
        """How many requests used it at `level` or deeper."""
        return sum(self.hits[level:])

    def count_child(self, level: int, change: int) -> None:
        """Keep `child_levels` right when a child comes to (+1) or leaves (-1) `level`."""
        if self.child_levels is None:
            self.child_levels = [0] * len(self.hits)
        self.child_levels[level] += change

    def split(self, pages: int, page_bytes: int) -> "Node":
        """Cut after `pages` pages; return the NEW node, which is the UPPER part.

        This node keeps the lower part, its children and its place in the eviction queue, so handles that running
        requests hold stay valid: a walk up from them passes through both parts. Locks, pins, depth, ratio and
        counters are copied, hence stay right for both parts.
        """
        assert 0 < pages < self.num_pages
        parent = self.parent
        assert parent is not None
        cut = pages * page_bytes
        upper = Node(self.namespace, self.tokens[:cut], pages, parent, self.level, self.hits.copy())
        upper.ratio = self.ratio
        upper.drifted = self.drifted
        upper.last_used = self.last_used
        upper.age = self.age
        upper.locks = self.locks
        upper.pins = self.pins
        upper.offered = self.offered
        upper.generation = self.generation
        if self.kv is not None:
            upper.kv = self.kv[:, :pages].copy()
            self.kv = self.kv[:, pages:].copy()
        if self.boundary is not None:
            upper.boundary = self.boundary[:, :pages].copy()
            self.boundary = self.boundary[:, pages:].copy()
        self.tokens = self.tokens[cut:]
        self.num_pages -= pages
        parent.children[upper.tokens[:page_bytes]] = upper
        upper.children[self.tokens[:page_bytes]] = self
        upper.count_child(self.level, 1)
        self.parent = upper
        return upper
