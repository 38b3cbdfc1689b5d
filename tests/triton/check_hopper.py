"""The attention kernel for Hopper GPUs, against dense attention in float64. No interpreter runs it."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.attention import gpu, hopper_triton
from shoal.kernels.attention.hopper_triton import attention_hopper, hopper_fits
from shoal.kernels.attention.reference import attention

from .checks import DEVICE, Recorder, close, fresh
from .worlds import World

pytestmark = pytest.mark.usefixtures("poisoned")
BF16 = torch.bfloat16


def check(world: World, fresh_kv: tuple[torch.Tensor, torch.Tensor] | None, block_keys: int, stages: int) -> None:
    assert hopper_fits(world.q, world.pool, fresh_kv)
    out = torch.full(world.q.shape, torch.nan, dtype=world.dtype, device=DEVICE)
    found, lse = attention_hopper(
        world.q, world.pool, 1, world.batch, fresh_kv=fresh_kv, out=out, block_keys=block_keys, stages=stages
    )
    assert found is out
    torch.cuda.synchronize()
    for each, expected in zip((out, lse), world.dense(), strict=True):
        close(each, expected, world.dtype)


@pytest.mark.parametrize(("block_keys", "stages"), [(128, 2), (64, 4), (64, 3)])
@pytest.mark.parametrize("page_size", [8, 16, 64, 128, 256])
@pytest.mark.parametrize("layout", ["layers", "head-major"])
def test_pages_of_any_size(layout, page_size, block_keys, stages):
    world = World([41, 1, 300, 129], [123, 41, 700, 128], 2, 2, 128, page_size, layout, BF16)
    check(world, None, block_keys, stages)


@pytest.mark.parametrize(("block_keys", "stages"), [(128, 2), (64, 4)])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (7, 1), (6, 2)])
def test_fresh_keys_and_groups_of_heads(heads, kv_heads, head_dim, block_keys, stages):
    world = World([41, 1, 266, 0, 300, 64], [523, 40, 266, 20, 301, 192], heads, kv_heads, head_dim, 16, dtype=BF16)
    check(world, world.fresh_kv(poison=True), block_keys, stages)
    world = World([41, 1, 266, 0, 300, 64], [523, 40, 266, 20, 301, 192], heads, kv_heads, head_dim, 64, dtype=BF16)
    check(world, None, block_keys, stages)


@pytest.mark.parametrize("keys", [1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 385])
def test_the_ends_of_tiles(keys):
    for block_keys, stages in ((128, 2), (64, 4)):
        world = World([min(keys, 70)], [keys], 1, 1, 128, 16, dtype=BF16)
        check(world, world.fresh_kv(poison=True), block_keys, stages)
        check(World([3], [keys], 1, 1, 128, 16, dtype=BF16), None, block_keys, stages)


def test_pages_in_fp8_are_not_read_where_all_keys_are_fresh():
    world = World([41, 1, 266, 300], [41, 1, 266, 300], 4, 2, 128, 64, dtype=BF16)
    fresh_kv = world.fresh_kv(poison=True)
    world.pool = world.pool.to(torch.float8_e4m3fn)
    assert not hopper_fits(world.q, world.pool, None)
    assert not hopper_fits(world.q, world.pool, fresh_kv)
    assert hopper_fits(world.q, world.pool, fresh_kv, True)
    for block_keys, stages in ((128, 2), (64, 4)):
        found = attention_hopper(
            world.q, world.pool, 1, world.batch, fresh_kv=fresh_kv, fresh_only=True, block_keys=block_keys,
            stages=stages,
        )  # fmt: skip
        for each, expected in zip(found, world.dense(), strict=True):
            close(each, expected, BF16)


def test_many_requests_many_times():
    """A race would show as a result that changes."""
    lengths = torch.randint(1, 700, (24,)).tolist()
    queries = [min(n, 1 + n // 2) for n in lengths]
    world = World(queries, lengths, 4, 4, 128, 16, dtype=BF16)
    fresh_kv = world.fresh_kv(poison=True)
    check(world, fresh_kv, 128, 2)
    first = attention_hopper(world.q, world.pool, 1, world.batch, fresh_kv=fresh_kv)
    for _ in range(50):
        for a, b in zip(attention_hopper(world.q, world.pool, 1, world.batch, fresh_kv=fresh_kv), first, strict=True):
            assert torch.equal(a, b)


def test_requests_without_keys_or_without_queries():
    world = World([2, 0, 3], [0, 20, 40], 2, 1, 128, dtype=BF16)
    world.q[:2] = torch.nan
    out, lse = attention_hopper(world.q, world.pool, 1, world.batch)
    assert not out[:2].any()
    assert (lse[:2] == -torch.inf).all()
    world.queries, world.keys, world.kv, world.q = [3], [40], world.kv[2:], world.q[2:]
    close(out[2:], world.dense()[0], BF16)


def test_it_runs_for_long_queries_only(monkeypatch):
    recorder = Recorder(hopper_triton._hopper_kernel)
    monkeypatch.setattr(hopper_triton, "_hopper_kernel", recorder)
    monkeypatch.delenv(gpu.HOPPER_VARIABLE, raising=False)
    world = World([200, 100], [300, 100], 2, 1, 128, dtype=BF16)
    close(attention(world.q, world.pool, 1, world.batch)[0], world.dense()[0], BF16)
    assert recorder.grids == [(300 * 2 // 128 + 2, 1)]
    attention(world.q, world.pool, 1, world.batch, num_splits=2)
    few = World([8, 9], [300, 100], 2, 1, 128, dtype=BF16)
    attention(few.q, few.pool, 1, few.batch)
    monkeypatch.setenv(gpu.HOPPER_VARIABLE, "0")
    attention(world.q, world.pool, 1, world.batch)
    assert len(recorder.grids) == 1
    assert not gpu._hopper_missing
    assert not hopper_fits(fresh(2, 1, 128), fresh(1, 2, 16, 1, 128), None)
    assert not hopper_fits(world.q, world.pool[:, :, :4], None)
