"""Shared-prefix attention against dense attention in float64."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.attention import shared_triton
from shoal.kernels.attention.groups import SharedGroups, SharedPlan, plan_shared_groups
from shoal.kernels.attention.shared_triton import SHARED_TILING
from shoal.kernels.attention.tiling import AttentionTiling

from .checks import DEVICE, DTYPES, Recorder, close
from .worlds import World

pytestmark = pytest.mark.usefixtures("poisoned")


def plan_of(world: World, sms: int, **options) -> SharedPlan:
    batch = world.batch
    return plan_shared_groups(
        batch.page_tables.cpu().numpy(), batch.slots.tolist(), batch.query_starts.tolist(), batch.key_lengths.tolist(),
        world.page_size, world.q.shape[1], world.pool.shape[3], sms=sms, **options,
    )  # fmt: skip


def check(
    world: World, sms: int, splits: int = 1, bulk: bool = False, near: torch.dtype | None = None, **options
) -> SharedPlan:
    """`near`: a dtype whose tolerance holds in the place of the world's."""
    plan = plan_of(world, sms, **options)
    heads, kv_heads = world.q.shape[1], world.pool.shape[3]
    groups = SharedGroups.empty(3, len(world.queries), len(world.q), heads, kv_heads, DEVICE, sms)
    groups.load(plan)
    out = torch.full(world.q.shape, torch.nan, dtype=world.dtype, device=DEVICE)
    wide = world.q.shape[2] > 128  # whose tilings are the defaults
    found, lse = shared_triton.shared_attention_triton(
        world.q, world.pool, 1, world.batch, groups, num_splits=splits, out=out,
        tiling=None if wide else AttentionTiling(16, 32),
        shared_tiling=None if wide else AttentionTiling(128, 64, bulk=bulk),
    )  # fmt: skip
    assert found is out
    for each, expected in zip((out, lse), world.dense(), strict=True):
        close(each, expected, near or world.dtype)
    return plan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"), [(2, 2, 64, 16), (7, 1, 128, 64), (3, 3, 256, 64)]
)
def test_two_groups_and_some_alone(heads, kv_heads, head_dim, page_size, splits, dtype):
    pages = 320 // page_size
    world = World(
        [9, 33, 5, 8, 1, 40, 0], [330, 400, 321, 70, 320, 40, 20], heads, kv_heads, head_dim, page_size, dtype=dtype,
        shared={1: (0, pages), 4: (0, pages), 2: (0, 256 // page_size)},
    )  # fmt: skip
    plan = check(world, 8, splits, page_size == 64, min_sharers=2)
    assert plan.groups == ((1, (0, 1, 2, 4), 256),)
    assert plan.items[1, :, 2].max() == (2 if heads == 7 else 0)


@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_in_fp8(page_size):
    world = World([9, 33, 5], [330, 400, 321], 2, 2, 64, page_size, shared={1: (0, 256 // page_size),
                  2: (0, 256 // page_size)}, fp8=True)  # fmt: skip
    assert check(world, 8, 1, page_size == 64, torch.bfloat16, min_sharers=2).groups == ((1, (0, 1, 2), 256),)


def test_keys_cut_into_parts():
    world = World([9, 3], [600, 570], 2, 2, 64, 16, shared={1: (0, 35)})
    plan = check(world, 8, 2, min_sharers=2)
    assert plan.groups == ((1, (0, 1), 560),)
    assert plan.num_parts[1].tolist() == [2, 2]
    assert plan.items[1, :2, 4:7].tolist() == [[0, 320, 0], [320, 560, 1]]


def test_a_request_whose_keys_are_all_shared():
    world = World([9, 3], [256, 256], 2, 2, 64, 16, shared={1: (0, 16)})
    assert check(world, 1, min_sharers=2).groups == ((1, (0, 1), 256),)
    assert check(world, 1, 2, min_sharers=2).groups == ((1, (0, 1), 256),)


def test_without_groups_the_first_kernel_does_nothing(monkeypatch):
    recorder = Recorder(shared_triton._shared_attention_kernel)
    monkeypatch.setattr(shared_triton, "_shared_attention_kernel", recorder)
    world = World([9, 33], [130, 100], 2, 1, 64)
    plan = check(world, 8)
    assert plan.groups == ()
    assert not plan.items.any()
    assert recorder.grids == [(16, 1)]


def test_arguments_that_do_not_fit_are_refused():
    world = World([9, 33], [130, 100], 2, 1, 64)
    attend = shared_triton.shared_attention_triton
    with pytest.raises(ValueError, match="groups of 3 requests"):
        attend(world.q, world.pool, 1, world.batch, SharedGroups.empty(3, 3, 42, 2, 1, DEVICE))
    groups = SharedGroups.empty(3, 2, 42, 2, 1, DEVICE)
    with pytest.raises(ValueError, match="block_rows is 64"):
        attend(world.q, world.pool, 1, world.batch, groups, shared_tiling=AttentionTiling(64, 64))
    with pytest.raises(ValueError, match="there is room for"):
        SharedGroups.empty(3, 1, 42, 2, 1, DEVICE).load(plan_of(world, 8))
    assert SHARED_TILING.block_rows == 128
