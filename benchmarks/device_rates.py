"""bf16 matmul rate and copy bandwidth of this device, on random data: the ceilings of all other figures."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from shoal.provenance import commit, hardware


@dataclass(frozen=True, slots=True)
class Rates:
    """flops: bf16 matmul, FLOP/s; bytes: device-to-device copy, bytes read and written a second."""

    flops: float
    bytes: float

    def columns(self) -> dict[str, object]:
        """The rates as columns of a results file."""
        return {"matmul_tflops": f"{self.flops / 1e12:.0f}", "copy_tbs": f"{self.bytes / 1e12:.2f}"}

    def origin(self, commit_given: str | None) -> dict[str, object]:
        """Columns that say where a results file comes from; the commit is this checkout's unless it is given."""
        return {
            **self.columns(), "command": "python " + shlex.join(sys.argv), "commit": commit_given or commit(),
            "hardware": hardware(), "torch": torch.__version__,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"matmul {self.flops / 1e12:.3g} TFLOP/s, copy {self.bytes / 1e12:.3g} TB/s"


def seconds(run: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Median time of `run` on the GPU, by events."""
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


def measure_rates(device: str = "cuda") -> Rates:
    """A square product of 8,192 and a copy of 4 GiB; on a CPU small ones, to try a benchmark out.

    Holds no GPU memory afterwards, since an engine takes what is free at its start.
    """
    if device != "cuda":
        return _rates(device, 256, 1 << 20, _wall_clock)
    rates = _rates(device, 8192, 1 << 31, seconds)
    torch.cuda.empty_cache()
    return rates


def _rates(device: str, size: int, numbers: int, time_of: Callable[[Callable[[], object]], float]) -> Rates:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = time_of(lambda: torch.mm(a, b))
    source = torch.empty(numbers, device=device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    copy = time_of(lambda: target.copy_(source))
    return Rates(2 * size**3 / product, 2 * numbers * 2 / copy)


def _wall_clock(run: Callable[[], object]) -> float:
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
