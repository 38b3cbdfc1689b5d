"""A pipeline with a null worker, started once a module that asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from shoal.runtime.pipeline_client import PipelineClient

from .running import running, wait_idle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[PipelineClient]:
    async with running() as made:
        yield made
        await wait_idle(made)
