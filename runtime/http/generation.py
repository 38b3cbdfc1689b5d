"""Runs the generations of one HTTP request together: merged outputs, one end each, aborted when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType

from starlette.requests import Request
from starlette.types import Receive

from ..errors import EngineError, InvalidRequestError, ShoalError
from ..request import RequestOutput
from ..service import GenerateInput, Service
from .metrics import Metrics

request_logger = logging.getLogger("shoal.requests")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


class Generations:
    """All generations under way, by the id that the client knows them by."""

    def __init__(self, service: Service, metrics: Metrics):
        self._service = service
        self._metrics = metrics
        self._groups: dict[str, tuple[str, ...]] = {}

    @property
    def num_active(self) -> int:
        """HTTP requests with generations under way."""
        return len(self._groups)

    def is_used(self, rid: str) -> bool:
        """Whether a request of that id is under way."""
        return rid in self._groups

    def new_rid(self, wished: str | None = None) -> str:
        """`wished` if no request under way has it, else an id that nobody has."""
        if wished is not None and wished not in self._groups:
            return wished
        return f"{wished}-{secrets.token_hex(4)}" if wished else secrets.token_hex(16)

    async def abort(self, rid: str) -> int:
        """End the generations of a request, or one of them by its own id; how many were told to end."""
        ends = [await self._service.abort(member) for member in self._groups.get(rid, (rid,))]
        return sum(ends)

    def open(self, rid: str, inputs: Sequence[GenerateInput]) -> Generation:
        """A context in which `inputs` run; leaving it ends those that still do."""
        return Generation(self._service, self._metrics, self._groups, rid, inputs)

    async def collect(self, request: Request, rid: str, inputs: Sequence[GenerateInput]) -> list[RequestOutput]:
        """The terminal outputs, in order. Raises the first ShoalError, or ClientGoneError when the client leaves."""
        async with self.open(rid, inputs) as generation:
            collecting = asyncio.ensure_future(generation.collect())
            leaving = asyncio.ensure_future(until_disconnect(request.receive))
            try:
                await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not collecting.done():
                    raise ClientGoneError
                return collecting.result()
            finally:
                for task in (collecting, leaving):
                    task.cancel()
                await asyncio.gather(collecting, leaving, return_exceptions=True)


class Generation:
    """The generations of one HTTP request. Use it as an asynchronous context manager, then iterate once."""

    def __init__(
        self, service: Service, metrics: Metrics, groups: dict[str, tuple[str, ...]], rid: str,
        inputs: Sequence[GenerateInput],
    ):  # fmt: skip
        self._service = service
        self._metrics = metrics
        self._groups = groups
        self._rid = rid
        self._inputs = inputs
        self._latest: dict[int, RequestOutput | BaseException] = {}
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Generation:
        if self._rid in self._groups:
            raise InvalidRequestError(f"rid {self._rid!r} is in use", field="rid", value=self._rid)
        self._groups[self._rid] = tuple(item.rid for item in self._inputs)
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

    async def outputs(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """(which input, output) as they come, until each has had its terminal one. Raises the first ShoalError.

        Outputs are cumulative: who reads slowly gets fewer of them, so what waits here stays small.
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

    async def collect(self) -> list[RequestOutput]:
        """The terminal outputs, in the order of the inputs."""
        done = {index: output async for index, output in self.outputs() if output.finished}
        return [done[index] for index in range(len(self._inputs))]

    def _put(self, index: int, output: RequestOutput | BaseException) -> None:
        self._latest[index] = output
        self._news.set()

    async def _pump(self, index: int) -> None:
        item = self._inputs[index]
        watch = self._metrics.watch()
        stream: AsyncGenerator[RequestOutput, None] = self._service.generate(item)
        finished = False
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    finished = output.finished
                    watch.saw(output)
                    if finished:
                        _log(item, output)
                    self._put(index, output)
            if not finished:
                error = EngineError(f"request {item.rid} ended without a reply", field="rid", value=item.rid)
                self._put(index, error)
        except ShoalError as error:
            watch.refused()
            self._put(index, error)
        except asyncio.CancelledError:
            watch.left()
            raise
        except Exception as error:
            self._put(index, error)


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
