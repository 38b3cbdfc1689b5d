"""Attention over keys and values in fp8: block steps, with a shared prefix and without, settled blocks, refreshes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from benchmarks.kernel_bench.attention import attend_hopper, attention_variants
from benchmarks.kernel_bench.pool import Pool
from benchmarks.kernel_bench.variant import DEVICE, GQA, HEAD_DIM, MHA, Variant
from shoal.kernels.attention.groups import SharedGroups, plan_shared_groups
from shoal.kernels.attention.tiling import AttentionTiling as T

STEP = [
    T(64, 64, 4, 3, True, True), T(64, 64, 4, 3, True, True, 168), T(64, 64, 4, 2, True, True, 168),
    T(64, 64, 4, 4, True, True), T(64, 64, 4, 3, False, True), T(64, 64, 4, 3, False, True, 168),
    T(64, 128, 4, 2, False, True), T(64, 32, 4, 4, True, True, 168),
]  # fmt: skip
SETTLED = [T(64, 64, 4, 3, True, False, 168), T(128, 64, 8, 3, True), T(128, 64, 4, 3, True)]
SHARED = [T(128, 64, 4, 3, True), T(128, 64, 8, 3, True), T(128, 64, 4, 4, True), T(128, 64, 8, 3, True, False, 128)]


def kv8() -> Iterator[Variant]:
    """Pages in bfloat16 stand beside."""
    for requests, layers, splits in ((32, 1, (1,)), (1, 8, (4, 8)), (8, 2, (1, 2))):
        keys = [2300 - 7 * (r % 9) for r in range(requests)]
        for fp8 in (False, True):
            pool = Pool([32] * requests, keys, MHA, 64, layers, fp8=fp8)
            shape = f"{requests} x 32 of 2300 p64" + " fp8" * fp8
            tilings = STEP if fp8 and requests == 32 else STEP[:3] if fp8 else [None]
            yield from attention_variants("kv8", shape, pool, tilings, splits, False)
    yield from shared_prefix()
    for fp8 in (False, True):
        pool = Pool([96] * 32, [2300] * 32, MHA, 64, 1, fp8=fp8)
        shape = "32 x 96 of 2300 p64" + " fp8" * fp8
        if not fp8:
            run = partial(attend_hopper, pool, block_keys=128, stages=2, fresh=False)
            yield Variant("kv8", shape, "hopper", [partial(run, 0)], pool.bytes, pool.flops, partial(pool.error, run,
                          False))  # fmt: skip
        yield from attention_variants("kv8", shape, pool, [None, *SETTLED] if fp8 else [None], [1], False)
    for fp8 in (False, True):
        pool = Pool([33] * 32, [2300] * 32, GQA, 64, 6, fp8=fp8)
        shape = "32 x 33 of 2300 p64 28/4" + " fp8" * fp8
        yield from attention_variants("kv8", shape, pool, [None, *SETTLED[:1]] if fp8 else [None], [1], False)


def shared_prefix() -> Iterator[Variant]:
    """32 requests that share 1,984 keys."""
    for fp8 in (False, True):
        pool = Pool([32] * 32, [2300] * 32, MHA, 64, 2, shared=1984, sharers=32, fp8=fp8)
        starts = pool.batch.query_starts.tolist()
        plan = plan_shared_groups(pool.tables.numpy(), range(32), starts, pool.keys, 64, *MHA)
        groups = SharedGroups.empty(1, 32, 32 * 32, *MHA, DEVICE)
        groups.load(plan)
        floor = pool.kv_bytes + 4 * 32 * 32 * 32 * HEAD_DIM
        for long in SHARED if fp8 else SHARED[1:2]:
            for own in STEP[:3] if fp8 and long == SHARED[0] else STEP[:1]:
                run = partial(_attend_shared, pool, groups=groups, own=own, long=long)
                calls = [partial(run, layer) for layer in range(2)]
                name = f"shared {of(long)}, own {of(own)}"
                shape = "32 x 32 of 2300, 1984 shared p64" + " fp8" * fp8
                yield Variant("kv8", shape, name, calls, floor, pool.flops, partial(pool.error, run, False))


def of(tiling: T) -> str:
    """The numbers by which these tilings differ."""
    return f"{tiling.block_keys} w{tiling.num_warps} s{tiling.num_stages} r{tiling.most_registers or '-'}"


def _attend_shared(pool: Pool, layer: int, groups: SharedGroups, own: T, long: T) -> Tensor:
    from shoal.kernels.attention.shared_triton import shared_attention_triton

    return shared_attention_triton(
        pool.q[layer], pool.pages[layer], 0, pool.batch, groups, tiling=own, shared_tiling=long
    )[0]
