"""The attention over pages and the write to them, against dense float64 formulas; pages of others hold NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shoal.kernels.attention.dense import paged_attention_reference, write_kv_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
HEADS = [(1, 1), (4, 4), (6, 2), (28, 4), (5, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One request, head by head, in float64."""
    group = q.shape[1] // k.shape[1]
    outputs = []
    for head in range(q.shape[1]):
        keys, values = k[:, head // group].double(), v[:, head // group].double()
        scores = q[:, head].double() @ keys.T / math.sqrt(q.shape[2])
        outputs.append(scores.softmax(1) @ values)
    return torch.stack(outputs, 1)


def scattered(lengths: list[int], page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int):
    """Keys and values of requests in pages at random places of a pool; whatever is not theirs is NaN."""
    counts = [-(-length // page_size) for length in lengths]
    pool = torch.full((sum(counts) + 5, 2, page_size, kv_heads, head_dim), math.nan, dtype=dtype)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    tables, keys, values, begin = [], [], [], 0
    for number, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table = order[begin : begin + count]
        begin += count
        k = random(length, kv_heads, head_dim, seed=seed + 2 * number + 1).to(dtype)
        v = random(length, kv_heads, head_dim, seed=seed + 2 * number + 2).to(dtype)
        positions = torch.arange(length)
        write_kv_reference(pool, k, v, table[positions // page_size], positions % page_size)
        tables.append(table)
        keys.append(k)
        values.append(v)
    return pool, tables, keys, values


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_attention_over_scattered_pages_is_dense_attention(heads, kv_heads, page_size, dtype):
    key_lengths, query_lengths = [1, 41, 16, 123, 33], [1, 9, 16, 123, 1]
    pool, tables, keys, values = scattered(key_lengths, page_size, kv_heads, 10, dtype, seed=3)
    q = random(sum(query_lengths), heads, 10, seed=99).to(dtype)
    found = paged_attention_reference(q, pool, tables, query_lengths, key_lengths)
    assert found.dtype == dtype
    assert found.shape == q.shape
    start = 0
    for length, k, v in zip(query_lengths, keys, values, strict=True):
        expected = dense(q[start : start + length], k, v)
        torch.testing.assert_close(
            found[start : start + length].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        start += length


def test_only_the_keys_that_are_named_are_seen():
    """With fewer keys than the pages hold, the rest of the pages and of the table does not matter."""
    pool, (table,), (k,), (v,) = scattered([20], 4, 2, 8, torch.float32, seed=1)
    q = random(3, 4, 8, seed=2)
    for keys in (1, 4, 7, 20):
        found = paged_attention_reference(q, pool, [table[: -(-keys // 4)]], [3], [keys])
        torch.testing.assert_close(found.double(), dense(q, k[:keys], v[:keys]), rtol=2e-6, atol=2e-6)


def test_queries_may_be_views_with_strides():
    """As the decoder hands them over: a slice of the heads of q, k and v in one tensor."""
    pool, (table,), (k,), (v,) = scattered([20], 4, 2, 8, torch.float32, seed=1)
    qkv = random(5, 8, 8, seed=2)
    found = paged_attention_reference(qkv[:, :4], pool, [table], [5], [20])
    torch.testing.assert_close(found.double(), dense(qkv[:, :4].contiguous(), k, v), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_the_bits_of_a_request_do_not_depend_on_the_others(heads, kv_heads):
    lengths = [41, 7, 123]
    pool, tables, _, _ = scattered(lengths, 4, kv_heads, 16, torch.float32, seed=5)
    q = random(sum(lengths), heads, 16, seed=6)
    together = paged_attention_reference(q, pool, tables, lengths, lengths)
    start = 0
    for table, length in zip(tables, lengths, strict=True):
        alone = paged_attention_reference(q[start : start + length], pool, [table], [length], [length])
        assert torch.equal(alone, together[start : start + length])
        start += length


def test_attention_follows_the_page_table_of_each_request():
    """Two requests with the same prefix pages and tails of their own."""
    pool, (table, other), (k, other_k), (v, other_v) = scattered([16, 9], 4, 2, 8, torch.float32, seed=1)
    shared = torch.cat([table[:2], other])
    q = random(2, 2, 8, seed=2)
    found = paged_attention_reference(q, pool, [table, shared], [1, 1], [16, 17])
    expected = dense(q[1:], torch.cat([k[:8], other_k]), torch.cat([v[:8], other_v]))
    torch.testing.assert_close(found[:1].double(), dense(q[:1], k, v), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found[1:].double(), expected, rtol=2e-6, atol=2e-6)


def test_no_request_gives_nothing():
    pool = torch.full((3, 2, 4, 2, 8), math.nan)
    assert paged_attention_reference(torch.empty(0, 4, 8), pool, [], [], []).shape == (0, 4, 8)


def test_write_changes_what_it_names_and_nothing_else():
    pool = random(6, 3, 2, 4, 2, 8)  # three layers; a view of the middle one is written
    before = pool.clone()
    k, v = random(3, 2, 8, seed=1), random(3, 2, 8, seed=2)
    pages, offsets = torch.tensor([4, 1, 4]), torch.tensor([0, 3, 2])
    write_kv_reference(pool[:, 1], k, v, pages, offsets)
    for row, (page, offset) in enumerate(zip(pages, offsets, strict=True)):
        assert torch.equal(pool[page, 1, 0, offset], k[row])
        assert torch.equal(pool[page, 1, 1, offset], v[row])
        before[page, 1, 0, offset], before[page, 1, 1, offset] = k[row], v[row]
    assert torch.equal(pool, before)


def test_write_takes_views_with_strides():
    pool = torch.zeros(2, 2, 4, 2, 8)
    qkv = random(4, 6, 8)
    write_kv_reference(pool, qkv[:, 2:4], qkv[:, 4:], torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert torch.equal(pool[0, 0], qkv[:, 2:4])
    assert torch.equal(pool[0, 1], qkv[:, 4:])
