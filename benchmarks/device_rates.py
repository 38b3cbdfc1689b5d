"""What the GPU at hand can do: bf16 matmul rate and copy bandwidth, on random data. The ceilings of all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True, slots=True)
class Rates:
    """flops: bf16 matmul, FLOP/s; bytes: device-to-device copy, bytes read and written a second."""

    flops: float
    bytes: float


def seconds(run: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Median time of `run` on the device, by events."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def measure_rates() -> Rates:
    """A square product of 8,192 and a copy of 4 GiB."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: torch.mm(a, b))
    source = torch.empty(1 << 31, device="cuda", dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    return Rates(2 * size**3 / product, 2 * source.numel() * 2 / copy)
