"""One connection of the HTTP server: uvicorn's protocol, with the limits on headers and silence that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import httptools
from orjson import dumps
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .api_error import ApiError
from .connection_limits import ConnectionLimits
from .middleware import refuse

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

RESERVED_PATHS = frozenset({b"/health", b"/ready", b"/ping", b"/metrics"})
"""Paths for connections past the limit, so that a full server still shows whether it lives."""
_LINGER_S = 1.0
_LINGER_BYTES = 4 << 20


class Door(Protocol):
    """What is told of every new connection: the Gate."""

    @property
    def limits(self) -> ConnectionLimits:
        """Of every connection."""
        ...

    def opened(self, connection: Connection) -> None:
        """A connection was made."""
        ...


class Connection(HttpToolsProtocol):
    """Answers 431 to heads that are too large, 408 to those that are too slow, and drops clients that do not read.

    The parser buffers a head without limit, so it gets bytes in pieces and this class counts them: those of a head, and
    those of anything else (a chunk's header, trailers) between two pieces of a body.

    Attributes:
        active_at: the loop's time of the last bytes received.
        is_reserve: whether it is past the limit of connections; then only RESERVED_PATHS are served.
    """

    def __init__(self, gate: Door, **options: Any):
        super().__init__(**options)
        self._gate = gate
        self._limits = gate.limits
        self.active_at = self.loop.time()
        self.is_reserve = False
        self._head_since: float | None = self.active_at
        self._linger_until: float | None = None
        self._lingered = 0
        self._in_head = self._progress = False
        self._unparsed = self._head_bytes = self._num_headers = 0
        self._unsent = 0
        self._unread_since: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether closing it would cut no request short."""
        return not self._busy and not self.transport.is_closing()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._gate.opened(self)

    def drop(self) -> None:
        """Close it to make room for another one."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def check(self, now: float) -> None:
        """Close it if a time limit has passed; called about once a second."""
        limits = self._limits
        if self._linger_until is not None and now >= self._linger_until:
            self.transport.close()
        elif self._head_since is not None and now - self._head_since > limits.header_timeout_s and not self._busy:
            if self._in_head:
                message = f"the headers were not complete after {limits.header_timeout_s:g} seconds"
                self.answer(ApiError(408, message, kind="RequestTimeoutError", param="headers"))
            else:
                self.transport.close()
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > limits.send_timeout_s:
            self.transport.abort()
        self._unsent = unsent

    def answer(self, error: ApiError) -> None:
        """Refuse the connection's request; read on for a moment, so that the client sees the reason."""
        if self._linger_until is not None or self.transport.is_closing():
            return
        if self._busy:  # pipelined behind a request whose answer is on its way
            self.transport.abort()
            return
        self._linger_until = self.loop.time() + _LINGER_S
        self._head_since = None
        body = dumps(error.body())
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                 (b"connection", b"close"), *self.server_state.default_headers]  # fmt: skip
        if error.retryable:
            lines.append((b"retry-after", b"1"))
        head = b"".join(b"%s: %s\r\n" % line for line in lines)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP with an error of the server's shape."""
        self.answer(ApiError(400, "this is no valid HTTP request"))

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a client that asks for another protocol simply continues with HTTP/1.1."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.active_at = self.loop.time()
        if self._linger_until is not None:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.transport.close()
            return
        limit, whole = self._limits.max_header_bytes, memoryview(data)
        for start in range(0, len(whole), limit):
            piece: Any = whole[start : start + limit]
            self._progress = False
            super().data_received(piece)
            if self._linger_until is not None or self.transport.is_closing():
                return
            self._unparsed = 0 if self._progress else self._unparsed + len(piece)
            if self._unparsed > limit:
                self._refuse_head(f"the headers are larger than {limit} bytes (--max-header-bytes)")
                return
        if self._head_since is None and not self._busy:
            self._head_since = self.active_at

    def on_message_begin(self) -> None:
        """Of the parser: a request begins."""
        super().on_message_begin()
        self._in_head = self._progress = True
        self._head_bytes = self._num_headers = 0

    def on_url(self, url: bytes) -> None:
        """Of the parser: a piece of the path."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the parser: a header, or a trailer, which is ignored."""
        if not self._in_head:
            return
        self._head_bytes += len(name) + len(value) + 4
        self._num_headers += 1
        if self._num_headers <= self._limits.max_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Of the parser: the head is complete."""
        self._in_head, self._progress, self._head_since = False, True, None
        limits = self._limits
        if self._head_bytes > limits.max_header_bytes:
            self._refuse_head(f"the headers are larger than {limits.max_header_bytes} bytes (--max-header-bytes)")
        elif self._num_headers > limits.max_headers:
            message = f"there are {self._num_headers} headers; at most {limits.max_headers} are taken (--max-headers)"
            self._refuse_head(message)
        else:
            if self.is_reserve and httptools.parse_url(self.url).path not in RESERVED_PATHS:
                self.app = _full
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of the parser: a piece of a body."""
        self._progress = True
        if self._linger_until is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Of the parser: the request is complete."""
        self._progress = True
        if self._linger_until is None:
            super().on_message_complete()

    def _refuse_head(self, message: str) -> None:
        self.answer(ApiError(431, message, kind="HeadersTooLargeError", param="headers"))


def full_error() -> ApiError:
    """The reply to a client without a free connection."""
    return ApiError(503, "too many connections are open (--max-connections)", kind="ServiceUnavailableError")


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(full_error(), scope, receive, send, {"retry-after": "1"})
