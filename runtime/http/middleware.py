"""What stands before the routes: size limit, authentication, request ids, access log. Plain ASGI, so streams pass."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..server_config import ServerConfig
from .errors import ApiError
from .metrics import Metrics
from .replies import JSONReply

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("shoal.access")
OPEN_PATHS = frozenset({"/health", "/health_generate", "/ready", "/ping", "/metrics"})
ADMIN_PATHS = frozenset({"/flush_cache", "/abort_request", "/cache", "/start_profile", "/stop_profile"})
_CLIENT_CLOSED_REQUEST = 499


class BodyLimit:
    """Answers 413 to bodies over `max_bytes`, without reading them to their end, and 408 to those that take long."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float):
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            message = f"the body was not complete after {self._seconds} seconds"
            await _refuse(ApiError(408, message, kind="RequestTimeoutError", param="body"), scope, receive, send)
            return
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client has left. Raises ApiError (413)."""
        message = f"the body is larger than {self._max_bytes} bytes"
        too_large = ApiError(413, message, kind="PayloadTooLargeError", param="body")
        declared = _header(scope, b"content-length")
        if declared is not None and (not declared.isdigit() or int(declared) > self._max_bytes):
            raise too_large
        parts, size = [], 0
        while True:
            part = await receive()
            if part["type"] == "http.disconnect":
                return None
            parts.append(part.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                raise too_large
            if not part.get("more_body", False):
                return b"".join(parts)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONReply(error.body(), error.status, headers={"connection": "close"})(scope, receive, send)


class KeyCheck:
    """Answers 401 to requests without the key that their path needs.

    Health and metrics need none. Admin paths need the admin key; without one configured, the ordinary key. The admin
    key opens everything.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._key = config.api_key
        self._admin_key = config.admin_api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and not self._allowed(scope):
            error = ApiError(401, "a valid key is needed: Authorization: Bearer KEY", kind="AuthenticationError",
                             code="invalid_api_key")  # fmt: skip
            await JSONReply(error.body(), 401, headers={"www-authenticate": "Bearer"})(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        path = scope["path"].rstrip("/") or "/"
        if path in OPEN_PATHS or scope["method"] == "OPTIONS":
            return True
        if path in ADMIN_PATHS:
            needed: Iterable[str | None] = (self._admin_key or self._key,)
        elif self._key is not None:
            needed = (self._key, self._admin_key)
        else:
            return True
        keys = [key for key in needed if key is not None]
        if not keys:
            return True
        kind, _, sent = (_header(scope, b"authorization") or b"").partition(b" ")
        if kind.lower() != b"bearer":
            return False
        matches = [hmac.compare_digest(sent.strip(), key.encode()) for key in keys]  # all of them: no timing leak
        return any(matches)


class AccessLog:
    """A log line and a count for every reply; what a route raises unawares becomes a 500 with no details."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[str]):
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and look at the status of its reply."""
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
                await JSONReply(error.body(), 500)(scope, receive, watch)
        finally:
            self._metrics.active.dec()
            path = scope["path"]
            self._metrics.http.labels(path if path in self._routes else "other", str(status)).inc()
            client = scope.get("client") or ("", 0)
            seconds = time.monotonic() - start
            access_logger.log(
                logging.DEBUG if path in OPEN_PATHS and status == 200 else logging.INFO,
                '%s:%s - "%s %s" %d %.3fs%s', client[0], client[1], scope["method"], _shown(path), status, seconds,
                f" rid={rid}" if rid else "",
                extra={"http": {"client": client[0], "method": scope["method"], "path": path, "status": status,
                                "seconds": round(seconds, 6), "rid": rid}},
            )  # fmt: skip


def _shown(path: str) -> str:
    """A path without control characters: a log line stays a line."""
    return path[:200].encode("unicode_escape").decode("ascii")


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
