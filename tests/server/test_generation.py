"""Generations of one HTTP request, over a service that never answers."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shoal.runtime.errors import EngineClosedError, InvalidRequestError
from shoal.runtime.http.generation import Generations
from shoal.runtime.http.metrics import Metrics
from shoal.runtime.service.service import GenerateInput


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
