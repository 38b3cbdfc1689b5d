"""Authentication: which key a path needs, and whether a request has it."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from .api_error import ANTHROPIC_PATH, ApiError
from .config import ServerConfig
from .middleware import header, refuse
from .routes import playground
from .state import IS_ADMIN

OPEN_PATHS = frozenset({"/health", "/health_generate", "/ready", "/ping", "/metrics"})
ADMIN_PATHS = frozenset({"/flush_cache", "/abort_request", "/cache", "/start_profile", "/stop_profile"})


class KeyCheck:
    """Answers 401 to requests without the key that their path needs.

    Health, metrics and the playground's files need none. Admin paths need the admin key; without one configured, the
    ordinary key. The admin key opens everything.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig):
        self._app = app
        self._key = config.api_key
        self._admin_key = config.admin_api_key
        self._open = OPEN_PATHS | playground.PATHS if config.playground else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "http":
            sent = _sent_key(scope)
            ordinary, admin = _equal(sent, self._key), _equal(sent, self._admin_key)  # both: no timing leak
            scope[IS_ADMIN] = admin
            error = self._refusal(scope, ordinary, admin)
            if error is not None:
                await refuse(error, scope, receive, send, {"www-authenticate": "Bearer"})
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, ordinary: bool, admin: bool) -> ApiError | None:
        path = scope["path"].rstrip("/") or "/"
        if admin or path in self._open or scope["method"] == "OPTIONS":
            return None
        if path in ADMIN_PATHS and self._admin_key is not None:
            message = f"{path} needs the admin key: Authorization: Bearer ADMIN_KEY"
            if ordinary:
                message += "; the key that was sent is the ordinary one"
            return ApiError(401, message, kind="AuthenticationError", code="admin_key_needed")
        if self._key is None or ordinary:
            return None
        message = "a valid key is needed: Authorization: Bearer KEY"
        return ApiError(401, message, kind="AuthenticationError", code="invalid_api_key")


def _sent_key(scope: Scope) -> bytes:
    if scope["path"].startswith(ANTHROPIC_PATH) and (sent := header(scope, b"x-api-key")) is not None:
        return sent.strip()
    kind, _, key = (header(scope, b"authorization") or b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else b""


def _equal(sent: bytes, key: str | None) -> bool:
    return key is not None and hmac.compare_digest(sent, key.encode())
