"""Paged attention and the merge of its parts, against dense attention in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.kernels.attention import merge_triton
from shoal.kernels.attention import triton as attention_triton
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.merge import merge_state_reference
from shoal.kernels.attention.merge_triton import merge_states_triton
from shoal.kernels.attention.reference import attention
from shoal.kernels.attention.tiling import AttentionTiling, choose_tiling

from .checks import DEVICE, DTYPES, Recorder, close, far
from .worlds import World

pytestmark = pytest.mark.usefixtures("poisoned")


def run(world: World, tiling: AttentionTiling | None, splits: int = 1, **options) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.full(world.q.shape, torch.nan, dtype=world.dtype, device=DEVICE)
    found, lse = attention_triton.attention_triton(
        world.q, world.pool, 1, world.batch, num_splits=splits, out=out, tiling=tiling, **options
    )
    assert found is out
    return out, lse


def check(world: World, tiling: AttentionTiling | None, splits: int = 1, **options) -> None:
    for found, expected in zip(run(world, tiling, splits, **options), world.dense(), strict=True):
        close(found, expected, world.dtype)


@pytest.fixture
def launches(monkeypatch):
    attention = Recorder(attention_triton._attention_kernel)
    merge = Recorder(merge_triton._merge_kernel)
    monkeypatch.setattr(attention_triton, "_attention_kernel", attention)
    monkeypatch.setattr(merge_triton, "_merge_kernel", merge)
    return attention.grids, merge.grids


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1), (6, 2)])
def test_long_queries_of_ragged_lengths(launches, heads, kv_heads, head_dim, dtype):
    world = World([41, 1, 123], [123, 41, 130], heads, kv_heads, head_dim, dtype=dtype)
    check(world, AttentionTiling(64, 64))
    tiles = [-(-queries * (heads // kv_heads) // 64) for queries in world.queries]
    assert min(tiles) == 1 < max(tiles)
    assert launches[0][0][1:] == (kv_heads, 1)
    assert sum(tiles) <= launches[0][0][0] <= sum(tiles) + 3
    assert not launches[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_dense_attention(dtype):
    world = World([4, 0, 9], [33, 20, 9], 6, 2, 64, dtype=dtype)
    for found, expected in zip(attention.reference(world.q, world.pool, 1, world.batch), world.dense(), strict=True):
        close(found, expected, dtype)
    k, v = world.fresh_kv(poison=True)
    close(attention.reference(world.q, world.pool, 1, world.batch, fresh_kv=(k, v))[0], world.dense()[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1)])
def test_block_steps_split_the_keys(launches, heads, kv_heads, heads_first, head_dim, dtype):
    world = World([8, 1, 5], [200, 17, 70], heads, kv_heads, head_dim, dtype=dtype)
    check(world, AttentionTiling(16 if heads == kv_heads else 64, 32, heads_first=heads_first), 4)
    assert launches[0][0][2] == 4
    assert launches[0][0][0 if heads_first else 1] == kv_heads
    assert launches[1] == [(-(-14 * heads // 8),)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "splits"), [(2, 2, 4), (7, 1, 1), (6, 2, 8)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 3), (8, 200), (40, 70)])
def test_one_request_alone(launches, queries, keys, heads, kv_heads, splits, dtype):
    world = World([queries], [keys], heads, kv_heads, 64, dtype=dtype)
    check(world, AttentionTiling(16 if heads == kv_heads else 64, 32, heads_first=True), splits)
    assert launches[0][0][1] == queries * heads // kv_heads // (16 if heads == kv_heads else 64) + 1


@pytest.mark.parametrize("layout", ["layers", "head-major", "transposed"])
@pytest.mark.parametrize("page_size", [1, 8, 32, 64, 128])
@pytest.mark.parametrize("splits", [1, 2])
def test_pages_smaller_and_larger_than_tiles(page_size, layout, splits):
    check(World([9, 3], [123, 64], 2, 1, 64, page_size, layout), AttentionTiling(32, 32), splits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["layers", "head-major"])
@pytest.mark.parametrize(("page_size", "kv_heads"), [(32, 2), (64, 1)])
def test_pages_copied_in_bulk(monkeypatch, page_size, kv_heads, layout, dtype):
    made = []
    page_rows = attention_triton.page_rows

    def counted(*arguments):
        made.append(arguments)
        return page_rows(*arguments)

    monkeypatch.setattr(attention_triton, "page_rows", counted)
    world = World([9, 3, 2], [123, 64, 31], 4, kv_heads, 64, page_size, layout, dtype)
    check(world, AttentionTiling(32, 32, bulk=True), 2)
    assert made
    check(World([9], [123], 2, 1, 64, 16), AttentionTiling(32, 32, bulk=True))
    assert len(made) == 1


def test_pages_that_are_not_rows_of_slots_can_not_be_copied_in_bulk():
    with pytest.raises(ValueError, match="not rows of slots"):
        run(World([2], [40], 2, 1, 64, 32, "transposed"), AttentionTiling(16, 32, bulk=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (3, 1, 128)])
def test_fresh_keys_are_read_where_the_projection_left_them(heads, kv_heads, head_dim, splits, dtype):
    world = World([41, 1, 66, 0, 3], [123, 40, 66, 20, 35], heads, kv_heads, head_dim, dtype=dtype)
    fresh_kv = world.fresh_kv(poison=True)
    check(world, AttentionTiling(64, 32), splits, fresh_kv=fresh_kv)


@pytest.mark.parametrize("keys", [1, 31, 32, 33, 63, 64, 65, 128, 129])
def test_the_ends_of_pages_tiles_and_splits(keys):
    check(World([2], [keys], 1, 1, 64, 16), AttentionTiling(16, 32), 2)


def test_the_tilings_chosen_by_default():
    check(World([3], [600], 2, 1, 64, 64), None, 3)
    assert choose_tiling(32 * 2256, 32, 1, 16, 128, False, True).block_rows == 128
    assert choose_tiling(32, 1, 1, 16, 128, False, False).block_rows == 64
    stages = [
        choose_tiling(32 * n, n, 1, 64, dim, False, False).num_stages for n, dim in ((4, 128), (5, 128), (4, 256))
    ]
    assert stages == [4, 3, 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(21, 3, 16), (5, 5, 32), (7, 1, 256)])
def test_uncommon_heads_and_a_page_table_that_is_full(heads, kv_heads, head_dim, fresh, dtype):
    world = World([3, 10], [70, 128], heads, kv_heads, head_dim, 64, dtype=dtype)
    world.batch = replace(world.batch, page_tables=world.batch.page_tables[..., :2].contiguous())
    kv = world.fresh_kv(poison=True) if fresh else None
    for tiling, splits in ((None, 1), (AttentionTiling(32, 32, bulk=True), 2)):
        check(world, tiling, splits, fresh_kv=kv)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_result_does_not_depend_on_the_other_requests(splits):
    tiling = AttentionTiling(32, 32)
    world = World([41, 5], [123, 50], 2, 2, 64)
    together, lse = run(world, tiling, splits)
    for request, rows in enumerate((slice(0, 41), slice(41, 46))):
        at = slice(request, request + 1)
        starts = torch.tensor([0, world.queries[request]], dtype=torch.int32, device=DEVICE)
        alone = AttentionBatch(world.batch.page_tables, world.batch.slots[at], starts, world.batch.key_lengths[at])
        out, out_lse = attention_triton.attention_triton(
            world.q[rows], world.pool, 1, alone, num_splits=splits, tiling=tiling
        )
        assert torch.equal(out, together[rows])
        assert torch.equal(out_lse, lse[rows])


def test_huge_scores_do_not_overflow():
    world = World([4], [70], 1, 1, 64)
    world.q *= 300
    found, lse = run(world, AttentionTiling(16, 32), 3)
    expected, expected_lse = world.dense()
    assert expected_lse.max() > 200
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double().cpu(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 2])
def test_requests_without_keys_or_without_queries(splits):
    world = World([2, 0, 3], [0, 20, 40], 2, 1, 64)
    reference = attention.reference(world.q, world.pool, 1, world.batch)
    for out, lse in (run(world, AttentionTiling(16, 32), splits), reference):
        assert torch.equal(out[:2], torch.zeros_like(out[:2]))
        assert (lse[:2] == -torch.inf).all()
    world.queries, world.keys, world.kv, world.q = [3], [40], world.kv[2:], world.q[2:]
    close(out[2:], world.dense()[0])


def test_rows_of_no_request_are_left_alone():
    world = World([2, 5], [30, 20], 2, 1, 64)
    starts = torch.tensor([0, 2, 4], dtype=torch.int32, device=DEVICE)
    world.batch = AttentionBatch(world.batch.page_tables, world.batch.slots, starts, world.batch.key_lengths)
    out, _ = run(world, AttentionTiling(16, 32))
    assert out[4:].isnan().all()
    assert out[:4].isfinite().all()


def test_offsets_past_two_to_the_31(tmp_path):
    world = World([3], [16], 1, 1, 64)
    pool = far(tmp_path, (3, 2, 16, 1, 64), (2**30 + 64, 1024, 64, 64, 1))
    pool[2] = world.pool[int(world.page_tables[0][0])]
    world.pool = pool
    world.batch.page_tables[:, 1, 0] = 2
    check(world, AttentionTiling(16, 16))


def test_arguments_that_do_not_fit_are_refused():
    world = World([3], [16], 3, 1, 64)
    attend = attention_triton.attention_triton
    with pytest.raises(ValueError, match="pages are"):
        attend(world.q.double(), world.pool, 1, world.batch)
    with pytest.raises(ValueError, match="does not fit"):
        attend(world.q[..., :32], world.pool, 1, world.batch)
    with pytest.raises(ValueError, match="powers of two"):
        attend(world.q[..., :48].contiguous(), world.pool[..., :48], 1, world.batch)
    with pytest.raises(ValueError, match="contiguous"):
        attend(world.q.transpose(0, 2).contiguous().transpose(0, 2), world.pool, 1, world.batch)
    with pytest.raises(ValueError, match="band 3 of 3"):
        attend(world.q, world.pool, 3, world.batch)
    with pytest.raises(ValueError, match="heads must be next to one another"):
        attend(world.q, world.pool, 1, world.batch, fresh_kv=(world.q[:, ::2], world.q[:, ::2]))
    with pytest.raises(ValueError, match="key_lengths is"):
        AttentionBatch(world.batch.page_tables, world.batch.slots, world.batch.query_starts, torch.zeros(1))
    with pytest.raises(ValueError, match="there must be n >= 1"):
        AttentionBatch(world.batch.page_tables, world.batch.slots, world.batch.slots, world.batch.slots)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("page_size", "bulk", "splits"), [(16, False, 1), (32, True, 1), (64, True, 2)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1)])
def test_pages_in_fp8(heads, kv_heads, page_size, bulk, splits, dtype):
    """Queries are two numbers in fp8 and weights float16: an error as bfloat16's, which a check in fp32 sees."""
    world = World([9, 40, 2], [123, 164, 31], heads, kv_heads, 64, page_size, dtype=dtype, fp8=True)
    assert world.pool.dtype == torch.float8_e4m3fn
    found = run(world, AttentionTiling(32, 32, bulk=bulk), splits)
    for each, expected in zip(found, world.dense(), strict=True):
        close(each, expected, torch.bfloat16)
        error = (each.double().cpu() - expected).norm() / expected.norm()
        assert 1e-5 < error < 5e-3
    world.q *= 1e4
    assert all(each.isfinite().all() for each in run(world, AttentionTiling(32, 32, bulk=bulk), splits))
    world.q[:] = 1e30
    assert all(each.isfinite().all() for each in run(world, AttentionTiling(32, 32, bulk=bulk), splits))


def test_fresh_keys_beside_pages_in_fp8():
    world = World([41, 1, 30], [123, 40, 30], 2, 1, 64, fp8=True)
    check_near = run(world, AttentionTiling(32, 32), fresh_kv=world.fresh_kv(poison=False))
    for each, expected in zip(check_near, world.dense(), strict=True):
        close(each, expected, torch.bfloat16)
