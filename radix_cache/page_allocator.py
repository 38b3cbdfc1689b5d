"""Reference-counted page ids of one pool (KV pages and boundary pages have an allocator each)."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError, InvariantError, OutOfPagesError, PageReferenceError

Pages = npt.NDArray[np.int32]
Index = slice | npt.NDArray[np.intp]

# A page's state is one integer, so that an operation reads and writes it once: 4 x references + 2 if the tree holds
# one of them + 1 if the tree would give it up (only together with 2).
_REFERENCE = 4
_HELD = 2
_OFFERED = 1
_FLAGS = _HELD | _OFFERED
_RECLAIMABLE = _REFERENCE | _FLAGS
_NOWHERE = slice(0, 0)


class Block(NamedTuple):
    """Rows of consecutive pages at equal distances: their states, a view of the allocator's own."""

    states: npt.NDArray[np.int32]


Where = Index | Block


class PageOwner(Protocol):
    """A tree that writes references and marks of its pages later than it takes them."""

    def deferred_references(self, pool: "PageAllocator") -> Iterable[Pages]:
        """Page ids, int32; each occurrence is one reference that is not written yet."""

    def settle_marks(self) -> None:
        """Write the offers and withdrawals of pages that the tree has put off."""


class PageAllocator:
    """Hands out the page ids 0 .. num_pages-1 and counts the references to each.

    A page is free when its last reference goes. It owns numbers only, no memory. The order is deterministic: a fresh
    allocator hands out 0, 1, 2, ...; of freed pages, those that were released last come first, in their order. So
    what was allocated together mostly stays together, and operations on a run of consecutive ids are the fast ones.

    Two marks belong to the tree that shares the pool: a page is *held* while the tree has one of its references, and
    *offered* while the tree would give it up under pressure (its node has no lock and no pin).
    `num_reclaimable` counts the pages that would become free then: offered, and the tree's reference is the only one.
    The count is kept here because only the allocator sees every change of a reference count.

    The tree may defer two things (`attach`): a second reference on a page that it holds anyway, until it gives the
    page up, and the mark *offered*, until it is needed. `refcount` and `num_reclaimable` take both into account.
    """

    def __init__(self, num_pages: int):
        if num_pages < 0 or num_pages >= 2**29:
            raise InvalidArgumentError("num_pages", f"must be in [0, 2^29), got {num_pages}")
        self.num_pages = int(num_pages)
        self._stack = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._free = self.num_pages
        self._state = np.zeros(num_pages, dtype=np.int32)
        self._order_bytes = np.arange(num_pages, dtype=np.int32).tobytes()
        self._order = np.frombuffer(self._order_bytes, dtype=np.int32)
        self._fresh_bytes = b""
        self._reclaimable = 0
        self._owners: list[PageOwner] = []

    def attach(self, owner: PageOwner) -> None:
        """Ask `owner`, from now on, what it has deferred."""
        self._owners.append(owner)

    @property
    def num_free(self) -> int:
        """Pages with no reference."""
        return self._free

    @property
    def num_reclaimable(self) -> int:
        """Offered pages whose only reference is the tree's."""
        for owner in self._owners:
            owner.settle_marks()
        return self._reclaimable

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Which pages the tree holds, bool [num_pages]; a copy."""
        return (self._state & _HELD) > 0

    @property
    def offered(self) -> npt.NDArray[np.bool_]:
        """Which pages are marked as offered at the moment, bool [num_pages]; a copy."""
        return (self._state & _OFFERED) > 0

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
        run = self._run(pages) if n else _NOWHERE
        self._state[pages if run is None else run] = _REFERENCE
        return pages

    def acquire(self, pages: npt.ArrayLike) -> None:
        """Add one reference to each page (a page named twice gets two).

        Raises PageReferenceError and changes nothing when a page is foreign or free.
        """
        ids, where = self._select(pages, "acquire")
        if not ids.size:
            return
        state = self._referenced(ids, where, "acquire")
        if self._has_duplicates(where, state):
            np.add.at(self._state, ids, _REFERENCE)
            self._reclaimable -= int(np.count_nonzero(state[np.unique(ids, return_index=True)[1]] == _RECLAIMABLE))
            return
        self._state[where] = state + _REFERENCE
        self._reclaimable -= int(np.count_nonzero(state == _RECLAIMABLE))

    def release(self, pages: npt.ArrayLike) -> int:
        """Drop one reference from each page (two from a page named twice); return how many pages became free by it.

        Raises PageReferenceError and changes nothing when a page is foreign or free, has fewer references than are
        dropped, or would lose the tree's reference.
        """
        ids, where = self._select(pages, "release")
        if not ids.size:
            return 0
        state = self._referenced(ids, where, "release")
        drop: npt.NDArray[Any] | int = _REFERENCE
        if self._has_duplicates(where, state):
            ids, counts = np.unique(ids, return_counts=True)
            where = ids
            state, drop = self._state[ids], counts * _REFERENCE
        after = state - drop
        # With the tree's mark on it a page keeps at least the tree's own reference.
        if int(after.min()) < 0 or ((after < _REFERENCE) & (after > 0)).any():
            self._state[where] = state
            raise PageReferenceError("release: a page is released more often than the caller has references")
        self._state[where] = after
        self._reclaimable += int(np.count_nonzero(after == _RECLAIMABLE))
        return self._return(ids[after == 0])

    def refcount(self, pages: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """References of each page, in the shape of `pages`; 0 means free."""
        _, where = self._select(pages, "refcount")
        counts = self._state // _REFERENCE
        for owner in self._owners:
            for deferred in owner.deferred_references(self):
                np.add.at(counts, deferred, 1)
        return counts[where].reshape(np.shape(pages))

    def intern(self, rows: Sequence[Pages] | Pages, shape: tuple[int, int]) -> tuple[Pages, Where | None]:
        """Page ids as an array [shape] to keep, and where `adopt` finds them; None if one of them is negative.

        `rows` are the rows of `shape`, each in one piece, or one row of all.

        The array is a copy, or, where each row is a run and they start at equal distances, a read-only view of a
        table that all share. Raises PageReferenceError for ids outside of the pool.
        """
        count = len(rows)
        length = rows[0].size if count else 0
        if not length:
            return np.empty(shape, np.int32), _NOWHERE
        start: int = rows[0].item(0)
        stride: int = rows[1].item(0) - start if count > 1 else length
        if start >= 0 and stride >= length and start + (count - 1) * stride + length <= self.num_pages:
            at, table = 4 * start, self._order_bytes
            for row in rows:
                # bytes.startswith takes any buffer and compares it where it lies.
                if not table.startswith(row.data, at):
                    break
                at += 4 * stride
            else:
                strides = (4 * stride if count > 1 else 4 * shape[1], 4)
                kept: Pages = np.ndarray(shape, np.int32, table, 4 * start, strides)
                return kept, Block(np.ndarray(shape, np.int32, self._state, 4 * start, strides))
        kept = np.empty((count, length), np.int32)
        for index, row in enumerate(rows):
            kept[index] = row
        kept = kept.reshape(shape)
        where = kept.reshape(-1).astype(np.intp)
        # Seen as unsigned, a negative id is a large one: one pass checks both ends.
        if int(np.maximum.reduce(where.view(np.uintp))) < self.num_pages:
            return kept, where
        if int(where.min()) < 0:
            return kept, None
        raise PageReferenceError(f"adopt: page ids must be in [0, {self.num_pages}), got up to {where.max()}")

    def adopt(self, pages: npt.ArrayLike, where: Where | None = None, *, offered: bool = False) -> None:
        """Take the tree's reference on pages that have another reference; mark them held (and offered).

        `where`: what `intern` returned for them, if it was asked. Raises PageReferenceError and changes nothing when
        a page is foreign, free, named twice or held already.
        """
        # The caller has a reference as well, so no page becomes reclaimable here.
        add = _REFERENCE + _HELD + (_OFFERED if offered else 0)
        if isinstance(where, Block):
            if self._all_fresh(where.states):
                where.states.fill(_REFERENCE + add)
                return
            where = None
        if where is None:
            ids, where = self._select(pages, "adopt")
        else:
            ids = np.asarray(pages).reshape(-1)
        if not ids.size:
            return
        state = self._state[where]
        fresh = self._all_fresh(state)
        if not fresh:
            state = self._referenced(ids, where, "adopt")
            if int(np.bitwise_or.reduce(state)) & _HELD:
                page = ids[int((state & _HELD).argmax())]
                raise PageReferenceError(f"adopt: page {page} is in the tree already, for other tokens")
        if self._has_duplicates(where, state):
            raise PageReferenceError("adopt: a page is named twice")
        self._state[where] = _REFERENCE + add if fresh else state + add

    def give_up(self, pages: npt.ArrayLike) -> int:
        """Undo `adopt` (all of the pages must be held, each named once); return how many pages became free by it."""
        ids, where = self._select(pages, "give_up")
        if not ids.size:
            return 0
        state = self._state[where]
        if _uniform(state) == _RECLAIMABLE:
            self._reclaimable -= ids.size
            self._state[where] = 0
            return self._return(ids)
        self._reclaimable -= int(np.count_nonzero(state == _RECLAIMABLE))
        after = (state & ~_FLAGS) - _REFERENCE
        self._state[where] = after
        return self._return(ids[after == 0])

    def offer(self, pages: npt.ArrayLike) -> None:
        """Mark held pages, none of them offered, as ones that the tree would give up under pressure."""
        _, where = self._select(pages, "offer")
        state = self._state[where] | _OFFERED
        self._state[where] = state
        self._reclaimable += int(np.count_nonzero(state == _RECLAIMABLE))

    def withdraw(self, pages: npt.ArrayLike) -> None:
        """Undo `offer` (all of the pages must be offered)."""
        _, where = self._select(pages, "withdraw")
        state = self._state[where]
        self._reclaimable -= int(np.count_nonzero(state == _RECLAIMABLE))
        self._state[where] = state & ~_OFFERED

    def check_invariants(self) -> None:
        """Raise InvariantError unless free list, reference counts, marks and the reclaimable count agree."""
        free = self._stack[: self._free]
        refs = self._state // _REFERENCE
        if np.unique(free).size != self._free:
            raise InvariantError("a page is twice in the free list")
        if self._free and self._state[free].any():
            raise InvariantError("a page in the free list has references or marks")
        if (self._state < 0).any():
            raise InvariantError("a negative reference count")
        if int(np.count_nonzero(refs == 0)) != self._free:
            raise InvariantError(f"{np.count_nonzero(refs == 0)} pages without references, {self._free} free")
        if (self.offered & ~self.held).any():
            raise InvariantError("a page is offered that the tree does not hold")
        reclaimable = int(np.count_nonzero(self.offered & (refs == 1)))
        if reclaimable != self._reclaimable:
            raise InvariantError(f"{reclaimable} pages are reclaimable, the count says {self._reclaimable}")

    def _all_fresh(self, state: npt.NDArray[np.int32]) -> bool:
        """Whether these pages all have one reference, and it is not the tree's: a comparison of bytes is fastest."""
        if len(self._fresh_bytes) < 4 * state.size:
            self._fresh_bytes = np.full(2 * state.size, _REFERENCE, dtype=np.int32).tobytes()
        return self._fresh_bytes.startswith(state.tobytes())

    def _run(self, ids: Pages) -> slice | None:
        """The slice that flat, contiguous, not empty int32 `ids` are, if they are consecutive pages of the pool."""
        first = ids.item(0)
        stop = first + ids.size
        if first < 0 or stop > self.num_pages or ids.item(-1) != stop - 1:
            return None
        # bytes.startswith takes any buffer and compares it where it lies.
        return slice(first, stop) if self._order_bytes.startswith(ids.data, 4 * first) else None

    def _select(self, pages: npt.ArrayLike, what: str) -> tuple[npt.NDArray[Any], Index]:
        """The ids, flat, and an index for them: a slice where they are a run of consecutive ids, as mostly they are.

        Raises PageReferenceError for ids outside of the pool.
        """
        array = np.asarray(pages)
        ids = array if array.ndim == 1 else array.reshape(-1)
        if not ids.size:
            return ids, _NOWHERE
        if ids.dtype == np.int32:
            run = self._run(ids if ids.flags.c_contiguous else ids.copy())
            if run is not None:
                return ids, run
        elif ids.dtype.kind not in "iu":
            raise PageReferenceError(f"{what}: page ids must be integers, got {array.dtype}")
        # numpy converts int32 indices at every use; once is cheaper.
        ids = ids.astype(np.intp)
        # Seen as unsigned, a negative id is a large one: one pass checks both ends.
        if int(ids.view(np.uintp).max()) >= self.num_pages:
            raise PageReferenceError(f"{what}: page ids must be in [0, {self.num_pages}), got {ids.min()}..{ids.max()}")
        return ids, ids

    def _referenced(self, ids: npt.NDArray[Any], where: Index, what: str) -> npt.NDArray[np.int32]:
        state = self._state[where]
        if int(state.min()) < _REFERENCE:
            raise PageReferenceError(f"{what}: page {ids[int(state.argmin())]} has no reference")
        return state.copy() if isinstance(where, slice) else state

    def _has_duplicates(self, where: Index, state: npt.NDArray[np.int32]) -> bool:
        """Whether a page occurs twice: linear, without a sort; `state` is what the pages have.

        Each page is numbered in place; a page that occurs twice shows its last number at its first occurrence. When
        none does, the caller has to write the pages' state next; else it is put back here.
        """
        if isinstance(where, slice):
            return False
        if where.size > self.num_pages:
            return True
        self._state[where] = self._order[: where.size]
        if self._order_bytes.startswith(self._state[where].data):
            return False
        self._state[where] = state
        return True

    def _return(self, freed: npt.NDArray[Any]) -> int:
        # Backwards, so that a run comes out of `alloc` in ascending order again.
        self._stack[self._free : self._free + freed.size] = freed[::-1]
        self._free += int(freed.size)
        return int(freed.size)


def _uniform(state: npt.NDArray[np.int32]) -> int:
    """The state that all of these pages (at least one) have; -1 when they differ."""
    first: int = state.item(0)
    same = state.tobytes() == first.to_bytes(4, sys.byteorder, signed=True) * state.size
    return first if same else -1
