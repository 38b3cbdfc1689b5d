"""One connection of the HTTP server: uvicorn's protocol, with the limits on headers and silence that it lacks."""

from __future__ import annotations

from collections.abc import Iterable
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
_MOST_PIPELINED = 256
"""Requests of one connection that may wait for their turn; with more it is closed."""


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
        unsent, unread_since: bytes that the client has not read, as of the last `check`, and since when it has read
            nothing (the loop's time).
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
        self._in_head = self._progress = self._upgrades = self._is_ending = False
        self._body: list[bytes] = []
        self._unparsed = self._head_bytes = self._num_headers = 0
        self.unsent = 0
        self.unread_since = self.active_at

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
        if not unsent or unsent < self.unsent or not self.unsent:
            self.unread_since = now
        elif now - self.unread_since > limits.send_timeout_s:
            self.transport.abort()
        self.unsent = unsent

    def answer(self, error: ApiError) -> None:
        """Refuse the connection's request; read on for a moment, so that the client sees the reason."""
        if self._linger_until is not None or self.transport.is_closing():
            return
        if self._busy and not self.cycle.more_body:  # it is behind requests that get their answers first
            self._is_ending, self.cycle.keep_alive = True, False
            return
        if self._busy:
            if self.pipeline or self.cycle.response_started:  # the client would take it for an earlier request's answer
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
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

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.active_at = self.loop.time()
        if self._is_ending:
            return
        if self._linger_until is not None:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.transport.close()
            return
        limit, whole = self._limits.max_header_bytes, memoryview(data)
        for start in range(0, len(whole), limit):
            piece: Any = whole[start : start + limit]
            self._progress = False
            self._parse(piece)
            self._pass_body()
            if self._linger_until is not None or self._is_ending or self.transport.is_closing():
                return
            self._unparsed = 0 if self._progress else self._unparsed + len(piece)
            if self._unparsed > limit:
                self._refuse_head(f"the headers are larger than {limit} bytes (--max-header-bytes)")
                return
        if self._head_since is None and not self._busy:
            self._head_since = self.active_at

    def _parse(self, data: Any) -> None:
        """Feed the parser. It stops behind the head of a request that asks for another protocol, even if a body
        follows; a new parser then continues with the same head without that wish.
        """
        self._unset_keepalive_if_required()
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as stop:
                    rest = data[stop.args[0] :]
                    if not self._upgrades:  # CONNECT: there is nothing to continue with
                        return
                    head = head_without_upgrade(
                        self.parser.get_method(), self.url, self.parser.get_http_version().encode(), self.headers
                    )
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.feed_data(head)
                    data = rest
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Of the parser: a request begins."""
        self._upgrades = False
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
            if len(self.pipeline) >= _MOST_PIPELINED:
                self.transport.abort()
                return
            if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
                self._upgrades = True
                return
            if self.is_reserve and httptools.parse_url(self.url).path not in RESERVED_PATHS:
                self.app = _full
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of the parser: a piece of a body, perhaps of one byte."""
        self._body.append(body)

    def _pass_body(self) -> None:
        """Pass on what has come of the body."""
        if self._body:
            self._progress = True
            body, self._body = b"".join(self._body), []
            if self._linger_until is None:
                super().on_body(body)

    def on_response_complete(self) -> None:
        """Of a request's answer: reads on, unless other requests wait here for theirs."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """Of the parser: the request is complete."""
        self._pass_body()
        self._progress = True
        if self._linger_until is None and not self._upgrades and not self.transport.is_closing():
            super().on_message_complete()

    def _refuse_head(self, message: str) -> None:
        self.answer(ApiError(431, message, kind="HeadersTooLargeError", param="headers"))


def head_without_upgrade(method: bytes, url: bytes, version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request's head that no longer asks for another protocol."""
    lines = [b"%s %s HTTP/%s" % (method, url, version)]
    for name, value in headers:
        if name == b"connection":
            tokens = (token.strip() for token in value.split(b","))
            value = b", ".join(token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings"))
        if name not in (b"upgrade", b"http2-settings") and (name != b"connection" or value):
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


def full_error() -> ApiError:
    """The reply to a client without a free connection."""
    return ApiError(503, "too many connections are open (--max-connections)", kind="ServiceUnavailableError")


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(full_error(), scope, receive, send, {"retry-after": "1"})
