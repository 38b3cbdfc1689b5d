"""Errors that a user of shoal can cause: each names the field, the value and the limit."""

from __future__ import annotations

from collections.abc import Iterable


class ShoalError(Exception):
    """Base of every error that shoal raises on purpose.

    Attributes:
        field: the argument, configuration key, file or tensor that is wrong.
        value: what was given (shortened in the message).
        limit: what is accepted, in words or as a number.
    """

    def __init__(self, message: str, *, field: str | None = None, value: object = None, limit: object = None):
        self.message = message
        self.field = field
        self.value = value
        self.limit = limit
        super().__init__(message)


class InvalidRequestError(ShoalError, ValueError):
    """A request or one of its sampling parameters can't be served as given."""


class ConfigError(ShoalError, ValueError):
    """An engine option is out of range or contradicts another."""


class ModelLoadError(ShoalError):
    """A model folder, its configuration or its weights can't be used."""


class PoolTooSmallError(ShoalError):
    """A request needs more KV pages than the whole pool has."""


class CacheInUseError(ShoalError):
    """The cache can't be flushed while running requests share its pages."""


class QueueFullError(ShoalError):
    """The queue of waiting requests is full; try again later."""


class RequestTimeoutError(ShoalError):
    """The request exceeded its time; the error comes with its output so far."""


class RequestAbortedError(ShoalError):
    """An abort ended the request before it had an answer."""


class WireError(ShoalError):
    """A message between processes is too large, malformed or of another version."""


class EngineClosedError(ShoalError):
    """The engine was shut down before or while the request ran."""


class EngineError(ShoalError):
    """The worker failed while running this request; other requests go on."""


class RankLostError(EngineError):
    """Another rank of the model is gone or can't go on; that one's end is the reason."""


def time_out(limit: float, waited: float, state: str) -> RequestTimeoutError:
    """The error of a request that was to end within `limit` seconds, after `waited`; `state` says where it was."""
    message = f"not done within timeout_s = {limit:.15g} seconds ({state})"
    return RequestTimeoutError(message, field="timeout_s", value=waited, limit=limit)


def path_of(steps: Iterable[str | int]) -> str:
    """`messages[0].content` of ("messages", 0, "content")."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut to `limit` characters, for error messages."""
    if isinstance(value, str | bytes | list | tuple) and len(value) > limit:
        value = value[:limit]  # no long text of a long value
        text = repr(value)
        return text[: limit - 1] + "…"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = f"a {type(value).__name__} of more digits than can be shown"
    return text if len(text) <= limit else text[: limit - 1] + "…"
