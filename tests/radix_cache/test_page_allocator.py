"""The allocator: counts, order, and refusals that change nothing."""

import numpy as np
import pytest

from shoal.radix_cache.errors import InvalidArgumentError, OutOfPagesError, PageReferenceError
from shoal.radix_cache.page_allocator import PageAllocator


def state(pool):
    return pool.num_free, pool.num_reclaimable, pool.refcount(np.arange(pool.num_pages)).tolist()


def test_order_is_ascending_and_what_was_freed_last_comes_first():
    pool = PageAllocator(5)
    first = pool.alloc(3)
    assert first.tolist() == [0, 1, 2]
    assert first.dtype == np.int32
    assert pool.release(first[[0, 2]]) == 2
    assert pool.alloc(3).tolist() == [0, 2, 3]
    pool.check_invariants()


def test_references():
    pool = PageAllocator(4)
    pages = pool.alloc(2)
    pool.acquire(pages)
    assert pool.release(pages) == 0
    assert pool.release(pages) == 2
    assert pool.num_free == 4
    pool.check_invariants()


def test_pages_named_twice_count_twice():
    pool = PageAllocator(4)
    page = pool.alloc(1)[0]
    pool.acquire([page, page])
    assert pool.refcount([page]).tolist() == [3]
    assert pool.release([page, page, page]) == 1
    pool.check_invariants()


@pytest.mark.parametrize("pages", [[3], [0, 3], [-1], [4], [0, 0], [0.5]])
def test_refused_releases_change_nothing(pages):
    pool = PageAllocator(4)
    pool.alloc(2)
    before = state(pool)
    with pytest.raises(PageReferenceError):
        pool.release(pages)
    assert state(pool) == before
    pool.check_invariants()


@pytest.mark.parametrize("pages", [[3], [0, 3], [-1], [4]])
def test_refused_acquires_change_nothing(pages):
    pool = PageAllocator(4)
    pool.alloc(2)
    before = state(pool)
    for operation in (pool.acquire, pool.adopt):
        with pytest.raises(PageReferenceError):
            operation(pages)
        assert state(pool) == before


def test_the_trees_reference_cannot_be_released_by_others():
    pool = PageAllocator(4)
    pages = pool.alloc(2)
    pool.adopt(pages, offered=True)
    assert pool.num_reclaimable == 0
    pool.release(pages)
    assert pool.num_reclaimable == 2
    before = state(pool)
    for wrong in (pages, pages[:1], [0, 0]):
        with pytest.raises(PageReferenceError):
            pool.release(wrong)
        assert state(pool) == before
    with pytest.raises(PageReferenceError, match="already"):
        pool.adopt(pages)
    assert pool.give_up(pages) == 2
    pool.check_invariants()


def test_adopting_a_page_twice_in_one_call_is_refused():
    pool = PageAllocator(4)
    page = pool.alloc(1)[0]
    before = state(pool)
    with pytest.raises(PageReferenceError, match="twice"):
        pool.adopt([page, page])
    assert state(pool) == before


def test_reclaimable_follows_every_change():
    pool = PageAllocator(4)
    pages = pool.alloc(3)
    pool.adopt(pages)
    pool.release(pages)
    assert pool.num_reclaimable == 0
    pool.offer(pages)
    assert pool.num_reclaimable == 3
    pool.acquire(pages[:2])
    assert pool.num_reclaimable == 1
    pool.acquire(np.repeat(pages[2:], 2))
    assert pool.num_reclaimable == 0
    pool.release(np.repeat(pages[2:], 2))
    pool.withdraw(pages[2:])
    assert pool.num_reclaimable == 0
    pool.release(pages[:2])
    assert pool.num_reclaimable == 2
    pool.check_invariants()
    pool.give_up(pages)
    assert state(pool) == (4, 0, [0, 0, 0, 0])


def test_sizes():
    with pytest.raises(InvalidArgumentError):
        PageAllocator(-1)
    empty = PageAllocator(0)
    assert empty.alloc(0).size == 0
    assert empty.release([]) == 0
    with pytest.raises(OutOfPagesError):
        empty.alloc(1)
    with pytest.raises(InvalidArgumentError):
        empty.alloc(-1)
    assert PageAllocator(2).refcount([[0, 1]]).tolist() == [[0, 0]]
