"""Attention of refreshes and of block steps, by tiling and by kernel, beside torch's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernel_bench.pool import Pool
from benchmarks.kernel_bench.variant import GQA, HEAD_DIM, MHA, Variant, random
from shoal.kernels.attention.tiling import AttentionTiling


def attend(pool: Pool, layer: int, tiling: AttentionTiling | None, splits: int, fresh: bool) -> Tensor:
    from shoal.kernels.attention.triton import attention_triton

    kv = pool.fresh[layer] if fresh else None
    return attention_triton(
        pool.q[layer], pool.pages[layer], 0, pool.batch, num_splits=splits, tiling=tiling, fresh_kv=kv
    )[0]


def attend_hopper(pool: Pool, layer: int, block_keys: int, stages: int, fresh: bool) -> Tensor:
    from shoal.kernels.attention.hopper_triton import attention_hopper

    return attention_hopper(
        pool.q[layer], pool.pages[layer], 0, pool.batch, fresh_kv=pool.fresh[layer] if fresh else None,
        block_keys=block_keys, stages=stages,
    )[0]  # fmt: skip


def hopper_variants(group: str, shape: str, pool: Pool, fresh: bool) -> Iterator[Variant]:
    for block_keys, stages in ((128, 2), (64, 4), (64, 3)):
        run = partial(attend_hopper, pool, block_keys=block_keys, stages=stages, fresh=fresh)
        calls = [partial(run, layer) for layer in range(len(pool.q))]
        name = f"hopper {block_keys} s{stages}" + " fresh" * fresh
        yield Variant(group, shape, name, calls, pool.bytes, pool.flops, partial(pool.error, run, fresh))


def attention_variants(
    group: str, shape: str, pool: Pool, tilings: Sequence[AttentionTiling | None], splits: Sequence[int], fresh: bool
) -> Iterator[Variant]:
    for tiling in tilings:
        for count in splits:
            name = "default" if tiling is None else (
                f"{tiling.block_rows}x{tiling.block_keys} w{tiling.num_warps} s{tiling.num_stages}"
                + " bulk" * tiling.bulk + " heads" * tiling.heads_first
                + (f" r{tiling.most_registers}" if tiling.most_registers else "")
            )  # fmt: skip
            run = partial(attend, pool, tiling=tiling, splits=count, fresh=fresh)
            calls = [partial(run, layer) for layer in range(len(pool.q))]
            name += f" /{count}" + " fresh" * fresh
            yield Variant(group, shape, name, calls, pool.bytes, pool.flops, partial(pool.error, run, fresh))


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def sdpa_variants(group: str, shape: str, requests: int, queries: int, keys: int, heads: tuple[int, int], pool: Pool
                  ) -> Iterator[Variant]:  # fmt: skip
    q = random(requests, heads[0], queries, HEAD_DIM)
    k, v = (random(requests, heads[1], keys, HEAD_DIM) for _ in range(2))
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        call = partial(sdpa, q, k, v, backend)
        yield Variant(group, shape, f"torch {backend.name}", [call], pool.bytes, pool.flops)


LONG = [
    AttentionTiling(128, 64, 8, 2), AttentionTiling(128, 64, 8, 3), AttentionTiling(128, 64, 8, 4),
    AttentionTiling(128, 128, 8, 2), AttentionTiling(128, 128, 8, 3), AttentionTiling(128, 32, 8, 4),
    AttentionTiling(64, 64, 4, 3), AttentionTiling(64, 128, 4, 2), AttentionTiling(128, 64, 4, 3),
    AttentionTiling(64, 64, 4, 2), AttentionTiling(64, 32, 4, 3), AttentionTiling(128, 32, 8, 3),
    AttentionTiling(256, 64, 16, 3),
]  # fmt: skip
STEP = [
    AttentionTiling(64, 64, 4, 3, heads_first=True), AttentionTiling(32, 128, 4, 2, heads_first=True),
    AttentionTiling(64, 32, 4, 4, heads_first=True), AttentionTiling(64, 32, 4, 6, heads_first=True),
    AttentionTiling(32, 64, 4, 3, heads_first=True),
]  # fmt: skip


def bulk(tilings: Sequence[AttentionTiling]) -> list[AttentionTiling]:
    return [replace(tiling, bulk=True) for tiling in tilings]


def refresh() -> Iterator[Variant]:
    for heads in (MHA, GQA):
        shape = f"8 x 2256 all fresh, {heads[0]}/{heads[1]} heads"
        pool = Pool([2256] * 8, [2256] * 8, heads, 16, 1)
        yield from sdpa_variants("refresh", shape, 8, 2256, 2256, heads, pool)
        yield from hopper_variants("refresh", shape, pool, True)
        yield from attention_variants("refresh", shape, pool, [LONG[4], LONG[1], LONG[6]], [1], True)
        for page_size in (16, 64):
            pool = Pool([2256] * 8, [2256] * 8, heads, page_size, 1)
            tilings = [LONG[1], LONG[4]]
            yield from hopper_variants("refresh", f"{shape} p{page_size}", pool, False)
            yield from attention_variants(
                "refresh", f"{shape} p{page_size}", pool, bulk(tilings[:1]) if page_size == 64 else tilings, [1], False
            )
    shape = "32 x (356 fresh of 2356), 32/32 heads"
    for page_size in (16, 64):
        pool = Pool([356] * 32, [2356] * 32, MHA, page_size, 1)
        if page_size == 16:
            yield from sdpa_variants("refresh", shape, 32, 356, 2356, MHA, pool)
        for fresh in (True, False):
            yield from hopper_variants("refresh", f"{shape} p{page_size}", pool, fresh)
            yield from attention_variants("refresh", f"{shape} p{page_size}", pool, bulk([LONG[1]]), [1], fresh)
    for page_size in (16, 64):
        pool = Pool([356], [2356], MHA, page_size, 6)
        shape = f"1 x (356 of 2356) p{page_size}"
        yield from hopper_variants("refresh", shape, pool, False)
        yield from attention_variants("refresh", shape, pool, bulk([LONG[1], LONG[6]]), [1, 2], False)


def step() -> Iterator[Variant]:
    for requests, layers, splits in (
        (32, 1, (1,)),
        (1, 8, (3, 4, 6, 8)),
        (2, 4, (2, 4, 5)),
        (4, 2, (1, 2, 3)),
        (8, 2, (1, 2)),
    ):
        keys = [2300 - 7 * (r % 9) for r in range(requests)]
        for page_size in (16, 64):
            pool = Pool([32] * requests, keys, MHA, page_size, layers)
            tilings = STEP if page_size == 16 else bulk(STEP[:1] + STEP[2:])
            shape = f"{requests} x 32 of 2300 p{page_size}"
            yield from attention_variants("step", shape, pool, tilings, splits, False)
    for requests, layers, splits in ((32, 6, (1, 2)), (8, 12, (1, 2, 4)), (1, 48, (4, 6, 8, 12))):
        keys = [2300 - 7 * (r % 9) for r in range(requests)]
        for page_size in (16, 64):
            pool = Pool([33] * requests, keys, GQA, page_size, layers)
            shape = f"{requests} x 33 of 2300 p{page_size} 28/4"
            tilings = [AttentionTiling(64, 64, 4, 3), AttentionTiling(128, 64, 8, 3), AttentionTiling(64, 128, 4, 2)]
            tilings = bulk(tilings[:2]) if page_size == 64 else tilings
            yield from attention_variants("step", shape, pool, tilings, splits, False)
            yield from hopper_variants("step", shape, pool, False)
