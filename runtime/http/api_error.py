"""Errors as clients get them: a status code and one JSON shape that SGLang's and OpenAI's clients both read."""

from __future__ import annotations

from typing import Any

from ..errors import (
    CacheInUseError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    PoolTooSmallError,
    QueueFullError,
    RequestAbortedError,
    RequestTimeoutError,
    ShoalError,
)

_STATUS: tuple[tuple[type[ShoalError], int, str], ...] = (
    (InvalidRequestError, 400, "BadRequestError"),
    (PoolTooSmallError, 400, "BadRequestError"),
    (CacheInUseError, 400, "CacheInUseError"),
    (ModelLoadError, 400, "BadRequestError"),  # the one that a request can cause: no chat template
    (RequestAbortedError, 400, "RequestAbortedError"),  # not 409: some clients retry that by themselves
    (QueueFullError, 503, "QueueFullError"),
    (EngineClosedError, 503, "ServiceUnavailableError"),
    (RequestTimeoutError, 504, "RequestTimeoutError"),
    (EngineError, 500, "InternalServerError"),
)
_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
ANTHROPIC_PATH = "/v1/messages"
_RETRYABLE = frozenset({429, 503})


class ApiError(Exception):
    """A route's refusal or failure.

    Attributes:
        status: HTTP status code.
        kind: name of the error, `type` in the reply.
        param: the field that is wrong, if one is.
        code: short machine-readable word; by default the status code.
    """

    def __init__(self, status: int, message: str, *, kind: str = "", param: str | None = None, code: Any = None):
        super().__init__(message)
        self.status = status
        self.message = _encodable(message)
        self.kind = kind or ("BadRequestError" if status < 500 else "InternalServerError")
        self.param = None if param is None else _encodable(param)
        self.code = status if code is None else code

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _RETRYABLE

    def body(self) -> dict[str, Any]:
        """The reply: the error at the top level (as SGLang has it) and under `error` (as OpenAI has it)."""
        inner = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
            "retryable": self.retryable,
        }
        return {"object": "error", **inner, "error": inner}

    def body_at(self, path: str) -> dict[str, Any]:
        """The reply on a route: in Anthropic's form on its routes, else `body`."""
        if not path.startswith(ANTHROPIC_PATH):
            return self.body()
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message, "param": self.param}}

    @classmethod
    def of(cls, error: ShoalError) -> ApiError:
        """The ApiError for one of shoal's own errors."""
        for kind, status, name in _STATUS:
            if isinstance(error, kind):
                return cls(status, error.message, kind=name, param=error.field)
        return cls(500, error.message, param=error.field)


def _encodable(text: str) -> str:
    """Text that UTF-8 can hold: a client's names may contain half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def bad_request(field: str, message: str) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=field)
