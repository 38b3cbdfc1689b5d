"""Generations of one HTTP request, over a service that never answers."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shoal.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError, RequestTimeoutError
from shoal.runtime.http.generation import Generations, _never_ran
from shoal.runtime.http.metrics import Metrics
from shoal.runtime.request.input import GenerateInput


class Service:
    """Counts what runs."""

    running = 0

    async def generate(self, request: GenerateInput) -> AsyncGenerator[Any, None]:
        self.running += 1
        try:
            await asyncio.sleep(3600)
            yield None
        finally:
            self.running -= 1


async def test_of_two_requests_with_one_id_the_second_is_refused_and_the_first_goes_on():
    """Both may have passed the check of their ids before either began."""
    service: Any = Service()
    generations = Generations(service, Metrics())
    async with generations.open(
        "same", [GenerateInput(rid="same-0", prompt="a"), GenerateInput(rid="same-1", prompt="b")]
    ):
        with pytest.raises(InvalidRequestError, match="in use"):
            async with generations.open("same", [GenerateInput(rid="same", prompt="c")]):
                pass
        await asyncio.sleep(0)
        assert generations.is_used("same")
        assert (generations.num_active, service.running) == (1, 2)
    assert (generations.num_active, service.running) == (0, 0)


class Answers(Service):
    """Sends what it is told, then waits until it is told to end."""

    def __init__(self, *outputs: Any):
        self.outputs = outputs
        self.told = asyncio.Event()

    async def generate(self, request: GenerateInput) -> AsyncGenerator[Any, None]:
        for output in self.outputs:
            yield output
        await self.told.wait()
        yield output_of("abort")


def output_of(end: str | None) -> Any:
    return types.SimpleNamespace(finished=end is not None, finish_reason=end, error=None)


async def test_what_the_server_s_end_cuts_short_ends_with_its_error_alone(monkeypatch):
    """Not with the `abort` that the service says next, however late anybody looks."""
    monkeypatch.setattr("shoal.runtime.http.generation._log", lambda item, output: None)
    service: Any = Answers(output_of(None))
    metrics: Any = types.SimpleNamespace(watch=lambda: types.SimpleNamespace(saw=lambda output: None))
    generations = Generations(service, metrics)
    error = EngineClosedError("shutting down")
    async with generations.open("a", [GenerateInput(rid="a", prompt="a")]) as generation:
        outputs = generation.outputs()
        assert (await anext(outputs))[1].finish_reason is None
        generations.end(error)
        service.told.set()
        await asyncio.sleep(0.01)
        with pytest.raises(EngineClosedError, match="shutting down"):
            await anext(outputs)
    with pytest.raises(EngineClosedError, match="shutting down"):
        generations.open("b", [])
    assert generations.num_active == 0


async def test_an_answer_that_nobody_has_looked_at_before_the_server_s_end_is_its_error_too(monkeypatch):
    monkeypatch.setattr("shoal.runtime.http.generation._log", lambda item, output: None)
    service: Any = Answers()
    metrics: Any = types.SimpleNamespace(watch=lambda: types.SimpleNamespace(saw=lambda output: None))
    generations = Generations(service, metrics)
    async with generations.open("a", [GenerateInput(rid="a", prompt="a")]) as generation:
        await asyncio.sleep(0.01)
        generations.end(EngineClosedError("shutting down"))
        service.told.set()
        await asyncio.sleep(0.01)
        with pytest.raises(EngineClosedError, match="shutting down"):
            await generation.collect()


class Turns(Service):
    """Answers with an abort when told to. Has room for `room` requests."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.most = 0
        self.refused = 0
        self.ends: dict[str, asyncio.Event] = {}

    async def generate(self, request: GenerateInput) -> AsyncGenerator[Any, None]:
        if len(self.ends) >= self.room:
            self.refused += 1
            raise QueueFullError("full")
        end = self.ends[request.rid] = asyncio.Event()
        self.most = max(self.most, len(self.ends))
        await end.wait()
        yield _never_ran(request.rid)

    async def abort(self, rid: str | None = None) -> int:
        ends = [self.ends.pop(rid)] if rid in self.ends else []
        for end in ends:
            end.set()
        return len(ends)


