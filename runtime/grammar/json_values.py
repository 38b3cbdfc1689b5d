"""Values that a JSON Schema names, and schemas that only a few values satisfy."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from .expression import Expression, text

Resolve = Callable[[Any], Any]
"""Follows a schema's `$ref`, if it has one."""
MAX_VALUES = 64
"""Most values of a schema whose values are looked at one by one."""


def literal(value: Any) -> Expression:
    """The JSON text of one value."""
    return text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def types_of(value: Any) -> set[str]:
    """The types of a value; whole numbers are integers too."""
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
    return {"object"}


def identity(value: Any) -> Hashable:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    match value:
        case bool():
            return "boolean", value
        case list():
            return "array", tuple(map(identity, value))
        case Mapping():
            return "object", frozenset((name, identity(member)) for name, member in value.items())
        case None | int() | float() | str():
            return value
    raise AssertionError(f"{type(value)} is no value of JSON")


def values_of(schema: Any, resolve: Resolve) -> list[Any] | None:
    """The values that satisfy a schema, each once, where it names at most MAX_VALUES; else None."""
    schema = resolve(schema)
    if not isinstance(schema, Mapping):
        return [] if schema is False else None
    kinds = schema.get("type")
    kinds = None if kinds is None else kinds if isinstance(kinds, list) else [kinds]
    rest = {name for name in schema if name not in ("type", "title", "description", "default")}
    if rest in ({"enum"}, {"const"}):
        named = schema["enum"] if "enum" in schema else [schema["const"]]
        found = [value for value in named if kinds is None or types_of(value) & set(kinds)]
    elif kinds and not rest and set(kinds) <= {"boolean", "null"}:
        found = [value for value in (True, False, None) if types_of(value) & set(kinds)]
    elif kinds == ["integer"] and rest == {"minimum", "maximum"}:
        low, high = schema["minimum"], schema["maximum"]
        if not (isinstance(low, int) and isinstance(high, int)) or high - low >= MAX_VALUES:
            return None
        found = list(range(low, high + 1))
    else:
        return None
    once = {identity(value): value for value in reversed(found)}
    return [*reversed(once.values())] if len(once) <= MAX_VALUES else None
