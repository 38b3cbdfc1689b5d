"""Middleware: size and time of bodies, access log. Plain ASGI, so that streams pass."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_error import ApiError
from .config import ServerConfig
from .generation import ClientGoneError
from .metrics import Metrics
from .replies import JSONReply

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("shoal.access")
QUIET_PATHS = frozenset({"/health", "/health_generate", "/ready", "/ping", "/metrics"})
"""Probes poll these paths, so their replies are logged at level debug."""
REST_BYTES, REST_SECONDS = 64 << 20, 5.0
"""Bytes of a refused body that are read and dropped before the reply, and the seconds for it."""
_SMALL_BYTES = 64 << 10
_CLIENT_CLOSED_REQUEST = 499
_CLOSE: Mapping[str, str] = {"connection": "close"}


class BodyLimit:
    """Answers 413 to bodies over max_body_bytes, 408 to bodies that are too slow, and 503 to a body over 64 KiB
    while the server holds more than max_held_bytes of such bodies, incomplete ones included.

    It first reads and drops a bounded rest of a body that is too large: most clients look for a reply only after they
    have sent everything, and miss it if the connection closes earlier.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._max_bytes = config.max_body_bytes
        self._max_held = config.held_bytes
        self._seconds = config.body_timeout_s
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = _Held()
        try:
            await self._pass_on(held, scope, receive, send)
        finally:
            self._held -= held.size

    async def _pass_on(self, held: _Held, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                body, is_complete = await self._read(held, scope, receive)
        except TimeoutError:
            message = f"the body was not complete after {self._seconds:g} seconds"
            await _answer(ApiError(408, message, kind="RequestTimeoutError", param="body"), scope, receive, send)
            return
        except ClientGoneError:
            return
        if isinstance(body, ApiError):
            again = {"retry-after": "1"} if body.retryable else {}
            await _answer(body, scope, receive, send, {**again, **({} if is_complete else _CLOSE)})
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)

    async def _read(self, held: _Held, scope: Scope, receive: Receive) -> tuple[bytes | ApiError, bool]:
        """The body, or why it is refused, and whether it was read to its end. Raises ClientGoneError."""
        limit, size, parts = self._max_bytes, 0, list[bytes]()
        error: ApiError | None = None
        if _declared(scope) > limit and not _will_end(scope, limit + REST_BYTES):
            return self._too_large(), False
        async for part in _parts(receive):
            size += len(part)
            if size > limit + REST_BYTES:
                return error or self._too_large(), False
            if error is None and (error := self._refusal(held, size)) is not None:
                parts.clear()
                self._held -= held.size
                held.size = 0
            if error is None:
                parts.append(part)
        return error or b"".join(parts), True

    def _refusal(self, held: _Held, size: int) -> ApiError | None:
        """Why a body of which `size` bytes have come can't be held; otherwise they count as held."""
        if size > self._max_bytes:
            return self._too_large()
        if size > _SMALL_BYTES:
            self._held += size - held.size
            held.size = size
            if self._held > self._max_held:
                message = f"{self._held} bytes of request bodies are held (--max-held-bytes): try again later"
                return ApiError(503, message, kind="ServiceUnavailableError", param="body")
        return None

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._max_bytes} bytes"
        return ApiError(413, message, kind="PayloadTooLargeError", param="body")


@dataclass(slots=True)
class _Held:
    """Bytes of one request's body that count as held."""

    size: int = 0


async def refuse(
    error: ApiError, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str] | None = None
) -> None:
    """Answer instead of the routes, after a bounded rest of the body was read and dropped (see BodyLimit)."""
    is_complete = False
    if _will_end(scope, REST_BYTES):
        size = 0
        with contextlib.suppress(TimeoutError, ClientGoneError):
            async with asyncio.timeout(REST_SECONDS):
                async for part in _parts(receive):
                    size += len(part)
                    if size > REST_BYTES:
                        break
                else:
                    is_complete = True
    await _answer(error, scope, receive, send, {**(headers or {}), **({} if is_complete else _CLOSE)})


async def _answer(
    error: ApiError, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str] = _CLOSE
) -> None:
    await JSONReply(error.body_at(scope["path"]), error.status, headers=headers)(scope, receive, send)


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The remaining parts of a body. Raises ClientGoneError."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _declared(scope: Scope) -> int:
    """Content-Length; 0 without one (the HTTP parser refuses anything but a number)."""
    value = header(scope, b"content-length") or b"0"
    return int(value) if value.isdigit() else 0


def _will_end(scope: Scope, most: int) -> bool:
    """Whether the client declares at most `most` bytes, or no length, and sends them without waiting for a reply."""
    return _declared(scope) <= most and header(scope, b"expect") is None


class AccessLog:
    """Logs and counts every reply; an unexpected error of a route becomes a 500 without details."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[str]):
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and record the status of its reply."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, rid, start = _CLIENT_CLOSED_REQUEST, "", time.monotonic()

        async def watch(message: Message) -> None:
            nonlocal status, rid
            if message["type"] == "http.response.start":
                status = message["status"]
                rid = next((v.decode("latin-1") for k, v in message["headers"] if k == b"x-request-id"), "")
            await send(message)

        self._metrics.active.inc()
        try:
            await self._app(scope, receive, watch)
        except Exception:
            logger.exception("%s %s failed", scope["method"], _shown(scope["path"]))
            if status == _CLIENT_CLOSED_REQUEST:  # nothing was sent yet
                error = ApiError(500, "internal error; the server's log has the details")
                await JSONReply(error.body_at(scope["path"]), 500)(scope, receive, watch)
        finally:
            self._metrics.active.dec()
            path = scope["path"]
            self._metrics.http.labels(path if path in self._routes else "other", str(status)).inc()
            client = scope.get("client") or ("", 0)
            seconds = time.monotonic() - start
            access_logger.log(
                logging.DEBUG if path in QUIET_PATHS and status == 200 else logging.INFO,
                '%s:%s - "%s %s" %d %.3fs%s', client[0], client[1], scope["method"], _shown(path), status, seconds,
                f" rid={rid}" if rid else "",
                extra={"http": {"client": client[0], "method": scope["method"], "path": path, "status": status,
                                "seconds": round(seconds, 6), "rid": rid}},
            )  # fmt: skip


def _shown(path: str) -> str:
    """A path without control characters, so that a log line stays one line."""
    return path[:200].encode("unicode_escape").decode("ascii")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header; the name in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)
