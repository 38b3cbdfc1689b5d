"""Reference-counted page ids of one pool (KV pages and boundary pages have an allocator each)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError, InvariantError, OutOfPagesError, PageReferenceError

Pages = npt.NDArray[np.int32]


class PageAllocator:
    """Hands out the page ids 0 .. num_pages-1 and counts who refers to each.

    A page is free when its last reference goes. It owns numbers only, no memory. The order is deterministic: a fresh
    allocator hands out 0, 1, 2, ...; freed pages are handed out again last in, first out.

    The tree *offers* the pages of its nodes that nobody has locked; `num_reclaimable` counts those that would become
    free if the tree let go of them (offered, and the tree's reference is the only one). It is kept here because only
    the allocator sees every change of a reference count.
    """

    def __init__(self, num_pages: int):
        if num_pages < 0 or num_pages >= 2**31:
            raise InvalidArgumentError("num_pages", f"must be in [0, 2^31), got {num_pages}")
        self.num_pages = int(num_pages)
        self._stack = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._free = self.num_pages
        self._refs = np.zeros(num_pages, dtype=np.int32)
        self._offered = np.zeros(num_pages, dtype=np.bool_)
        self._last_seen = np.zeros(num_pages, dtype=np.int32)
        self._reclaimable = 0

    @property
    def num_free(self) -> int:
        """Pages with no reference."""
        return self._free

    @property
    def num_reclaimable(self) -> int:
        """Offered pages whose only reference is the offerer's."""
        return self._reclaimable

    @property
    def offered(self) -> npt.NDArray[np.bool_]:
        """Which pages are offered, bool [num_pages]; a copy."""
        return self._offered.copy()

    def alloc(self, n: int) -> Pages:
        """Return `n` free pages (int32, [n]) with one reference each, the caller's.

        Raises OutOfPagesError and changes nothing when fewer are free.
        """
        if n < 0:
            raise InvalidArgumentError("n", f"must be at least 0, got {n}")
        if n > self._free:
            raise OutOfPagesError(n, self._free)
        self._free -= n
        pages = self._stack[self._free : self._free + n][::-1].copy()
        self._refs[pages] = 1
        return pages

    def acquire(self, pages: npt.ArrayLike) -> None:
        """Add one reference to each page (a page named twice gets two). Every page must have one already."""
        ids, refs, twice = self._held(pages, "acquire")
        if not ids.size:
            return
        if twice:
            for page in ids:
                self.acquire(np.array([page]))
            return
        self._refs[ids] = refs + 1
        self._reclaimable -= int(np.count_nonzero(self._offered[ids] & (refs == 1)))

    def release(self, pages: npt.ArrayLike) -> int:
        """Drop one reference from each page; return how many pages became free by it.

        Raises PageReferenceError and changes nothing when a page is foreign or has fewer references than are dropped.
        """
        ids, refs, twice = self._held(pages, "release")
        if not ids.size:
            return 0
        if twice:
            unique, counts = np.unique(ids, return_counts=True)
            short = unique[self._refs[unique] < counts]
            if short.size:
                raise PageReferenceError(f"release: page {short[0]} is named more often than it has references")
            return sum(self.release(np.array([page])) for page in ids)
        last = refs == 1
        offered = self._offered[ids]
        if (last & offered).any():
            raise PageReferenceError("release: a page that the tree holds would become free under it")
        self._refs[ids] = refs - 1
        self._reclaimable += int(np.count_nonzero(offered & (refs == 2)))
        freed = ids[last]
        self._stack[self._free : self._free + freed.size] = freed
        self._free += int(freed.size)
        return int(freed.size)

    def refcount(self, pages: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """References of each page, in the shape of `pages`; 0 means free."""
        ids = np.asarray(pages)
        self._check_range(ids.reshape(-1), "refcount")
        return self._refs[ids]

    def offer(self, pages: npt.ArrayLike) -> None:
        """Mark pages (referenced, none offered yet) as ones that their holder would give up under pressure."""
        ids = np.asarray(pages).reshape(-1)
        self._offered[ids] = True
        self._reclaimable += int(np.count_nonzero(self._refs[ids] == 1))

    def withdraw(self, pages: npt.ArrayLike) -> None:
        """Undo `offer` (all of the pages must be offered)."""
        ids = np.asarray(pages).reshape(-1)
        self._offered[ids] = False
        self._reclaimable -= int(np.count_nonzero(self._refs[ids] == 1))

    def has_duplicates(self, ids: npt.NDArray[Any]) -> bool:
        """Whether a page occurs twice in `ids` (flat, all in range): linear, without a sort."""
        order = np.arange(ids.size, dtype=np.int32)
        self._last_seen[ids] = order
        return not bool((self._last_seen[ids] == order).all())

    def check_invariants(self) -> None:
        """Raise InvariantError unless free list, reference counts and the reclaimable count agree."""
        free = self._stack[: self._free]
        if np.unique(free).size != self._free:
            raise InvariantError("a page is twice in the free list")
        if self._free and self._refs[free].any():
            raise InvariantError("a page in the free list has references")
        if (self._refs < 0).any():
            raise InvariantError("a negative reference count")
        if int(np.count_nonzero(self._refs == 0)) != self._free:
            raise InvariantError(f"{np.count_nonzero(self._refs == 0)} pages without references, {self._free} free")
        reclaimable = int(np.count_nonzero(self._offered & (self._refs == 1)))
        if reclaimable != self._reclaimable:
            raise InvariantError(f"{reclaimable} pages are reclaimable, the count says {self._reclaimable}")
        if (self._offered & (self._refs == 0)).any():
            raise InvariantError("a free page is offered")

    def _check_range(self, ids: npt.NDArray[Any], what: str) -> None:
        if not ids.size:
            return
        if ids.dtype.kind not in "iu":
            raise PageReferenceError(f"{what}: page ids must be integers, got {ids.dtype}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.num_pages:
            raise PageReferenceError(f"{what}: page ids must be in [0, {self.num_pages}), got {ids.min()}..{ids.max()}")

    def _held(self, pages: npt.ArrayLike, what: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], bool]:
        ids = np.asarray(pages).reshape(-1)
        self._check_range(ids, what)
        if not ids.size:
            return ids, self._refs[:0], False
        refs = self._refs[ids]
        if int(refs.min()) < 1:
            raise PageReferenceError(f"{what}: page {ids[int(refs.argmin())]} has no reference")
        return ids, refs, self.has_duplicates(ids)
