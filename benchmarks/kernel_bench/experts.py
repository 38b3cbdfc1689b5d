"""The experts of a layer of LLaDA-MoE-7B's shape: tiles of the grouped products."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernel_bench.variant import Variant, random

HIDDEN, WIDTH, EXPERTS, TOP_K = 2048, 1024, 64, 8
FEW = ((32, 32, 128, 4, 4), (32, 64, 128, 4, 3), (32, 32, 256, 4, 3), (32, 64, 64, 4, 4), (32, 32, 64, 4, 5),
       (32, 32, 128, 2, 4), (16, 32, 128, 4, 4), (16, 64, 128, 4, 4))  # fmt: skip
MANY = ((64, 64, 64, 4, 3), (64, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 64, 64, 4, 3), (128, 128, 64, 8, 3),
        (128, 128, 64, 8, 4))  # fmt: skip


def experts() -> Iterator[Variant]:
    """Few tokens that go to any experts or all to the same, as masks do, and many."""
    from shoal.kernels.layers.experts_triton import Tiles, expert_mlp_triton

    gate_up, down = random(EXPERTS, 2 * WIDTH, HIDDEN) / 45, random(EXPERTS, HIDDEN, WIDTH) / 32
    router = random(EXPERTS, HIDDEN).float() / 10
    for tokens, alike in ((32, False), (32, True), (1024, False), (256, False), (8192, False)):
        x, residual = random(tokens, HIDDEN), random(tokens, HIDDEN)
        if alike:
            x = x[:1] + random(tokens, HIDDEN) / 100
        chosen = (x.float() @ router.t()).topk(TOP_K, dim=-1).indices
        touched = len(chosen.unique())
        size = 2 * 3 * HIDDEN * WIDTH * touched
        flops = 6 * tokens * TOP_K * HIDDEN * WIDTH
        shape = f"{tokens} tokens, {touched} experts"
        for numbers in FEW if tokens < 256 else MANY:
            first = Tiles(*numbers)
            tiles = first, first._replace(columns=2 * first.columns)
            run = partial(expert_mlp_triton, residual, x, router, gate_up, down, TOP_K, tiles)
            yield Variant("experts", shape, "tiles " + "/".join(map(str, numbers)), [run], size, flops)
    del gate_up, down
    torch.cuda.empty_cache()
