"""Describes an invalid body: it can't be parsed, or a field has a wrong type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError

from ..errors import path_of
from .wording import shown

_MOST_FIELDS = 5
_WHERE = ("body", "query", "path")


def describe(error: RequestValidationError) -> tuple[str, str]:
    """A message about the first few wrong fields, and the name of the first."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors():
        if item["type"] == "json_invalid":
            reason, place = item.get("ctx", {}).get("error", item["msg"]), item["loc"][-1]
            return f"the body is no valid JSON: {reason} at character {place}", "body"
        steps = _steps(item["loc"], error.body)
        name = path_of(steps) or "body"
        missing = item["type"] == "missing"
        words = "it is missing" if missing else _lacking(item, name) or _lower(item["msg"])
        value, reasons = found.setdefault(name, (None if missing else item.get("input"), []))
        if words not in reasons and len(found) <= _MOST_FIELDS:
            reasons.append(words)
    parts = []
    for name, (value, reasons) in list(found.items())[:_MOST_FIELDS]:
        if reasons == ["it is missing"]:
            parts.append(f"{name} is missing")
        else:
            parts.append(f"{name} is {shown(value)}; {', or '.join(reasons)}")
    return "; ".join(parts), next(iter(found), "body")


def unreadable(reason: BaseException | None) -> str:
    """Why a body could not be parsed at all."""
    if isinstance(reason, UnicodeDecodeError):
        return f"it is no UTF-8: {reason.reason} at byte {reason.start}"
    if isinstance(reason, RecursionError):
        return "it is nested too deeply"
    if isinstance(reason, ValueError):  # what json raises beside JSONDecodeError: a number of too many digits
        return "it has a number of too many digits"
    return "it is no JSON object"


def _steps(path: tuple[Any, ...], body: Any) -> list[Any]:
    """A pydantic location without the names of a union's alternatives: the path through the body."""
    steps: list[Any] = []
    rest = path[1:] if path and path[0] in _WHERE else path
    value = body if path and path[0] == "body" else {}
    for index, step in enumerate(rest):
        if isinstance(step, int):
            known = isinstance(value, list) and step < len(value)
            value = value[step] if known else None
            steps.append(step)
        elif index == 0 or (isinstance(value, dict) and _is_name(step)):
            value = value.get(step) if isinstance(value, dict) else None
            steps.append(step)
    return steps


def _is_name(step: str) -> bool:
    """Alternatives are called like types: `list[str]`, or `function-...`."""
    return step.isidentifier() and step not in ("str", "int", "float", "bool", "dict", "list")


def _lacking(item: Mapping[str, Any], name: str) -> str:
    """What an empty list or text must have; '' for another fault."""
    if item["type"] not in ("too_short", "string_too_short"):
        return ""
    thing = "character" if isinstance(item["input"], str) else "message" if name == "messages" else "entry"
    return f"it must have at least one {thing}"


def _lower(message: str) -> str:
    """`it should be a valid string` of pydantic's `Input should be a valid string`."""
    return message.replace("Input should", "it should", 1) if message.startswith("Input should") else message
