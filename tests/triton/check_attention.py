"""Paged attention and the merge of its parts, against dense attention in float64."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.kernels import attention_merge_triton, paged_attention_triton
from shoal.kernels.attention_merge_triton import merge_state_reference, merge_states_triton
from shoal.kernels.paged_attention_triton import AttentionTiling, PagedBatch, split_count

from .checks import DEVICE, DTYPES, Recorder, close, far, fresh

pytestmark = pytest.mark.usefixtures("poisoned")

NOWHERE = 2**30
"""A page id that no pool has."""


def paged(layout: str, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """An empty layer of a pool: one of several layers of a page, or head-major with dimensions that are not dense."""
    if layout == "layers":
        return torch.full((pages, 3, 2, page_size, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)[:, 1]
    whole = torch.full((2, kv_heads, pages, head_dim, page_size), torch.nan, dtype=dtype, device=DEVICE)
    return whole.permute(2, 0, 4, 1, 3)


class World:
    """A batch with its pages scattered over a pool that is NaN wherever no key of the batch is."""

    def __init__(
        self, queries: list[int], keys: list[int], heads: int, kv_heads: int, head_dim: int, page_size: int = 16,
        layout: str = "layers", dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        self.queries, self.keys, self.dtype = queries, keys, dtype
        counts = [-(-length // page_size) for length in keys]
        self.pool = paged(layout, sum(counts) + 3, page_size, kv_heads, head_dim, dtype)
        ids = torch.randperm(sum(counts) + 3)[: sum(counts)].to(torch.int32)
        self.page_tables = list(ids.split(counts))
        self.q = fresh(sum(queries), heads + 2, head_dim, dtype=dtype)[:, 1:-1]
        self.kv = [fresh(2, length, kv_heads, head_dim, dtype=dtype) for length in keys]
        tables = torch.full((len(keys), max(1, *counts) + 1), NOWHERE, dtype=torch.int32)
        for row, table, kv in zip(tables, self.page_tables, self.kv, strict=True):
            row[: len(table)] = table
            for at in range(kv.shape[1]):
                self.pool[table[at // page_size], :, at % page_size] = kv[:, at]
        starts = torch.tensor([0, *queries]).cumsum(0).to(DEVICE, torch.int32)
        lengths = torch.tensor(keys, dtype=torch.int32, device=DEVICE)
        self.batch = PagedBatch(tables.to(DEVICE), starts, lengths)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        outs, lses = [], []
        for q, kv in zip(self.q.double().cpu().split(self.queries), self.kv, strict=True):
            group = q.shape[1] // kv.shape[2]
            k, v = kv.double().cpu().repeat_interleave(group, dim=2)
            scores = torch.einsum("qhd,khd->qhk", q, k) / math.sqrt(q.shape[-1])
            lses.append(scores.logsumexp(-1))
            outs.append(torch.einsum("qhk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(outs), torch.cat(lses)

    def run(self, tiling: AttentionTiling | None) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.full(self.q.shape, torch.nan, dtype=self.dtype, device=DEVICE)
        found, lse = paged_attention_triton.paged_attention_triton(self.q, self.pool, self.batch, tiling, out)
        assert found is out
        return out, lse

    def check(self, tiling: AttentionTiling | None) -> None:
        for found, expected in zip(self.run(tiling), self.dense(), strict=True):
            close(found, expected, self.dtype)


@pytest.fixture
def launches(monkeypatch):
    attention = Recorder(paged_attention_triton._paged_attention_kernel)
    merge = Recorder(attention_merge_triton._merge_kernel)
    monkeypatch.setattr(paged_attention_triton, "_paged_attention_kernel", attention)
    monkeypatch.setattr(attention_merge_triton, "_merge_kernel", merge)
    return attention.grids, merge.grids


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1), (6, 2)])
def test_long_queries_of_ragged_lengths(launches, heads, kv_heads, head_dim, dtype):
    world = World([41, 1, 123], [123, 41, 130], heads, kv_heads, head_dim, dtype=dtype)
    world.check(AttentionTiling(64, 64))
    tiles = [-(-queries * (heads // kv_heads) // 64) for queries in world.queries]
    assert min(tiles) == 1 < max(tiles)
    assert launches[0][0][1:] == (kv_heads, 1)
    assert sum(tiles) <= launches[0][0][0] <= sum(tiles) + 3
    assert not launches[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1)])
def test_block_steps_split_the_keys(launches, heads, kv_heads, head_dim, dtype):
    world = World([8, 1, 5], [200, 17, 70], heads, kv_heads, head_dim, dtype=dtype)
    tiling = AttentionTiling(16 if heads == kv_heads else 64, 32, split_keys=64)
    world.check(tiling)
    assert split_count(world.batch, 16, tiling) == 4
    assert launches[0][0][2] == 4
    assert launches[1] == [(-(-14 * heads // 16),)]


@pytest.mark.parametrize("layout", ["layers", "head-major"])
@pytest.mark.parametrize("page_size", [1, 8, 32, 64, 128])
@pytest.mark.parametrize("split_keys", [None, 64])
def test_pages_smaller_and_larger_than_tiles(page_size, layout, split_keys):
    World([9, 3], [123, 64], 2, 1, 64, page_size, layout).check(AttentionTiling(32, 32, split_keys))


@pytest.mark.parametrize("keys", [1, 31, 32, 33, 63, 64, 65])
def test_the_ends_of_pages_tiles_and_splits(keys):
    World([2], [keys], 1, 1, 64, 16).check(AttentionTiling(16, 32, split_keys=64))


def test_the_tiling_chosen_by_default_splits_few_queries_and_not_many(launches):
    World([3], [600], 2, 1, 64, 64).check(None)
    assert launches[0][0][2] > 1
    chosen = AttentionTiling.choose(32 * 2256, 32, 32, 32, 2256, False)
    assert chosen.split_keys is None
    assert chosen.block_rows == 128


def test_a_result_does_not_depend_on_the_other_requests():
    tiling = AttentionTiling(32, 64, split_keys=64)
    world = World([41, 5], [123, 50], 2, 2, 64)
    together, lse = world.run(tiling)
    for request, rows in enumerate((slice(0, 41), slice(41, 46))):
        at = slice(request, request + 1)
        starts = torch.tensor([0, world.queries[request]], dtype=torch.int32, device=DEVICE)
        alone = PagedBatch(world.batch.page_tables[at], starts, world.batch.key_lengths[at])
        out, out_lse = paged_attention_triton.paged_attention_triton(world.q[rows], world.pool, alone, tiling)
        assert torch.equal(out, together[rows])
        assert torch.equal(out_lse, lse[rows])


def test_huge_scores_do_not_overflow():
    world = World([4], [70], 1, 1, 64)
    world.q *= 300
    found, lse = world.run(AttentionTiling(16, 32, split_keys=32))
    expected, expected_lse = world.dense()
    assert expected_lse.max() > 200
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double().cpu(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split_keys", [None, 32])
def test_requests_without_keys_or_without_queries(split_keys):
    world = World([2, 0, 3], [0, 20, 40], 2, 1, 64)
    out, lse = world.run(AttentionTiling(16, 32, split_keys))
    assert torch.equal(out[:2], torch.zeros_like(out[:2]))
    assert (lse[:2] == -torch.inf).all()
    world.queries, world.keys, world.kv, world.q = [3], [40], world.kv[2:], world.q[2:]
    close(out[2:], world.dense()[0])


def test_tables_built_from_the_references_arguments():
    world = World([5, 2], [40, 70], 2, 1, 64)
    tables = [table.to(DEVICE, torch.int64) for table in world.page_tables]
    world.batch = PagedBatch.build(tables, world.queries, world.keys)
    assert world.batch.page_tables.dtype == torch.int32
    assert world.batch.page_tables.shape == (2, 5)
    world.check(AttentionTiling(16, 32))


def test_offsets_past_two_to_the_31(tmp_path):
    world = World([3], [16], 1, 1, 64)
    pool = far(tmp_path, (3, 2, 16, 1, 64), (2**30 + 64, 1024, 64, 64, 1))
    pool[2] = world.pool[int(world.page_tables[0][0])]
    world.pool = pool
    world.batch.page_tables[0, 0] = 2
    world.check(AttentionTiling(16, 16))


def test_arguments_that_do_not_fit_are_refused():
    world = World([3], [16], 3, 1, 64)
    attend = paged_attention_triton.paged_attention_triton
    with pytest.raises(ValueError, match="pages are"):
        attend(world.q.double(), world.pool, world.batch)
    with pytest.raises(ValueError, match="does not fit"):
        attend(world.q[..., :32], world.pool, world.batch)
    with pytest.raises(ValueError, match="powers of two"):
        attend(world.q[..., :48].contiguous(), world.pool[..., :48], world.batch)
    with pytest.raises(ValueError, match="contiguous"):
        attend(world.q.transpose(0, 2).contiguous().transpose(0, 2), world.pool, world.batch)


def parts_of_one_attention(parts: int, keyless: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values and log-sum-exp of parts of the keys, one part empty and poisoned, and of all keys in float64."""
    scores, values = torch.randn(parts, 41, 3, 7).double() * 3, torch.randn(parts, 41, 3, 7, 64).double()
    scores[keyless] = -torch.inf
    lses = scores.logsumexp(-1)
    outs = torch.einsum("pthk,pthkd->pthd", scores.softmax(-1), values)
    assert outs[keyless].isnan().all()
    together = scores.permute(1, 2, 0, 3).flatten(2)
    everything = values.permute(1, 2, 0, 3, 4).flatten(2, 3)
    out = torch.einsum("thk,thkd->thd", together.softmax(-1), everything)
    return outs.float().to(DEVICE), lses.float().to(DEVICE), out, together.logsumexp(-1)


@pytest.mark.parametrize("keyless", [0, 1, 2])
def test_merging_parts_gives_attention_over_all_keys(keyless):
    outs, lses, expected, expected_lse = parts_of_one_attention(3, keyless)
    out, lse = merge_state_reference(*merge_state_reference(outs[0], lses[0], outs[1], lses[1]), outs[2], lses[2])
    close(out, expected)
    close(lse, expected_lse)
    out, lse = torch.full_like(out, torch.nan), torch.full_like(lse, torch.nan)
    merge_states_triton(outs, lses, out, lse)
    close(out, expected)
    close(lse, expected_lse)


def test_merging_nothing_gives_zeros_and_minus_infinity():
    outs = torch.full((2, 1, 1, 64), torch.nan, device=DEVICE)
    lses = torch.full((2, 1, 1), -torch.inf, device=DEVICE)
    out, lse = torch.empty_like(outs[0]), torch.empty_like(lses[0])
    merge_states_triton(outs, lses, out, lse)
    reference = merge_state_reference(outs[0], lses[0], outs[1], lses[1], torch.float16)
    assert reference[0].dtype == torch.float16
    for found, found_lse in ((out, lse), reference):
        assert not found.any()
        assert (found_lse == -torch.inf).all()
