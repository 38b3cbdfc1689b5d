"""Sends planned requests to a server over HTTP, streaming, and takes times as a client sees them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks.load.traffic import Planned

BLOCK = 32
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Done:
    """Seconds until the first tokens and until the end, tokens generated, prompt tokens found in the cache."""

    first: float
    total: float
    tokens: int
    cached: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How requests are decoded: the mode, positions of a block, and forwards for each block.

    A mode that ends in `+settled` keeps settled blocks behind a window of one block of masks.
    """

    mode: str
    block: int = BLOCK
    nfe: int = 8

    def body(self, item: Planned) -> dict[str, object]:
        """A body of POST /generate."""
        blocks = math.ceil(item.new_tokens / self.block)
        params: dict[str, object] = {
            "max_new_tokens": item.new_tokens, "block_length": self.block, "steps": blocks * self.nfe,
            "ignore_eos": True,
        }  # fmt: skip
        mode, plus, _ = self.mode.partition("+settled")
        if plus:
            params |= {"canvas_window": self.block, "refresh_schedule": "settled"}
        return {"input_ids": item.prompt, "sampling_params": params, "stream": True, "cache_mode": mode}


async def send(client: httpx.AsyncClient, item: Planned, decoding: Decoding) -> Done:
    """Stream one request; a failure is a result too."""
    started = time.perf_counter()
    first, tokens, cached = math.inf, 0, 0
    try:
        async with client.stream("POST", "/generate", json=decoding.body(item)) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode()[:200]
                return Done(math.inf, math.inf, 0, 0, f"{reply.status_code}: {text}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                data = json.loads(line[6:])
                if "error" in data:
                    return Done(first, math.inf, tokens, cached, str(data["error"])[:200])
                info = data["meta_info"]
                tokens, cached = info["completion_tokens"], info["cached_tokens"]
                if tokens and first == math.inf:
                    first = time.perf_counter() - started
    except httpx.HTTPError as error:
        return Done(first, math.inf, tokens, cached, type(error).__name__)
    return Done(first, time.perf_counter() - started, tokens, cached)


async def open_loop(
    url: str, items: Sequence[Planned], decoding: Decoding, limit_s: float = _TIMEOUT_S
) -> tuple[list[Done], float]:
    """Send every request at its time, whatever the server does; results, and seconds until the last was done.

    A client gives up after `limit_s` seconds, which aborts its request: the total is infinity then.
    """
    async with _client(url) as client:
        started = time.perf_counter()

        async def at_its_time(item: Planned) -> Done:
            await asyncio.sleep(max(0.0, item.at - (time.perf_counter() - started)))
            try:
                async with asyncio.timeout(limit_s):
                    return await send(client, item, decoding)
            except TimeoutError:
                return Done(math.inf, math.inf, 0, 0)

        done = await asyncio.gather(*(at_its_time(item) for item in items))
        return list(done), time.perf_counter() - started


async def closed_loop(
    urls: Sequence[str], items: Sequence[Planned], decoding: Decoding, streams: int
) -> tuple[list[Done], float]:
    """`streams` clients that each send the next request when theirs is done, to the servers in turn."""
    done: list[Done] = []
    waiting = iter(enumerate(items))
    started = time.perf_counter()

    async def stream() -> None:
        for number, item in waiting:
            done.append(await send(clients[number % len(clients)], item, decoding))

    clients = [_client(url) for url in urls]
    try:
        await asyncio.gather(*(stream() for _ in range(streams)))
    finally:
        for client in clients:
            await client.aclose()
    return done, time.perf_counter() - started


def quantile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed: no interpolation, so infinity stays infinity."""
    return float(np.quantile(np.asarray(values), percent / 100, method="inverted_cdf"))


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits)
