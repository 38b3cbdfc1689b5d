"""What follows the LM head: masked rows, confidence, commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_bench.variant import DEVICE, Call, Variant, random, relative
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.sampling.canvas_state import CanvasState, acceptance_bounds
from shoal.kernels.sampling.confidence import confidence


def canvas(requests: int, block: int = 32) -> tuple[CanvasState, AttentionBatch, Tensor]:
    state = CanvasState.empty(requests, 4608, block, 4, DEVICE)
    state.masked[:, 2000:] = 1
    state.block_starts[:] = 2000
    state.block_stops[:] = 2000 + block
    state.bounds[:] = acceptance_bounds(0.9, None, block).to(DEVICE)
    tables = torch.zeros((requests, 1, 1), dtype=torch.int32, device=DEVICE)
    batch = AttentionBatch.build(tables, range(requests), [block] * requests, [2300] * requests)
    return state, batch, torch.full((requests,), 2000, dtype=torch.int32, device=DEVICE)


def sampling() -> Iterator[Variant]:
    from shoal.kernels.sampling.commit_triton import commit_triton
    from shoal.kernels.sampling.confidence_triton import block_confidence_triton
    from shoal.kernels.sampling.masked_rows_triton import masked_rows_triton

    vocabulary = 126464
    for requests in (1, 8, 32):
        state, batch, first = canvas(requests)
        count = 32 * requests
        masked = masked_rows_triton(state, batch, first, count)
        logits = [random(count, vocabulary) * 3 for _ in range(8 if requests < 8 else 2)]
        shape = f"{count} x {vocabulary}"
        for lanes, warps in ((256, 8), (256, 4), (128, 4), (512, 8), (512, 16), (128, 2)):

            def run(i: int, ls: list[Tensor] = logits, s: CanvasState = state, m: Any = masked, n: int = lanes,
                    w: int = warps, draw: bool = False) -> Any:  # fmt: skip
                return block_confidence_triton(ls[i], s, m, impossible_token=7, draw=draw, lanes=n, num_warps=w)

            def worst(ls: list[Tensor] = logits, call: Callable[[int], Any] = run) -> float:
                found, limited = call(0), ls[0][:64].float()
                limited[:, 7] = -torch.inf
                expected = confidence.reference(limited)
                pairs = zip(found[1:], expected[1:], strict=True)
                chosen = limited.gather(1, found.token[:64, None])[:, 0]  # the best logit may be there twice
                wrong = float((chosen != limited.max(1).values).sum())
                return max(wrong, *(relative(a[:64], b) for a, b in pairs))

            calls = [partial(run, i) for i in range(len(logits))]
            yield Variant("confidence", shape, f"{lanes} lanes w{warps}", calls, logits[0].nbytes, error=worst)
        state.temperatures[:] = 0.7
        for lanes, warps in ((256, 8), (128, 4)):
            calls = [partial(run, i, n=lanes, w=warps, draw=True) for i in range(len(logits))]
            yield Variant("confidence", shape, f"{lanes} lanes w{warps} with draws", calls, logits[0].nbytes)
        calls = [partial(lambda x: x.float().softmax(-1).max(-1), each) for each in logits]
        yield Variant("confidence", shape, "torch softmax max", calls, logits[0].nbytes)
        best = block_confidence_triton(logits[0], state, masked, draw=False)
        find: Call = partial(masked_rows_triton, state, batch, first, count)
        yield Variant("masked_rows", f"{requests} blocks", "", [find], 10.0 * count)
        take: Call = partial(commit_triton, state, batch, masked, best, vocabulary)
        yield Variant("commit", f"{requests} blocks", "", [take], 30.0 * count)
        del logits
