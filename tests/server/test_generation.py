"""Generations of one HTTP request, over a service that never answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.http.generation import Generations
from shoal.runtime.http.metrics import Metrics
from shoal.runtime.service import GenerateInput


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