def inputs(count: int) -> list[GenerateInput]:
    return [GenerateInput(rid=f"r{n}", prompt="a") for n in range(count)]


async def test_generations_take_turns_and_those_that_wait_can_be_aborted():
    service: Any = Turns()
    generations = Generations(service, Metrics())
    async with generations.open("all", inputs(9), 2) as generation:
        collecting = asyncio.create_task(generation.collect())
        await asyncio.sleep(0.01)
        assert list(service.ends) == ["r0", "r1"]
        assert await generations.abort("r5") == 1
        assert await generations.abort("r0") == 1
        assert await generations.abort("r0") == 0
        await asyncio.sleep(0.01)
        assert list(service.ends) == ["r1", "r2"]
        assert await generations.abort("all") == 7
        assert [output.finish_reason for output in await collecting] == ["abort"] * 9
    assert (service.most, generations.num_active) == (2, 0)


async def test_the_rest_of_a_batch_waits_for_a_queue_that_is_full_and_the_start_of_one_does_not():
    service: Any = Turns(room=1)
    generations = Generations(service, Metrics())
    async with generations.open("one", inputs(1)) as first:
        await asyncio.sleep(0.01)
        async with generations.open("two", [GenerateInput(rid="second", prompt="a")]) as second:
            with pytest.raises(QueueFullError):
                await second.collect()
        await generations.abort("r0")
        await first.collect()
    async with generations.open("batch", inputs(2), 1) as batch:
        collecting = asyncio.create_task(batch.collect())
        await asyncio.sleep(0.01)
        service.ends["other"] = asyncio.Event()
        await service.abort("r0")
        while service.refused < 3:
            await asyncio.sleep(0.01)
        await service.abort("other")
        while "r1" not in service.ends:
            await asyncio.sleep(0.01)
        await service.abort("r1")
        assert len(await collecting) == 2


class Queue(Service):
    """Has room for two requests; answers each once the test lets it."""

    def __init__(self) -> None:
        self.seen: list[GenerateInput] = []
        self.go_on = asyncio.Semaphore(0)

    async def generate(self, request: GenerateInput) -> AsyncGenerator[Any, None]:
        if self.running >= 2:
            raise QueueFullError("full")
        self.running += 1
        self.seen.append(request)
        try:
            await self.go_on.acquire()
            yield _never_ran(request.rid)
        finally:
            self.running -= 1

    async def abort(self, rid: str | None = None) -> int:
        return 0


async def test_a_batch_that_never_fits_the_queue_takes_turns_of_its_own():
    """A 503 would ask its client to try again for ever."""
    service: Any = Queue()
    generations = Generations(service, Metrics())
    async with generations.open("batch", inputs(5)) as batch:
        collecting = asyncio.create_task(batch.collect())
        await asyncio.sleep(0.01)
        assert [item.rid for item in service.seen] == ["r0", "r1"]
        assert await generations.abort("r4") == 1, "it waits for the queue"
        async with generations.open("other", [GenerateInput(rid="other", prompt="a")]) as other:
            with pytest.raises(QueueFullError):
                await other.collect()
        for _ in range(4):
            service.go_on.release()
        assert [output.rid for output in await collecting] == [f"r{n}" for n in range(5)]
    assert [item.rid for item in service.seen] == ["r0", "r1", "r2", "r3"]


async def test_time_goes_on_while_a_batch_waits_and_errors_say_the_clients_number():
    service: Any = Queue()
    items = [GenerateInput(rid=f"r{n}", prompt="a", timeout_s=timeout) for n, timeout in enumerate((9.0, 9.0, 0.25))]
    async with Generations(service, Metrics()).open("batch", items) as batch:
        with pytest.raises(RequestTimeoutError, match=r"timeout_s = 0\.25 seconds \(it was waiting\)"):
            await batch.collect()
    service.seen.clear()
    async with Generations(service, Metrics()).open("turns", items[:2], 1) as batch:
        collecting = asyncio.create_task(batch.collect())
        await asyncio.sleep(0.01)
        service.go_on.release()
        while len(service.seen) < 2:
            await asyncio.sleep(0.01)
        service.go_on.release()
        await collecting
    assert [item.timeout_s for item in service.seen] == [9.0, 9.0]
    assert 0 < service.seen[0].waited_s < service.seen[1].waited_s
