"""One way to do a piece of work, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = "cuda"
BF16 = torch.bfloat16
HEAD_DIM = 128
MHA, GQA = (32, 32), (28, 4)
"""Query and KV heads of LLaDA-8B and of Dream-7B."""
Call = Callable[[], object]


@dataclass(slots=True)
class Variant:
    """One way to do a piece of work; `calls` do it on different inputs; `error` compares with the formulas."""

    group: str
    shape: str
    name: str
    calls: Sequence[Call]
    bytes: float
    flops: float = 0.0
    error: Callable[[], float] | None = None


def random(*shape: int) -> Tensor:
    """Normal bf16 numbers on the GPU."""
    return torch.randn(*shape, device=DEVICE, dtype=BF16)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def seconds_a_call(calls: Sequence[Call], budget: float = 0.15) -> float:
    """Median over graph replays; a replay runs every call in turn, about 20 ms in all."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    once = (time.perf_counter() - begin) / len(calls)
    rounds = max(1, min(64, int(0.01 / (once * len(calls)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    spent = 0.0
    while len(times) < 5 or (spent < budget and len(times) < 50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / rounds / len(calls))
        spent += times[-1] * rounds * len(calls)
    return sorted(times)[len(times) // 2]
