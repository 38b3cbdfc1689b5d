"""A replica: a pipeline of its own, and what the gateways ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Protocol

from ..runtime.checks import OPTION
from ..runtime.errors import EngineClosedError, EngineError, ShoalError
from ..runtime.http.probe import decode_one_token
from ..runtime.http.server import StartableService
from ..runtime.logs import configure_logging
from ..runtime.request.facts import Facts
from ..runtime.request.input import GenerateInput
from ..runtime.request.lookup import CacheLookup
from ..runtime.request.stats import SchedulerStats
from ..runtime.service.info import ServiceInfo
from .config import Arguments
from .wire import Piece, Pieces, ReplicaLost

logger = logging.getLogger(__name__)
EXIT_FAILED = 1
_WARMUP_TOKENS = 8
_LAST_WORDS_S = 1.0


class ReplicaService(StartableService, Protocol):
    """A service that also says what a router and a gateway need to know."""

    @property
    def facts(self) -> Facts:
        """The worker's facts."""
        ...

    async def cache_summary(self, stride: int, limit: int) -> bytes:
        """Hashes of the prefixes that are cached."""
        ...


class Replica:
    """The deployment's class. Its constructor loads the model and warms up; it raises a ShoalError if that fails.

    When its pipeline ends by itself the process does too, after its last replies: Ray notices at once, and a
    replica without a pipeline would attract requests and answer none.
    """

    async def __init__(self, arguments: Arguments):  # type: ignore[misc]
        server = arguments.server
        configure_logging(server.log_level, server.log_json, server.log_requests)
        self._arguments = arguments
        self._called: dict[str, str] = {}  # id here -> the client's
        service = self._service = _make_service(arguments)
        try:
            await service.start()
            server.check_for(service.info.max_tokens)
            _check_stride(arguments.ray.summary_stride, service.facts.page_size)
            if not server.skip_warmup:
                await decode_one_token(service, "warm-up", _WARMUP_TOKENS)
        except BaseException:
            await service.shutdown(0.0)
            raise
        self._watch = asyncio.create_task(self._end_with_service())

    async def __del__(self) -> None:
        """End the pipeline. Ray calls it once, after the requests in flight have ended or their time is over."""
        self._watch.cancel()
        await self._service.shutdown(0.0)

    async def _end_with_service(self) -> None:
        status = await self._service.closed()
        logger.error("The replica ends: %s", status.reason)
        await asyncio.sleep(_LAST_WORDS_S)
        os._exit(EXIT_FAILED)

    # What Ray asks

    async def check_health(self) -> None:
        """Raise EngineClosedError unless requests are taken."""
        status = self._service.status
        if status.state != "up":
            raise EngineClosedError(f"the replica is {status.state}: {status.reason}")

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the routers learn of this replica: `prefixes`, hashes of what its tree holds."""
        ray = self._arguments.ray
        if ray.router != "prefix":
            return {}
        return {"prefixes": await self._service.cache_summary(ray.summary_stride, ray.summary_limit)}

    # What gateways ask

    async def describe(self) -> tuple[ServiceInfo, Facts]:
        """What runs here."""
        return self._service.info, self._service.facts

    async def generate(
        self, request: GenerateInput, prefix: bytes = b"", called: str = ""
    ) -> AsyncGenerator[Piece | ShoalError | ReplicaLost, None]:
        """Outputs of one request, as pieces.

        The last item is the piece of a terminal output, the error of a request that was not accepted, or a ReplicaLost
        when the replica can't go on with it. `prefix` is for the router alone, `called` is the client's id of the
        request. Closing the iterator aborts the request.
        """
        pieces = Pieces()
        self._called[request.rid] = called
        try:
            async with contextlib.aclosing(self._service.generate(request)) as outputs:
                async for output in outputs:
                    if output.error is not None and self._is_lost(output.error):
                        yield ReplicaLost(output.error.message, 2 * _LAST_WORDS_S)
                    else:
                        yield pieces.of(output)
        except ShoalError as error:
            yield ReplicaLost(error.message, 2 * _LAST_WORDS_S) if self._is_lost(error) else error
        finally:
            del self._called[request.rid]

    def _is_lost(self, error: ShoalError) -> bool:
        return isinstance(error, EngineError | EngineClosedError) and self._service.status.state != "up"

    async def abort(self, called: str | None) -> int:
        """End the requests that clients call so early, or all of them; returns how many."""
        ids = [rid for rid, name in self._called.items() if called in (None, name)]
        return sum([await self._service.abort(rid) for rid in ids])

    async def flush_cache(self) -> None:
        """Drop every cached prefix. Raises CacheInUseError."""
        await self._service.flush_cache()

    async def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data."""
        return await self._service.cache_snapshot()

    async def stats(self) -> SchedulerStats:
        """The scheduler's numbers."""
        return await self._service.stats()

    async def lookup(self, request: GenerateInput, prefix: bytes = b"") -> CacheLookup | ShoalError:
        """What a request would reuse here, or what is wrong with it."""
        try:
            return await self._service.lookup(replace(request, rid=""))
        except ShoalError as error:
            return error


def _check_stride(stride: int, page_size: int) -> None:
    if stride % page_size:
        OPTION.refuse("summary_stride", stride, f"a multiple of page_size, {page_size}")


def _make_service(arguments: Arguments) -> ReplicaService:
    server = arguments.server
    if server.in_process:
        from ..runtime.cpu_tuning import limit_spinning

        limit_spinning()
        from ..runtime.engine.service import LocalService

        return LocalService(arguments.engine)
    from ..runtime.pipeline.client import PipelineClient

    return PipelineClient(arguments.engine, arguments.pipeline, log_level=server.log_level, log_json=server.log_json)
