"""A replica's own part, without Ray: which requests an abort ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from shoal.runtime.errors import QueueFullError
from shoal.runtime.request.input import GenerateInput
from shoal.serve_ray.replica import Replica


class Service:
    """Runs requests until they are aborted, except `refused`."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}

    async def generate(self, request: GenerateInput) -> AsyncGenerator[None, None]:
        if request.rid == "refused":
            raise QueueFullError("full")
        self.running[request.rid] = asyncio.Event()
        await self.running[request.rid].wait()
        return
        yield

    async def abort(self, rid: str | None = None) -> int:
        ends = [one for one in self.running if rid in (None, one)]
        for one in ends:
            self.running.pop(one).set()
        return len(ends)


class Bare(Replica):
    """A replica with that service alone."""

    def __init__(self) -> None:
        self._service, self._called = Service(), {}  # type: ignore[assignment]

    def __del__(self) -> None:  # type: ignore[override]
        """Not Ray's."""


async def test_requests_are_aborted_by_what_clients_call_them():
    replica = Bare()

    async def run(rid: str, called: str) -> list[object]:
        return [item async for item in replica.generate(GenerateInput(prompt=[1], rid=rid), b"", called)]

    tasks = [asyncio.create_task(run(*one)) for one in (("g1-0", "mine"), ("g2-0", "mine"), ("g1-1", "other"))]
    await asyncio.sleep(0)
    (refused,) = await run("refused", "again")
    assert isinstance(refused, QueueFullError)
    assert await replica.abort("again") == 0  # it is over
    assert await replica.abort("mine") == 2
    assert await replica.abort("mine") == 0
    assert not tasks[2].done()
    assert await replica.abort(None) == 1
    await asyncio.gather(*tasks)
    assert replica._called == {}
