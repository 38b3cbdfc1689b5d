"""Shows values and names in errors as the client wrote them: JSON, not Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ShoalError, shorten

_LIMIT = 80
_DEPTH = 4


def shown(value: Any) -> str:
    """A value as JSON, cut to 80 characters."""
    try:
        text = json.dumps(_clipped(value, _DEPTH), ensure_ascii=False)
    except (TypeError, ValueError):
        return shorten(value, _LIMIT)
    return text if len(text) <= _LIMIT else text[: _LIMIT - 1] + "…"


def in_client_words(error: ShoalError, names: Mapping[str, str]) -> tuple[str, str | None]:
    """Message and field of an error, with the client's names for our fields and its value as JSON.

    `names` maps a field of shoal to the client's name for it.
    """
    field, message = error.field, error.message
    head = f"{field} is {shorten(error.value)}"
    value = ""
    if field is not None and message.startswith(head):
        value, message = f"{field} is {shown(error.value)}", message[len(head) :]
        value = _renamed(value[: len(field)], names) + value[len(field) :]
    return value + _renamed(message, names), None if field is None else names.get(field, field)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for own, theirs in names.items():
        text = re.sub(rf"\b{re.escape(own)}\b", theirs, text)
    return text


def _clipped(value: Any, depth: int) -> Any:
    """As much of a value as its first characters need: bodies have megabytes."""
    if isinstance(value, str):
        return value[:_LIMIT]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 256 else float("inf") if value > 0 else float("-inf")
    if depth and isinstance(value, list | tuple):
        return [_clipped(one, depth - 1) for one in value[:_LIMIT]]
    if depth and isinstance(value, Mapping):
        return {str(key)[:_LIMIT]: _clipped(one, depth - 1) for key, one in list(value.items())[:_LIMIT]}
    return [] if isinstance(value, list | tuple) else {} if isinstance(value, Mapping) else value
