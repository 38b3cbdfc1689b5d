"""Attention of block steps whose requests share a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from benchmarks.kernel_bench.attention import attention_variants, bulk
from benchmarks.kernel_bench.pool import Pool
from benchmarks.kernel_bench.variant import DEVICE, HEAD_DIM, MHA, Variant
from shoal.kernels.attention.groups import SharedGroups, plan_shared_groups
from shoal.kernels.attention.tiling import AttentionTiling

SHARED_TILINGS = [AttentionTiling(128, 64, 8, 3, bulk=True), AttentionTiling(128, 128, 8, 3, bulk=True)]
OWN = [
    AttentionTiling(64, 64, 4, 3, heads_first=True), AttentionTiling(64, 64, 4, 2, heads_first=True),
    AttentionTiling(64, 32, 4, 3, heads_first=True), AttentionTiling(64, 32, 4, 2, heads_first=True),
    AttentionTiling(32, 32, 4, 3, heads_first=True), AttentionTiling(64, 64, 4, 3),
]  # fmt: skip


def shared() -> Iterator[Variant]:
    from shoal.kernels.attention.shared_triton import shared_attention_triton

    keys = 2300
    for requests, sharers in ((32, 2), (32, 4), (32, 32), (4, 4), (8, 8)):
        for page_size in (16, 64):
            if page_size == 64 and (requests, sharers) not in ((32, 4), (4, 4), (8, 8)):
                continue
            layers = max(1, 4 // requests)
            pool = Pool([32] * requests, [keys] * requests, MHA, page_size, layers, shared=1984, sharers=sharers)
            starts = pool.batch.query_starts.tolist()
            plan = plan_shared_groups(
                pool.tables.numpy(), range(requests), starts, pool.keys, page_size, *MHA, min_sharers=2
            )
            groups = SharedGroups.empty(1, requests, 32 * requests, *MHA, DEVICE)
            groups.load(plan)
            shape = f"{requests} x 32 of {keys}, {sharers} share 1984, p{page_size}"
            yield from attention_variants("shared", shape, pool, [None], [max(1, 8 // requests)], False)
            floor = pool.kv_bytes + 4 * 32 * requests * 32 * HEAD_DIM
            for tiling in OWN if page_size == 16 else bulk(OWN):
                for long in SHARED_TILINGS[: 1 + (tiling == OWN[0])]:

                    def run(layer: int, p: Pool = pool, g: SharedGroups = groups, t: AttentionTiling = tiling,
                            by: AttentionTiling = long) -> Tensor:  # fmt: skip
                        return shared_attention_triton(
                            p.q[layer], p.pages[layer], 0, p.batch, g, shared_tiling=by, tiling=t
                        )[0]

                    calls = [partial(run, layer) for layer in range(layers)]
                    name = f"shared {long.block_keys} own {tiling.block_rows}x{tiling.block_keys} s{tiling.num_stages}"
                    yield Variant("shared", shape, name, calls, floor, pool.flops, partial(pool.error, run, False))
    for page_size in (16, 64):
        pool = Pool([32] * 32, [300] * 32, MHA, page_size, 2)
        for tiling in OWN if page_size == 16 else bulk(OWN):
            yield from attention_variants("shared", f"32 x 32 of 300 p{page_size}", pool, [tiling], [1], False)
