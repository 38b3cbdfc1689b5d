"""Kernels that work row by row: RoPE with the paged write, RMSNorm, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernel_bench.pool import Pool
from benchmarks.kernel_bench.variant import DEVICE, GQA, HEAD_DIM, MHA, Call, Variant, random, relative
from shoal.kernels.layers.rms_norm import rms_norm
from shoal.kernels.layers.rope import apply_rope, rope_table
from shoal.kernels.layers.swiglu import swiglu


def rows() -> Iterator[Variant]:
    from shoal.kernels.layers import swiglu_triton
    from shoal.kernels.layers.kv_write_triton import rope_write_kv_triton
    from shoal.kernels.layers.rms_norm_triton import rms_norm_triton

    cos, sin = rope_table(4608, HEAD_DIM, 5e5, DEVICE)
    for requests, queries, heads in ((32, 2256, MHA), (1, 32, MHA), (32, 32, MHA), (32, 32, GQA)):
        tokens, copies = requests * queries, 2 if queries > 32 else 8
        pool = Pool([queries] * requests, [2256] * requests, heads, 16, copies if queries == 32 else 1)
        positions, number = pool.places(0)
        layers = len(pool.q)
        q_out = torch.empty_like(pool.q[0].contiguous())
        moved = 2.0 * tokens * HEAD_DIM * (2 * heads[0] + 4 * heads[1])
        for block in ((4, 8), (4, 4), (4, 2), (8, 8), (2, 4), (8, 2), (16, 2), (1, 8), (2, 1)):

            def rope(layer: int, p: Pool = pool, at: Tensor = positions, n: Tensor = number, out: Tensor = q_out,
                     b: tuple[int, int] = block) -> Tensor:  # fmt: skip
                k, v = p.fresh[layer]
                return rope_write_kv_triton(p.q[layer], k, v, cos, sin, at, n, p.batch, 0, p.pages[layer], q_out=out,
                                            block=b)  # fmt: skip

            def rope_error(p: Pool = pool, at: Tensor = positions, run: Callable[[int], Tensor] = rope) -> float:
                long = at.long()
                return relative(run(0)[:500], apply_rope(p.q[0], cos[long], sin[long])[:500])

            shape = f"{tokens} tokens {heads[0]}/{heads[1]}"
            calls = [partial(rope, layer) for layer in range(layers)]
            yield Variant("rope", shape, f"{block[0]}x{block[1]}", calls, moved, error=rope_error)
    weight = random(4096)
    for tokens in (72192, 1024, 32):
        copies = 2 if tokens > 10000 else 16
        x = [random(tokens, 4096) for _ in range(copies)]
        for warps in (2, 4, 8, 16):

            def norm_error(xs: list[Tensor] = x, w: int = warps) -> float:
                found = rms_norm_triton(xs[0][:500], weight, 1e-5, num_warps=w)
                return relative(found, rms_norm.reference(xs[0][:500].float(), weight.float(), 1e-5))

            norms: list[Call] = [partial(rms_norm_triton, each, weight, 1e-5, num_warps=warps) for each in x]
            yield Variant("rms_norm", f"{tokens} x 4096", f"w{warps}", norms, 4.0 * tokens * 4096, error=norm_error)
        plain = [partial(F.rms_norm, each, (4096,), weight, 1e-5) for each in x]
        yield Variant("rms_norm", f"{tokens} x 4096", "torch", plain, 4.0 * tokens * 4096)
        del x
        g = [random(tokens, 2 * 12288) for _ in range(2 if tokens > 10000 else 8)]
        for size in (1024, 2048, 4096):
            calls = [partial(swiglu_triton.swiglu_triton, each, block_size=size) for each in g]

            def gated(b: int = size, gs: list[Tensor] = g) -> float:
                return relative(
                    swiglu_triton.swiglu_triton(gs[0], block_size=b)[:99], swiglu.reference(gs[0][:99].float())
                )

            yield Variant("swiglu", f"{tokens} x 12288", f"{size}", calls, 6.0 * tokens * 12288, error=gated)
        calls = [partial(swiglu.reference, each) for each in g]
        yield Variant("swiglu", f"{tokens} x 12288", "torch", calls, 6.0 * tokens * 12288)
        del g
