"""The work of HTTP requests: their generations and preparation, aborted when the client leaves or by id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from ..errors import (
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
    RequestAbortedError,
    ShoalError,
    time_out,
)
from ..request.input import GenerateInput
from ..request.output import RequestOutput, Timings
from ..service.service import Service
from .metrics import Metrics

request_logger = logging.getLogger("shoal.requests")
_T = TypeVar("_T")
_QUEUE_FULL_SECONDS = 0.1


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


class Generations:
    """All HTTP requests in flight, by the client's id."""

    def __init__(self, service: Service, metrics: Metrics):
        self._service = service
        self._metrics = metrics
        self._groups: dict[str, Generation] = {}
        self._end: ShoalError | None = None
        self._works: dict[str, asyncio.Future[Any]] = {}

    @property
    def num_active(self) -> int:
        """HTTP requests in flight; the generations of a request's own work may count too."""
        return len(self._groups.keys() | self._works.keys())

    def is_used(self, rid: str) -> bool:
        """Whether a request of that id is in flight."""
        return rid in self._groups or rid in self._works

    def new_rid(self, wished: str | None = None) -> str:
        """`wished` if no request in flight has it, else an unused id."""
        if wished is not None and not self.is_used(wished):
            return wished
        return f"{wished}-{secrets.token_hex(4)}" if wished else secrets.token_hex(16)

    async def abort(self, rid: str) -> int:
        """End a request with all its generations, or one generation by its own id; returns how many."""
        if (work := self._works.get(rid)) is not None:
            return int(work.cancel())
        group = self._groups.get(rid)
        if group is not None:
            return await group.abort()
        waiting = sum(group.abort_waiting(rid) for group in self._groups.values())
        return waiting or await self._service.abort(rid)

    def end(self, error: ShoalError) -> None:
        """End all requests in flight with an error, and all that are opened from now on.

        Later outputs of the service are dropped: an answer that was cut short must not look complete.
        """
        self._end = error
        for generation in self._groups.values():
            generation.fail(error)
        for work in list(self._works.values()):
            work.cancel()

    async def abort_all(self) -> int:
        """End everything, including what the service still holds of requests that are gone; returns how many."""
        works = sum(work.cancel() for work in list(self._works.values()))
        waiting = sum(group.abort_waiting() for group in self._groups.values())
        return works + waiting + await self._service.abort(None)

    def open(self, rid: str, inputs: Sequence[GenerateInput], at_a_time: int | None = None) -> Generation:
        """A context in which `inputs` run, at most `at_a_time` together (None: all); leaving it ends the rest.

        Raises the error of `end`.
        """
        if self._end is not None:
            raise self._end
        return Generation(self._service, self._metrics, self._groups, rid, inputs, at_a_time)

    async def collect(
        self, request: Request, rid: str, inputs: Sequence[GenerateInput], at_a_time: int | None = None
    ) -> list[RequestOutput]:
        """The terminal outputs, in order. Raises the first ShoalError, or ClientGoneError when the client leaves."""
        async with self.open(rid, inputs, at_a_time) as generation:
            return await _while_connected(request, asyncio.ensure_future(generation.collect()))

    async def run(self, request: Request, rid: str, work: Awaitable[_T]) -> _T:
        """Run `work`, the whole of a request or its preparation, and return its result.

        Meanwhile the request is in flight, and ends when its client leaves or aborts it. Raises what `work` raises,
        InvalidRequestError if the id is in use, ClientGoneError, RequestAbortedError, or EngineClosedError if the end
        of the service aborted it.
        """
        task = asyncio.ensure_future(work)
        if self.is_used(rid):
            task.cancel()
            raise InvalidRequestError(f"rid {rid!r} is in use", field="rid", value=rid)
        self._works[rid] = task
        try:
            return await _while_connected(request, task)
        except RequestAbortedError as error:
            if self._end is not None:
                raise self._end from error
            status = self._service.status
            if status.state != "up":
                raise EngineClosedError(f"the server is {status.state}: {status.reason}") from error
            raise
        finally:
            del self._works[rid]


