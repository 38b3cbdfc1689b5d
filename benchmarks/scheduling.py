"""The scheduler's part of a step, in one process without sockets: plan, encode, decode, apply."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.overhead import IN_FLIGHT, Row
from shoal import SamplingParams
from shoal.runtime.config import EngineConfig
from shoal.runtime.pipeline.messages import Codec, FromWorker, Results, Run, ToWorker
from shoal.runtime.request.request import Request
from shoal.runtime.request.spec import RequestSpec
from shoal.runtime.scheduler.build import build_scheduler
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.null import build_null_worker

TOKENS = 512


def scheduling(repeats: int) -> list[Row]:
    """The scheduler's work for a step of IN_FLIGHT requests, without sockets; the null worker's own time taken off."""
    worker, facts = build_null_worker(EngineConfig(device="cpu"), 4)
    scheduler = build_scheduler(EngineConfig(device="cpu"), facts, worker)
    to_worker: Codec[Any] = Codec(ToWorker)
    from_worker: Codec[Any] = Codec(FromWorker)
    prompt = np.arange(4, 68)
    made = 0

    def loop(steps: int) -> float:
        nonlocal made
        own = 0.0
        for _ in range(steps):
            while scheduler.num_running + scheduler.num_waiting < IN_FLIGHT:
                made += 1
                sampling = SamplingParams(max_new_tokens=TOKENS, block_length=TOKENS, ignore_eos=True)
                spec = RequestSpec(
                    rid=str(made), prompt=prompt, sampling=sampling, cache_mode="bicache", cache_salt="",
                    block_length=TOKENS, seed=1, stop_ids=frozenset(),
                )  # fmt: skip
                scheduler.add(Request(spec, TextStream(None)))
            begin = time.perf_counter()
            planned = scheduler.plan()
            if planned is not None:
                message = to_worker.decode(to_worker.encode(Run(planned.forward)))
                middle = time.perf_counter()
                results = worker.forward(message.forward)
                own -= time.perf_counter() - middle
                scheduler.apply(planned, from_worker.decode(from_worker.encode(Results(results))).results)
            scheduler.take()
            own += time.perf_counter() - begin
        return own / steps

    loop(200)
    best = min(loop(1000) for _ in range(repeats))
    return [Row("scheduling", True, "per_step", best * 1e3, "ms", made)]
