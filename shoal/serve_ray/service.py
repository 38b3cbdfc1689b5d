"""`RayService`: the Service over replicas on Ray; lives in a gateway's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ..radix_cache.errors import InvalidArgumentError
from ..radix_cache.node import Namespace
from ..radix_cache.summary import prefix_hashes
from ..runtime.errors import (
    CacheInUseError,
    EngineClosedError,
    InvalidRequestError,
    QueueFullError,
    ShoalError,
    time_out,
)
from ..runtime.request.input import Conversation, GenerateInput, TextPrompt
from ..runtime.request.lookup import CacheLookup
from ..runtime.request.output import RequestOutput
from ..runtime.request.stats import SchedulerStats
from ..runtime.request.trace_options import TraceOptions
from ..runtime.scheduler.modes import MODES
from ..runtime.service.info import ServiceInfo
from ..runtime.service.service import ServiceStatus
from ..runtime.text.parts import as_parts
from .config import Arguments
from .text_lanes import TextLanes
from .totals import joined_snapshots, total_stats
from .wire import ReplicaLost, Whole

logger = logging.getLogger(__name__)
_POLL_S = 0.02
_COUNT_S = 2.0
_LOOK_S, _GRACE_S = 0.5, 1.0
_ANSWER_S = 30.0
_PATIENCE_S = 60.0
_ATTEMPTS = 3


class RayService:
    """See `Service` for what the methods promise.

    A request whose replica ends goes to another one if its caller has had no output yet, else it ends with an error:
    no other replica can go on with it. All other errors of a request are the replica's own.

    Args:
        arguments: of the application.
        handle: of the replicas' deployment.
        count: counts the replicas that run; called in a thread.
    """

    def __init__(self, arguments: Arguments, handle: DeploymentHandle[Any], count: Callable[[], int]):
        self._arguments, self._handle, self._count = arguments, handle, count
        self._stream = handle.options(stream=True)
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._active: set[str] = set()
        self._status = ServiceStatus("starting", "no replica is running")
        self._info: ServiceInfo | None = None
        self._texts: TextLanes
        self._without_since = 0.0
        self._counting: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    # Life

    async def start(self) -> None:
        """Wait for a replica, and load the tokenizer."""
        self._info, facts = await self._handle.describe.remote()
        self._texts = TextLanes(self._arguments.engine, facts)
        await self._texts.prepare()
        self._status = ServiceStatus("up")
        self._counting = asyncio.create_task(self._keep_counting())

    async def _keep_counting(self) -> None:
        """Be up while any replica runs."""
        while self._status.state != "dead":
            try:
                running = await asyncio.to_thread(self._count)
            except Exception as error:  # the controller is busy or starts again; replicas go on meanwhile
                logger.warning("the replicas can't be counted: %s", error)
            else:
                up = ServiceStatus("up") if running else ServiceStatus("starting", "no replica is running")
                if self._status.state == "up" and not running:
                    self._without_since = time.monotonic()
                if self._status.state in ("starting", "up"):
                    self._status = up
            await asyncio.sleep(_COUNT_S)

    @property
    def status(self) -> ServiceStatus:
        """See Service."""
        return self._status

    @property
    def info(self) -> ServiceInfo:
        """See Service: of one of the replicas, which are alike."""
        if self._info is None:
            raise EngineClosedError(self._status.reason)
        return self._info

    async def closed(self) -> ServiceStatus:
        """See Service."""
        await self._closed.wait()
        return self._status

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """See Service: of this gateway, not of the replicas."""
        if self._status.state == "dead":
            return
        self._status = ServiceStatus("draining", "the server is shutting down")
        await self._until_idle(drain_timeout_s)
        if self._counting is not None:
            self._counting.cancel()
            self._texts.close()
        self._status = ServiceStatus("dead", "the server was shut down")
        self._closed.set()

    async def _until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)

    # Requests

    async def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """See Service."""
        if self._status.state != "up":
            raise EngineClosedError(self._status.reason)
        rid = request.rid
        if rid in self._active:
            raise InvalidRequestError(f"rid {rid!r} is in use", field="rid", value=rid)
        # An id of our own: clients of other gateways choose theirs without knowing of this one's.
        inner = f"{self._name}-{next(self._numbers)}"
        self._active.add(rid)
        try:
            request = replace(await self._with_tokens(request), rid=inner)
            async with contextlib.aclosing(self._attempts(request, rid)) as outputs:
                async for output in outputs:
                    yield replace(output, rid=rid)
        finally:
            self._active.discard(rid)

    async def _attempts(self, request: GenerateInput, rid: str) -> AsyncGenerator[RequestOutput, None]:
        prefix = self._prefix(request)
        begin, waited = time.monotonic(), request.waited_s
        for attempt in range(1, _ATTEMPTS + 1):
            last: RequestOutput | None = None
            request = replace(request, waited_s=waited + time.monotonic() - begin)
            async with contextlib.aclosing(self._outputs(request, prefix, rid)) as outputs:
                async for item in outputs:
                    if isinstance(item, ReplicaLost):
                        break
                    last = item
                    yield item
                    if item.finished:
                        return
                else:
                    item = ReplicaLost("it ended the stream")
            message = f"the replica of this request ended ({item.reason}); send the request again"
            logger.warning("%s: attempt %d of %d: %s", request.rid, attempt, _ATTEMPTS, item.reason)
            if last is not None:
                yield replace(last, finish_reason="error", error=EngineClosedError(message))
                return
            await asyncio.sleep(item.again_s)
        raise EngineClosedError(message)

    async def _outputs(
        self, request: GenerateInput, prefix: bytes, rid: str
    ) -> AsyncGenerator[RequestOutput | ReplicaLost, None]:
        """Outputs from one replica. The last item is a terminal one or a ReplicaLost."""
        response = self._stream.generate.remote(request, prefix=prefix, called=rid)
        whole, finished = Whole(), False
        try:
            async with contextlib.aclosing(self._items(response, request)) as items:
                async for item in items:
                    if isinstance(item, ShoalError):
                        finished = True
                        raise item
                    output = item if isinstance(item, ReplicaLost) else whole.of(item)
                    finished = isinstance(output, ReplicaLost) or output.finished
                    yield output
        except BackPressureError:
            finished = True
            limit = self._arguments.ray.max_waiting_requests
            message = f"{limit} requests wait for a replica (max_waiting_requests): try again later"
            raise QueueFullError(message, field="max_waiting_requests", limit=limit) from None
        except (RayActorError, RayServeException) as error:
            finished = True
            yield ReplicaLost(_first_line(error))
        finally:
            if not finished:
                response.cancel()

    async def _items(self, response: Any, request: GenerateInput) -> AsyncGenerator[Any, None]:
        """The items of a stream.

        Raises RequestTimeoutError if the request's time ends before a replica takes it, EngineClosedError if no replica
        runs for long.
        """
        first, begin = asyncio.ensure_future(anext(response)), time.monotonic()
        try:
            while not (await asyncio.wait((first,), timeout=_LOOK_S))[0]:
                waited = request.waited_s + time.monotonic() - begin
                # A replica that has the request ends it in time, with its output so far.
                if request.timeout_s is not None and waited > request.timeout_s + _GRACE_S:
                    raise time_out(request.timeout_s, waited, "it was waiting for a replica")
                if self._status.state == "starting" and time.monotonic() - self._without_since > _PATIENCE_S:
                    raise EngineClosedError(f"{self._status.reason} for {_PATIENCE_S:g} seconds: try again later")
            with contextlib.suppress(StopAsyncIteration):
                yield first.result()
                async for item in response:
                    yield item
        finally:
            first.cancel()

    async def _with_tokens(self, request: GenerateInput) -> GenerateInput:
        """The request with token ids for its prompt, which the router needs."""
        prompt: Any = request.prompt
        if isinstance(prompt, str):
            prompt = as_parts(prompt, request.sampling.split_special_tokens)
        elif not isinstance(prompt, Conversation) and not (len(prompt) and isinstance(prompt[0], dict)):
            return request
        return replace(request, prompt=await self.tokenize(prompt, True, request.names.prompt))

    def _prefix(self, request: GenerateInput) -> bytes:
        """Hashes of the prompt's prefixes for the router; none for a request that shares nothing with others."""
        ray = self._arguments.ray
        captures = MODES[request.cache_mode or self._arguments.engine.cache_mode].captures
        if captures is None or ray.router != "prefix":
            return b""
        kind = "final" if captures == "finished" else self.info.depth_profile["capture"]
        tokens: Any = request.prompt[: self.info.max_tokens]  # type: ignore[index]
        try:
            return prefix_hashes(tokens, Namespace(request.cache_salt, kind), ray.summary_stride).tobytes()
        except (InvalidArgumentError, ValueError, TypeError):  # no token ids: a replica says what is wrong with them
            return b""

    async def abort(self, rid: str | None = None) -> int:
        """See Service: what replicas hold, whichever gateway it came from."""
        return sum(await self._all("abort", rid))

    async def tokenize(self, prompt: TextPrompt, add_special_tokens: bool = True, name: str = "prompt") -> list[int]:
        """See Service. In this process."""
        return await self._texts.encode(prompt, add_special_tokens, name)

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """See Service. In this process."""
        return await self._texts.decode(token_ids, skip_special_tokens)

    async def lookup(self, request: GenerateInput) -> CacheLookup:
        """See Service: on the replica that the request would go to."""
        request = await self._with_tokens(request)
        found = await self._handle.lookup.remote(request, prefix=self._prefix(request))
        if isinstance(found, ShoalError):
            raise found
        lookup: CacheLookup = found
        return lookup

    # All replicas

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """See Service. Raises CacheInUseError also when some replicas were flushed and others had requests."""
        await self._until_idle(timeout_s)
        if self._active:
            message = f"flush refused: {len(self._active)} requests are under way"
            raise CacheInUseError(message, field="flush_cache", value=len(self._active), limit=0)
        await self._all("flush_cache")

    async def cache_snapshot(self) -> dict[str, Any]:
        """See Service: the trees of all replicas."""
        return joined_snapshots(await self._all("cache_snapshot"))

    async def stats(self) -> SchedulerStats:
        """See Service: of all replicas together."""
        return total_stats(await self._all("stats"))

    async def start_profile(self, options: TraceOptions) -> str:
        """Refused: a trace is of one process, and clients can't tell the replicas apart."""
        raise InvalidRequestError("replicas on Ray record no profiles", field="output_dir")

    async def stop_profile(self) -> str:
        """As start_profile."""
        return await self.start_profile(TraceOptions(output_dir="/"))

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Answers of every replica that runs. Raises the first ShoalError, EngineClosedError when none answers."""
        response = self._handle.broadcast(method, *arguments)
        try:
            results = await response.results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException) as error:
            raise EngineClosedError(f"the replicas do not answer: {_first_line(error)}") from error
        errors = [one for one in results if isinstance(one, BaseException)]
        for one in errors:
            cause = getattr(one, "cause", one)
            if isinstance(cause, ShoalError):
                raise cause
        answers = [one for one in results if not isinstance(one, BaseException)]
        if not answers:
            raise EngineClosedError(f"no replica answers: {_first_line(errors[0]) if errors else 'none is running'}")
        return answers


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
