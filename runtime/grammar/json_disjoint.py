"""Pairs of JSON Schemas that no value satisfies both of, as far as types, values, ranges and properties show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_values import Resolve, identity, values_of

_ALL = frozenset(("string", "number", "boolean", "null", "array", "object"))
_MAX_DEPTH = 6


def disjoint(first: Any, second: Any, resolve: Resolve, depth: int = 0) -> bool:
    """Whether certainly no value satisfies both; False where that is not easily seen."""
    if depth > _MAX_DEPTH:
        return False
    first, second = resolve(first), resolve(second)
    if first is False or second is False:
        return True
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    for one, other in ((first, second), (second, first)):
        for name in ("anyOf", "oneOf"):
            if isinstance(one.get(name), list):
                return all(disjoint(part, other, resolve, depth + 1) for part in one[name])
    values = [values_of(schema, resolve) for schema in (first, second)]
    if values[0] is not None and values[1] is not None:
        return not {identity(v) for v in values[0]} & {identity(v) for v in values[1]}
    kinds = [_kinds(schema, found) for schema, found in zip((first, second), values, strict=True)]
    shared = kinds[0] & kinds[1]
    if not shared:
        return True
    if values[0] is not None or values[1] is not None:
        return False
    if shared == {"number"}:
        return _apart(first, second) or _apart(second, first)
    return shared == {"object"} and _told_apart(first, second, resolve, depth)


def _kinds(schema: Mapping[str, Any], values: list[Any] | None) -> frozenset[str]:
    """Types that values of a schema may have; integers are numbers here."""
    kinds = schema.get("type", list(_ALL))
    names = kinds if isinstance(kinds, list) else [kinds]
    found = frozenset("number" if name == "integer" else name for name in names)
    if values is None:
        return found
    kind_of: dict[type, str] = {
        str: "string",
        bool: "boolean",
        type(None): "null",
        list: "array",
        int: "number",
        float: "number",
    }
    return found & {kind_of.get(type(value), "object") for value in values}


def _apart(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    """Whether all numbers of the one are below all of the other."""
    for most in ("maximum", "exclusiveMaximum"):
        for least in ("minimum", "exclusiveMinimum"):
            end, begin = low.get(most), high.get(least)
            if isinstance(end, int | float) and isinstance(begin, int | float):
                touch = most == "maximum" and least == "minimum"
                if end < begin or (end == begin and not touch):
                    return True
    return False


def _told_apart(first: Mapping[str, Any], second: Mapping[str, Any], resolve: Resolve, depth: int) -> bool:
    """Whether a property that one of two objects must have rules the other one out."""
    for one, other in ((first, second), (second, first)):
        has, knows = one.get("properties", {}), other.get("properties", {})
        for name in one.get("required", []):
            if name in knows:
                if name in has and disjoint(has[name], knows[name], resolve, depth + 1):
                    return True
            elif other.get("additionalProperties") is False and not other.get("patternProperties"):
                return True
    return False
