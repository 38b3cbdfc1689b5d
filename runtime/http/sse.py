"""Server-sent events: a response that ends its generations when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import ShoalError
from ..request.output import RequestOutput
from .api_error import ApiError
from .generation import ClientGoneError, until_disconnect

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
_SECONDS_PER_CELL = 1e-5
"""Ten times what a cell of a snapshot costs to encode and send."""


def event(data: Any) -> bytes:
    """One event with JSON data."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def pace(output: RequestOutput) -> None:
    """After an event with a snapshot, wait in proportion to its size, for each one holds the whole canvas.

    So one stream takes a tenth of this process at most, and a large canvas gets fewer snapshots.
    """
    if output.snapshot is not None and not output.finished:
        await asyncio.sleep(_SECONDS_PER_CELL * len(output.snapshot.tokens))


def named_event(name: str, data: Any) -> bytes:
    """One event with a name and JSON data."""
    return f"event: {name}\n".encode() + event(data)


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return event({"error": error.body()["error"]})


class EventStream(Response):
    """Sends events as they come, then `done`.

    `events` must be an asynchronous generator; it is closed in any case. An error inside it becomes one last event that
    `failed` makes. `prepare` awaits the first event before the status line is sent, so an earlier failure is an
    ordinary error reply.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: Any, headers: dict[str, str] | None = None, *, done: bytes = DONE,
        failed: Callable[[ApiError], bytes] = error_event,
    ):  # fmt: skip
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._done = done
        self._failed = failed
        self._first: bytes | None = None

    async def prepare(self, request: Request) -> EventStream:
        """Wait for the first event. Raises what the generator raises before it, or ClientGoneError."""
        first = asyncio.ensure_future(anext(self._events, None))
        leaving = asyncio.ensure_future(until_disconnect(request.receive))
        try:
            await asyncio.wait((first, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ClientGoneError
            self._first = first.result()
        except BaseException:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await self._events.aclose()
            raise
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(until_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events):
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self._first is not None:
            yield self._first
        try:
            async for chunk in self._events:
                yield chunk
        except ShoalError as error:
            yield self._failed(ApiError.of(error))
        except ApiError as error:
            yield self._failed(error)
        except Exception:
            logger.exception("a stream failed")
            yield self._failed(ApiError(500, "internal error"))
        if self._done:
            yield self._done
