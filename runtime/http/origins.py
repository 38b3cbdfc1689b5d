"""Checks against pages in a browser that reach this server under another name or from another site."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import shorten
from .api_error import ApiError
from .config import ServerConfig, names
from .middleware import header, refuse

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM_TYPES = frozenset({b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain"})


class HostCheck:
    """Answers 403 to requests whose Host header names another host (DNS rebinding).

    If evil.example resolves to this address, a browser takes its page for one of this server; only the Host header
    shows the difference. Requests without one (HTTP/1.0 probes) come from no browser and pass.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._allowed = allowed_hosts(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and self._allowed is not None:
            for value in (value for name, value in scope["headers"] if name == b"host"):
                if not _matches(_host(value.decode("latin-1")), self._allowed):
                    message = f"Host is {shorten(value.decode('latin-1'))}, which this server does not answer to"
                    error = ApiError(403, f"{message} (--allowed-hosts)", kind="ForbiddenError", param="Host")
                    await refuse(error, scope, receive, send)
                    return
        await self._app(scope, receive, send)


class OriginCheck:
    """Answers 403 to requests of other sites' pages: by Origin, or by Sec-Fetch-Site if there is no Origin.

    Programs send neither header. Following a link from another site (a navigation that only reads) is allowed.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._allowed = names(config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and (field := self._foreign(scope)) is not None:
            value = (header(scope, field.lower().encode()) or b"").decode("latin-1")
            message = f"{field} is {shorten(value)}: pages of other sites may not call this server (--allowed-origins)"
            await refuse(ApiError(403, message, kind="ForbiddenError", param=field), scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, scope: Scope) -> str | None:
        """The header that shows that another site sent the request; None if none does."""
        if "*" in self._allowed:
            return None
        origin = header(scope, b"origin")
        if origin is not None:
            text = origin.decode("latin-1").lower()
            own = (header(scope, b"host") or b"").decode("latin-1").lower()
            return None if text in self._allowed or text.partition("://")[2] == own != "" else "Origin"
        site = header(scope, b"sec-fetch-site")
        is_link = scope["method"] in _READS and header(scope, b"sec-fetch-mode") == b"navigate"
        return "Sec-Fetch-Site" if site in (b"cross-site", b"same-site") and not is_link else None


class JSONBodies:
    """Answers 400 to bodies that are not declared as JSON, and to anything that a page's form could send.

    Content types of forms are refused even without a body: browsers send those across sites without a preflight.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http" and scope["method"] not in _READS:
            given = header(scope, b"content-type")
            kind = (given or b"").partition(b";")[0].strip().lower()
            is_json = kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
            has_body = header(scope, b"content-length") not in (None, b"0") or header(scope, b"transfer-encoding")
            if not is_json and (has_body or kind in _FORM_TYPES):
                now = "missing" if given is None else shorten(given.decode("latin-1"))
                error = ApiError(400, f"content-type is {now}; send application/json", param="content-type")
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def allowed_hosts(config: ServerConfig) -> tuple[str, ...] | None:
    """The names that Host may have; None: any."""
    given = names(config.allowed_hosts)
    if given:
        return None if "*" in given else tuple(_host(name) if not name.startswith("*.") else name for name in given)
    own = _host(config.host)
    if not is_loopback(own):
        return None
    return (*_LOOPBACK_NAMES, own)


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _host(value: str) -> str:
    """The host in a Host header, or an address, in lower case and without port, brackets and last dot; "" for none."""
    if value.count(":") > 1 and not value.startswith("["):
        return value.lower()  # a bare IPv6 address, as in --host
    try:
        return (urlsplit(f"//{value.strip()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _matches(host: str, allowed: tuple[str, ...]) -> bool:
    return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in allowed)
