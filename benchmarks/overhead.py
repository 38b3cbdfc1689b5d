"""Overhead of serving: one number, one run, and how a run is measured."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One number."""

    measurement: str
    streaming: bool
    metric: str
    value: float
    unit: str
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds, requests, forwards, and CPU seconds by process."""

    seconds: float
    requests: int
    forwards: int
    cpu: dict[str, float]


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """User and system time of processes so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        found[name] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def prompts(count: int, seed: int) -> list[str]:
    """Texts of about 64 tokens, no two alike."""
    words = ["how", "much", "is", "a", "red", "apple", "and", "a", "green", "pear", "or", "the", "blue", "plum"]
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words, k=60)) for _ in range(count)]


async def run_all(texts: list[str], one: Callable[[int, str], Awaitable[None]]) -> None:
    """`one` for every text, IN_FLIGHT at a time."""
    left = iter(list(enumerate(texts)))

    async def client() -> None:
        for number, text in left:
            await one(number, text)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))


async def measure(
    texts: list[str], one: Callable[[int, str], Awaitable[None]], pids: dict[str, int],
    forwards: Callable[[], Awaitable[int]],
) -> Sample:  # fmt: skip
    """One run of all texts."""
    before, steps = cpu_seconds(pids), await forwards()
    begin = time.perf_counter()
    await run_all(texts, one)
    seconds = time.perf_counter() - begin
    after = cpu_seconds(pids)
    return Sample(seconds, len(texts), await forwards() - steps, {name: after[name] - before[name] for name in pids})


def overhead_rows(name: str, streaming: bool, samples: list[Sample]) -> Iterator[Row]:
    """Wall time of the fastest run and of the median one, CPU time of all: by request, or for `steps` by forward."""
    count = sum(sample.requests for sample in samples)
    unit = "step" if name == "steps" else "request"
    times = [s.seconds / (s.forwards if name == "steps" else s.requests) * 1e3 for s in samples]
    yield Row(name, streaming, f"wall_per_{unit}", min(times), "ms", count)
    yield Row(name, streaming, f"wall_per_{unit}_median", statistics.median(times), "ms", count)
    per = sum(s.forwards if name == "steps" else s.requests for s in samples)
    for process in samples[0].cpu:
        cpu = sum(sample.cpu[process] for sample in samples)
        yield Row(name, streaming, f"cpu_per_{unit}_{process}", cpu / per * 1e3, "ms", count)


async def measure_repeatedly(
    requests: int, repeats: int, one: Callable[[int, str], Awaitable[None]], pids: dict[str, int],
    forwards: Callable[[], Awaitable[int]],
) -> list[Sample]:  # fmt: skip
    """`repeats` runs of `requests` texts each, after an uncounted warm-up run."""
    runs = [await measure(prompts(requests, repeat), one, pids, forwards) for repeat in range(repeats + 1)]
    return runs[1:]
