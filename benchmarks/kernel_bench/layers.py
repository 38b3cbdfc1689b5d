"""A whole layer of a block step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernel_bench.pool import Pool
from benchmarks.kernel_bench.variant import BF16, DEVICE, HEAD_DIM, MHA, Variant, random
from shoal.kernels.layers.rope import rope_table


def layers() -> Iterator[Variant]:
    """A whole layer of a block step (LLaDA-8B shape) as the engine runs it, products by cuBLAS."""
    from shoal.kernels.attention.triton import attention_triton
    from shoal.kernels.layers.kv_write_triton import rope_write_kv_triton
    from shoal.kernels.layers.rms_norm_triton import rms_norm_triton
    from shoal.kernels.layers.swiglu_triton import swiglu_triton

    cos, sin = rope_table(4608, HEAD_DIM, 5e5, DEVICE)
    width, inner, copies = 4096, 12288, 4
    shapes = ((width, 3 * width), (width, width), (width, 2 * inner), (inner, width))
    weights = [[random(n, m) / n**0.5 for n, m in shapes] for _ in range(copies)]
    scale = torch.ones(width, device=DEVICE, dtype=BF16)
    for requests in (1, 4, 32):
        tokens, splits = 32 * requests, max(1, 8 // requests)
        pool = Pool([32] * requests, [2300] * requests, MHA, 64, copies if requests < 32 else 1)
        positions, number = pool.places(2268)
        x = random(tokens, width)

        def layer(i: int, p: Pool = pool, hidden: Tensor = x, at: Tensor = positions, n: Tensor = number,
                  parts: int = splits) -> Tensor:  # fmt: skip
            to_qkv, to_out, to_gates, to_down = weights[i % copies]
            q, k, v = (rms_norm_triton(hidden, scale, 1e-5) @ to_qkv).view(-1, 96, HEAD_DIM).split([32, 32, 32], 1)
            pages = p.pages[i % len(p.pages)]
            rope_write_kv_triton(q, k, v, cos, sin, at, n, p.batch, 0, pages, q_out=q)
            attended = attention_triton(q, pages, 0, p.batch, num_splits=parts)[0]
            hidden = torch.addmm(hidden, attended.view(-1, width), to_out)
            y = rms_norm_triton(hidden, scale, 1e-5)
            return torch.addmm(hidden, swiglu_triton(y @ to_gates), to_down)

        moved = sum(w.nbytes for w in weights[0]) + pool.bytes
        flops = pool.flops + 2.0 * tokens * sum(n * m for n, m in shapes)
        calls = [partial(layer, i) for i in range(copies)]
        yield Variant("layers", f"{requests} x 32 of 2300", "", calls, moved, flops)
