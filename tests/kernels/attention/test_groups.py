"""The plan of shared-prefix attention: who is grouped, and that its items cover every group's work once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.attention.groups import BLOCK_ROWS, SharedPlan, item_capacity, plan_shared_groups

PAGE = 16


def plan_of(tables: list[list[int]], queries: int = 32, heads: int = 4, kv_heads: int = 4, **options) -> SharedPlan:
    """One band; slots in reverse; every request has 5 keys beyond its whole pages."""
    width = max(map(len, tables)) + 1
    array = np.full((len(tables), 1, width), 7, np.int32)
    for row, table in zip(array[::-1], tables, strict=True):
        row[0, : len(table)] = table
    slots = list(range(len(tables)))[::-1]
    starts = np.arange(len(tables) + 1) * queries
    lengths = [len(table) * PAGE + 5 for table in tables]
    return plan_shared_groups(array, slots, starts.tolist(), lengths, PAGE, heads, kv_heads, **options)


def request(shared: int, number: int, own: int = 3, group: int = 0) -> list[int]:
    return [10_000 * (group + 1) + i for i in range(shared)] + [1_000_000 + number * 100 + i for i in range(own)]


def test_requests_with_common_first_pages_are_grouped():
    plan = plan_of([request(20, n) for n in range(4)] + [request(30, 9, group=1)])
    assert plan.groups == ((0, (0, 1, 2, 3), 320),)
    assert plan.first_keys.tolist() == [[320, 320, 320, 320, 0]]
    assert (plan.num_parts > 0).tolist() == [[True] * 4 + [False]]


def test_few_sharers_and_short_prefixes_are_left_alone():
    assert plan_of([request(20, n) for n in range(3)]).groups == ()
    assert plan_of([request(20, n) for n in range(3)], min_sharers=3).groups != ()
    assert plan_of([request(15, n) for n in range(8)]).groups == ()


def test_pages_past_the_keys_do_not_count():
    """The 5 keys past the whole pages, and the padding that is the same for all, are nobody's prefix."""
    assert plan_of([[1]] * 8, min_keys=1).groups == ((0, tuple(range(8)), PAGE),)


def test_of_nested_prefixes_the_better_grouping_is_taken():
    long = [request(20, n)[:20] + request(40, n, group=1) for n in range(6)]
    assert plan_of([*long, *(request(20, n) for n in range(10, 12))]).groups == ((0, tuple(range(6)), 960),)
    plan = plan_of([*long[:4], *(request(20, n) for n in range(10, 40))], min_sharers=2)
    assert plan.groups == ((0, tuple(range(34)), 320),)


def test_requests_without_queries_are_left_out():
    tables = np.tile(np.arange(40, dtype=np.int32), (5, 1, 1))
    plan = plan_shared_groups(tables, range(5), [0, 8, 8, 16, 24, 32], [640] * 5, PAGE, 2, 2)
    assert plan.groups == ((0, (0, 2, 3, 4), 640),)
    assert plan.rows.tolist() == [list(range(32))]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_items_cover_each_groups_rows_and_keys_once(data):
    requests = data.draw(st.integers(1, 40))
    tables = [
        request(data.draw(st.integers(0, 60)), n, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 2)))
        for n in range(requests)
    ]
    tables = [table or [5] for table in tables]
    queries, heads, kv_heads = data.draw(st.sampled_from([(32, 4, 4), (33, 28, 4), (1, 8, 8)]))
    sharers, sms = data.draw(st.integers(2, 5)), data.draw(st.sampled_from([1, 16, 132]))
    plan = plan_of(tables, queries, heads, kv_heads, min_sharers=sharers, min_keys=32, sms=sms)
    members = [r for _, group, _ in plan.groups for r in group]
    assert len(members) == len(set(members))
    items = [tuple(item) for item in plan.items[0].tolist() if item[1]]
    assert len(items) <= item_capacity(requests, requests * queries, heads // kv_heads, kv_heads, sms)
    assert len(items) == len(set(items))
    covered: dict[int, set[tuple[int, int, int]]] = {}
    for begin, count, tile, slot, first, last, part, _ in items:
        owner = requests - 1 - slot
        (group, keys) = next((g, k) for _, g, k in plan.groups if owner in g)
        rows = [r * queries + i for r in group for i in range(queries)]
        assert plan.rows[0, begin : begin + count].tolist() == rows
        assert tile * BLOCK_ROWS < count * (heads // kv_heads)
        assert first % PAGE == 0
        assert 0 <= first < last <= keys
        covered.setdefault(group[0], set()).add((tile, part, last - first))
        for r in group:
            assert tables[r][: keys // PAGE] == tables[owner][: keys // PAGE]
            assert plan.first_keys[0, r] == keys
            assert part < plan.num_parts[0, r]
    for _, group, keys in plan.groups:
        tiles = -(-len(group) * queries * (heads // kv_heads) // BLOCK_ROWS)
        assert sum(size for _, _, size in covered[group[0]]) == keys * tiles
        assert len(covered[group[0]]) == tiles * plan.num_parts[0, group[0]]
        assert len(group) >= sharers
    assert plan.first_keys[0, [r for r in range(requests) if r not in members]].sum() == 0


def test_few_groups_are_cut_into_parts_and_many_are_not():
    few = plan_of([request(128, n) for n in range(4)])
    assert few.num_parts.max() == 8
    many = plan_of([request(128, n) for n in range(64)], heads=32, kv_heads=32)
    assert many.num_parts.max() == 1
    assert many.items.shape[1] == 16


@pytest.mark.parametrize("requests", [1, 3, 64])
def test_capacity_holds_the_largest_plans(requests):
    plan = plan_of([[1, 2, 3, 4]] * requests, min_sharers=2, min_keys=16, sms=1000)
    assert plan.items.shape[1] <= item_capacity(requests, requests * 32, 1, 4, 1000)
