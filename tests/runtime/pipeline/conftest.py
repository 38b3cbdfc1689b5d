"""Pipelines with a null worker, started once a module that asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from shoal.runtime.pipeline.client import PipelineClient

from .running import running, wait_idle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[PipelineClient]:
    async with running() as made:
        yield made
        await wait_idle(made)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_client() -> AsyncIterator[PipelineClient]:
    """Its forwards take 20 ms: a request of 512 tokens that commits 4 of them in each takes 2.5 s at least."""
    async with running(delay=0.02) as made:
        yield made
        await wait_idle(made)
