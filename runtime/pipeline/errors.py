"""Errors in transit: a closed table of classes, by name."""

from __future__ import annotations

from .. import errors
from ..errors import EngineError, ShoalError
from .messages import ErrorInfo, Scalar

_KINDS: dict[str, type[ShoalError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ShoalError)
}
_MAX_MESSAGE = 4000


def pack_error(error: BaseException) -> ErrorInfo:
    """An error as data. Any other than a ShoalError becomes an EngineError that names it."""
    if not isinstance(error, ShoalError):
        return ErrorInfo("EngineError", _clean(f"{type(error).__name__}: {error}"))
    name = type(error).__name__
    kind = name if name in _KINDS else "ShoalError"
    return ErrorInfo(kind, _clean(error.message), error.field, _plain(error.value), _plain(error.limit))


def unpack_error(info: ErrorInfo) -> ShoalError:
    """The error from its data; an unknown kind becomes an EngineError."""
    return _KINDS.get(info.kind, EngineError)(info.message, field=info.field, value=info.value, limit=info.limit)


def _plain(value: object) -> Scalar:
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return _clean(value if isinstance(value, str) else repr(value))


def _clean(text: str) -> str:
    """Text that UTF-8 can hold, of bounded length."""
    return text[:_MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