async def _while_connected(request: Request, task: asyncio.Future[_T]) -> _T:
    """The result of a task, which has always ended afterwards. Raises ClientGoneError if the client leaves first,
    RequestAbortedError if it was cancelled.
    """
    leaving = asyncio.ensure_future(until_disconnect(request.receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        if task.cancelled():
            raise RequestAbortedError("the request was aborted", field="rid")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


class Generation:
    """The generations of one HTTP request. Use it as an asynchronous context manager, then iterate once."""

    def __init__(
        self, service: Service, metrics: Metrics, groups: dict[str, Generation], rid: str,
        inputs: Sequence[GenerateInput], at_a_time: int | None = None,
    ):  # fmt: skip
        self._service = service
        self._metrics = metrics
        self._groups = groups
        self._rid = rid
        self._inputs = inputs
        self._latest: dict[int, RequestOutput | BaseException] = {}
        self._failure: ShoalError | None = None
        self._begun = False  # some have outputs
        self._held = 0  # in the service, or on their way there
        self._waiting = {item.rid: index for index, item in enumerate(inputs)}
        self._news = asyncio.Event()
        self._turns = asyncio.Semaphore(at_a_time or max(1, len(inputs)))
        self._opened = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Generation:
        if self._rid in self._groups:
            raise InvalidRequestError(f"rid {self._rid!r} is in use", field="rid", value=self._rid)
        self._groups[self._rid] = self
        self._tasks = [asyncio.create_task(self._pump(index)) for index in range(len(self._inputs))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        running = [task for task in self._tasks if not task.done()]
        for task in running:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._groups.pop(self._rid, None)

    async def abort(self) -> int:
        """End all generations that wait or run; returns how many."""
        waiting = self.abort_waiting()
        return waiting + sum([await self._service.abort(item.rid) for item in self._inputs])

    def abort_waiting(self, rid: str | None = None) -> int:
        """End the generation `rid` (None: every one) if it still waits for its turn; returns how many."""
        ended = [rid for rid in ([rid] if rid is not None else list(self._waiting)) if rid in self._waiting]
        for rid in ended:
            self._put(self._waiting.pop(rid), _never_ran(rid))
        return len(ended)

    def fail(self, error: ShoalError) -> None:
        """End it with an error, after the outputs that already exist."""
        self._failure = error
        self._news.set()

    async def outputs(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """Yield (index of the input, output) until each input has its terminal output. Raises the first ShoalError.

        Outputs are cumulative: a slow reader gets fewer of them, so little waits here.
        """
        left = len(self._inputs)
        while left:
            await self._news.wait()
            self._news.clear()
            news, self._latest = self._latest, {}
            for index, output in news.items():
                if isinstance(output, BaseException):
                    raise output
                if output.error is not None:
                    raise output.error
                left -= output.finished
                yield index, output
            if left and self._failure is not None:
                raise self._failure

    async def collect(self) -> list[RequestOutput]:
        """The terminal outputs, in the order of the inputs."""
        done = {index: output async for index, output in self.outputs() if output.finished}
        return [done[index] for index in range(len(self._inputs))]

    def _put(self, index: int, output: RequestOutput | BaseException) -> None:
        if self._failure is None:
            self._latest[index] = output
            self._news.set()

    async def _pump(self, index: int) -> None:
        rid = self._inputs[index].rid
        async with self._turns:
            while self._waiting.pop(rid, None) is not None:
                error = await self._generate(index)
                if error is None:
                    return
                # A queue that others fill refuses a request; one that it fills itself, or that has begun, waits.
                if not self._begun and not self._held:
                    self._put(index, error)
                    return
                self._waiting[rid] = index
                await asyncio.sleep(_QUEUE_FULL_SECONDS)

    async def _generate(self, index: int) -> QueueFullError | None:
        """Run a generation to its end, if it is in time; returns the error if the queue had no room for it."""
        item = self._inputs[index]
        if item.timeout_s is not None:  # it counts from when the request was opened
            waited = item.waited_s + time.monotonic() - self._opened
            if waited >= item.timeout_s:
                self._put(index, time_out(item.timeout_s, waited, "it was waiting"))
                return None
            item = replace(item, waited_s=waited)
        watch = self._metrics.watch()
        stream: AsyncGenerator[RequestOutput, None] = self._service.generate(item)
        finished = False
        self._held += 1
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    finished = output.finished
                    self._begun = True
                    watch.saw(output)
                    if finished:
                        _log(item, output)
                    self._put(index, output)
            if not finished:
                error = EngineError(f"request {item.rid} ended without a reply", field="rid", value=item.rid)
                self._put(index, error)
        except QueueFullError as error:
            return error
        except ShoalError as error:
            watch.failed(error)
            self._put(index, error)
        except asyncio.CancelledError:
            watch.left()
            raise
        except Exception as error:
            self._put(index, error)
        finally:
            self._held -= 1
        return None


def _never_ran(rid: str) -> RequestOutput:
    """The terminal output of a generation that was aborted before its turn."""
    return RequestOutput(
        rid, "", (), "abort", None, None, prompt_tokens=0, completion_tokens=0, cached_tokens=0, depth=0,
        canvas_tokens=0, nfe=0, reused_token_layers=0, computed_token_layers=0, prefix_refreshes=0,
        timings=Timings(0.0, None, 0.0),
    )  # fmt: skip


def _log(item: GenerateInput, output: RequestOutput) -> None:
    counts = {
        "rid": item.rid,
        "finish_reason": output.finish_reason,
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": output.completion_tokens,
        "cached_tokens": output.cached_tokens,
        "depth": output.depth,
        "nfe": output.nfe,
        "seconds": round(output.timings.total, 6),
    }
    words = " ".join(f"{name}={value}" for name, value in counts.items())
    request_logger.info("Request finished: %s", words, extra={"request": counts})


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection (the body must have been read)."""
    while (await receive())["type"] != "http.disconnect":
        pass
