"""/health_generate against services that hang, refuse or are slow."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shoal.runtime.errors import EngineError, QueueFullError
from shoal.runtime.http.api_error import ApiError
from shoal.runtime.http.probe import SharedProbe
from shoal.runtime.http.routes.health import health_generate
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.service.service import MAX_PRIORITY


class Service:
    """Starts a forward for every request; `finishes` says after how many looks at the numbers one is done.

    Args:
        finishes: None: never.
        refuses: what `generate` raises; None: it waits for ever.
    """

    def __init__(self, finishes: int | None, refuses: Exception | None = None):
        self.info = types.SimpleNamespace(vocab_size=10)
        self.seen: list[GenerateInput] = []
        self.closed = 0
        self._finishes, self._refuses = finishes, refuses
        self._looks = 0

    async def generate(self, request: GenerateInput) -> AsyncGenerator[Any, None]:
        self.seen.append(request)
        try:
            if self._refuses is not None:
                raise self._refuses
            await asyncio.sleep(60)
            yield None
        finally:
            self.closed += 1

    async def stats(self) -> Any:
        self._looks += 1
        done = self._finishes is not None and self._looks > self._finishes
        return types.SimpleNamespace(forwards=len(self.seen), nfe=7 + done)


async def probe(service: Service, limit: float) -> int:
    """The status code."""
    shared: Any = service
    state: Any = types.SimpleNamespace(probe=SharedProbe(shared, limit, 0.0))
    try:
        reply = await health_generate(state)
    except ApiError as error:
        return error.status
    return reply.status_code


@pytest.mark.parametrize("refuses", [None, QueueFullError("full")])
async def test_any_forward_that_is_done_counts(refuses):
    service = Service(finishes=2, refuses=refuses)
    assert await asyncio.wait_for(probe(service, 30), 5) == 200
    assert service.closed == 1
    assert service.seen[0].priority < -MAX_PRIORITY


@pytest.mark.parametrize("refuses", [None, QueueFullError("full")])
async def test_a_forward_that_only_began_is_no_sign_of_life(refuses):
    """The probe's own, for one, when the worker hangs."""
    service = Service(finishes=None, refuses=refuses)
    assert await asyncio.wait_for(probe(service, 0.3), 5) == 503
    assert service.closed == 1


async def test_a_probe_that_fails_says_why():
    with pytest.raises(EngineError, match="the forward failed"):
        await probe(Service(finishes=None, refuses=EngineError("the forward failed: x")), 5)


async def test_however_many_ask_one_probe_runs():
    """It needs no key: whoever asks must not make the worker compute more than once in a while."""
    service: Any = Service(finishes=2)
    shared = SharedProbe(service, 30, interval_s=3600)
    first = asyncio.create_task(shared.check())
    await asyncio.sleep(0)
    await asyncio.gather(*(shared.check() for _ in range(50)))
    await first
    await shared.check()
    assert (len(service.seen), service.closed) == (1, 1)


async def test_one_who_leaves_does_not_end_it_for_the_others():
    service: Any = Service(finishes=3)
    shared = SharedProbe(service, 30, interval_s=3600)
    leaves, stays = asyncio.create_task(shared.check()), asyncio.create_task(shared.check())
    await asyncio.sleep(0)
    leaves.cancel()
    await stays
    assert len(service.seen) == 1


@pytest.mark.parametrize(("interval", "probes"), [(0.0, 3), (3600.0, 1)])
async def test_a_result_is_given_again_for_an_interval_also_a_bad_one(interval, probes):
    service: Any = Service(finishes=None, refuses=EngineError("the forward failed: x"))
    shared = SharedProbe(service, 30, interval)
    for _ in range(3):
        with pytest.raises(EngineError, match="the forward failed"):
            await shared.check()
    assert len(service.seen) == probes
