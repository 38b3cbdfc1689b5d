"""JSON Schemas, as expressions over the bytes of the JSON texts that satisfy them.

The expression may match fewer texts than the schema, never others: one order of properties, no white space but one
blank behind `,` and `:`, no properties beyond those named, numbers of up to 15 digits, and limits on depth where a
schema has none. A keyword that it can't honour is a GrammarError with the path to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn

from .characters import in_json
from .errors import GrammarError
from .expression import (
    EMPTY,
    NEVER,
    Choice,
    Expression,
    Listing,
    Repeat,
    Separated,
    choice,
    optional,
    sequence,
    text,
)
from .numbers import integers, numbers, reals
from .regex import ANYTHING, inside, whole

Path = tuple[str | int, ...]
ANY_DEPTH = 3
"""Depth of lists and objects inside a value that a schema says nothing about."""
REF_DEPTH = 4
"""How often a definition may stand inside itself."""
MAX_DEPTH = 32
MAX_SCHEMAS = 10_000
MAX_COUNT = 1024
"""Largest length of a string or list that a schema may ask for."""
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_NOTES = frozenset((
    "title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$defs", "definitions",
    "deprecated", "readOnly", "writeOnly",
))  # fmt: skip
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "object": frozenset(("properties", "required", "additionalProperties", "minProperties", "maxProperties")),
}
_DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ"
_FORMATS = {
    "date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}  # fmt: skip
_COMMA = sequence(text(","), optional(text(" ")))
_COLON = sequence(text(":"), optional(text(" ")))
_QUOTE = text('"')
_CHARACTER = in_json(ANYTHING)
_STRING = sequence(_QUOTE, Repeat(_CHARACTER, 0, None), _QUOTE)


def expression_of(schema: Any) -> Expression:
    """The texts that satisfy a schema, which is what `json.loads` makes of one. Raises GrammarError."""
    try:
        return _Schemas(schema).of(schema, ())
    except RecursionError as error:  # references lead from one definition to the next
        raise GrammarError("it is nested too deeply, references included") from error


def literal(value: Any) -> Expression:
    """The JSON text of one value."""
    return text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


class _Schemas:
    """One document: `root` is where references begin."""

    def __init__(self, root: Any):
        self._root = root
        self._inside: dict[str, int] = {}
        self._schemas = 0

    def of(self, schema: Any, path: Path) -> Expression:
        if schema is True:
            return _anything(ANY_DEPTH)
        if schema is False:
            return NEVER
        if not isinstance(schema, Mapping):
            raise GrammarError("it must be a schema: an object, true or false", path)
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise GrammarError(f"it has more than {MAX_SCHEMAS} schemas, those behind references counted each time")
        if len(path) > 2 * MAX_DEPTH:
            raise GrammarError(f"it is nested more than {MAX_DEPTH} deep", path)
        keywords = {name: value for name, value in schema.items() if name not in _NOTES}
        for name, make in (("$ref", self._ref), ("enum", self._enum), ("const", self._enum), ("anyOf", self._any_of),
                           ("oneOf", self._one_of), ("allOf", self._all_of)):  # fmt: skip
            if name in keywords:
                return make(keywords, path)
        return self._typed(keywords, path)

    # Combinations

    def _alone(self, keywords: Mapping[str, Any], path: Path, *allowed: str) -> None:
        for name in keywords:
            if name not in allowed:
                raise GrammarError(f"it can't be honoured beside {allowed[0]}", (*path, name))

    def _ref(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        self._alone(keywords, path, "$ref")
        name, here = keywords["$ref"], (*path, "$ref")
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise GrammarError("only references inside the schema (#/...) can be followed", here)
        found = self._root
        for step in name[2:].split("/") if len(name) > 1 else ():
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise GrammarError(f"there is no {name}", here)
            found = found[key]
        if self._inside.get(name, 0) >= REF_DEPTH:
            return NEVER
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            return self.of(found, tuple(name[2:].split("/")) if len(name) > 1 else ())
        finally:
            self._inside[name] -= 1

    def _enum(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        name = "enum" if "enum" in keywords else "const"
        self._alone(keywords, path, name, "type")
        values = keywords[name] if name == "enum" else [keywords[name]]
        if not isinstance(values, list) or not values:
            raise GrammarError("it must be a list with at least one value", (*path, name))
        kinds = self._types(keywords, path)
        return Choice(tuple(literal(value) for value in values if kinds is None or _type_of(value) & set(kinds)))

    def _any_of(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        self._alone(keywords, path, "anyOf")
        return Choice(tuple(self._parts(keywords, "anyOf", path)))

    def _one_of(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        """Exactly one: alternatives whose types differ can't hold together."""
        self._alone(keywords, path, "oneOf")
        parts = self._parts(keywords, "oneOf", path)
        seen: set[str] = set()
        for index, part in enumerate(keywords["oneOf"]):
            kinds = part.get("type") if isinstance(part, Mapping) else None
            own = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set(_TYPES)
            own |= {"integer", "number"} if own & {"integer", "number"} else set()
            if seen & own:
                words = "it can only be honoured where the types of its schemas differ; send anyOf"
                raise GrammarError(words, (*path, "oneOf", index))
            seen |= own
        return Choice(tuple(parts))

    def _all_of(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        self._alone(keywords, path, "allOf")
        parts = self._parts(keywords, "allOf", path)
        if len(parts) != 1:
            raise GrammarError("it can only be honoured with one schema; merge them", (*path, "allOf"))
        return parts[0]

    def _parts(self, keywords: Mapping[str, Any], name: str, path: Path) -> list[Expression]:
        schemas = keywords[name]
        if not isinstance(schemas, list) or not schemas:
            raise GrammarError("it must be a list with at least one schema", (*path, name))
        return [self.of(schema, (*path, name, index)) for index, schema in enumerate(schemas)]

    # Types

    def _types(self, keywords: Mapping[str, Any], path: Path) -> list[str] | None:
        kinds = keywords.get("type")
        if kinds is None:
            return None
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not kinds or any(kind not in _TYPES for kind in kinds):
            raise GrammarError(f"it must be one of {', '.join(_TYPES)}, or a list of them", (*path, "type"))
        return list(kinds)

    def _typed(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        kinds = self._types(keywords, path)
        known = {name for names in _OF_TYPE.values() for name in names}
        for name in keywords:
            if name != "type" and name not in known:
                raise GrammarError("this keyword is not supported", (*path, name))
        if kinds is None:
            kinds = [kind for kind, names in _OF_TYPE.items() if names & set(keywords) and kind != "integer"]
            if not kinds:
                return _anything(ANY_DEPTH)
        makers = {
            "string": self._string, "integer": self._integer, "number": self._number, "array": self._array,
            "object": self._object, "boolean": lambda *_: choice(text("true"), text("false")),
            "null": lambda *_: text("null"),
        }  # fmt: skip
        return Choice(tuple(makers[kind](keywords, path) for kind in kinds))

    def _string(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        low, high = _bounds(keywords, "minLength", "maxLength", path)
        for name in ("pattern", "format"):
            if name in keywords and (low or high is not None or {"pattern", "format"} <= keywords.keys()):
                raise GrammarError("it can't be honoured beside minLength, maxLength, pattern or format", (*path, name))
        if "pattern" in keywords:
            pattern = keywords["pattern"]
            if not isinstance(pattern, str):
                raise GrammarError("it must be a string", (*path, "pattern"))
            try:
                return sequence(_QUOTE, inside(pattern, in_json), _QUOTE)
            except GrammarError as error:
                raise GrammarError(error.reason, (*path, "pattern")) from error
        if "format" in keywords:
            if keywords["format"] not in _FORMATS:
                raise GrammarError(f"it must be one of {', '.join(_FORMATS)}", (*path, "format"))
            return sequence(_QUOTE, whole(_FORMATS[keywords["format"]]), _QUOTE)
        return sequence(_QUOTE, Repeat(_CHARACTER, low, high), _QUOTE)

    def _integer(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        low, high, above, below = _range(keywords, path)
        if keywords.get("multipleOf", 1) != 1:
            raise GrammarError("only 1 can be honoured", (*path, "multipleOf"))
        low, high = (None if low is None else low + above), (None if high is None else high - below)
        return NEVER if low is not None and high is not None and low > high else integers(low, high)

    def _number(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        if "multipleOf" in keywords:
            raise GrammarError("it can't be honoured for type number", (*path, "multipleOf"))
        low, high, above, below = _range(keywords, path)
        return numbers() if low is None and high is None else reals(low, high, above, below)

    def _array(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        low, high = _bounds(keywords, "minItems", "maxItems", path)
        if keywords.get("uniqueItems", False) is not False:
            raise GrammarError("only false can be honoured", (*path, "uniqueItems"))
        first = keywords.get("prefixItems", [])
        if not isinstance(first, list):
            raise GrammarError("it must be a list of schemas", (*path, "prefixItems"))
        heads = [self.of(schema, (*path, "prefixItems", index)) for index, schema in enumerate(first)]
        heads = heads if high is None else heads[:high]
        item = self.of(keywords.get("items", True), (*path, "items"))
        if not heads:
            return sequence(text("["), _items(item, low, high), text("]"))
        more = _behind(item, max(low - len(heads), 0), None if high is None else high - len(heads))
        body: Expression = EMPTY
        for index in range(len(heads) - 1, -1, -1):
            rest = more if index == len(heads) - 1 else body
            body = sequence(*([_COMMA] if index else []), heads[index], rest)
            body = body if index < low else optional(body)
        return sequence(text("["), body, text("]"))

    def _object(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        properties, required = keywords.get("properties", {}), keywords.get("required", [])
        others = keywords.get("additionalProperties", True)
        if not isinstance(properties, Mapping):
            raise GrammarError("it must be an object of schemas", (*path, "properties"))
        if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
            raise GrammarError("it must be a list of names", (*path, "required"))
        low, high = _bounds(keywords, "minProperties", "maxProperties", path)
        if not properties and not required:
            return self._map(others, low, high, path)
        named = {name: self.of(schema, (*path, "properties", name)) for name, schema in properties.items()}
        for name in required:
            if name not in named:
                named[name] = self.of(others, (*path, "additionalProperties"))
        if low > len(set(required)):
            raise GrammarError("it can't be honoured above the number of required ones", (*path, "minProperties"))
        if high is not None and high < len(named):
            raise GrammarError("it can't be honoured below the number of properties", (*path, "maxProperties"))
        items = tuple((sequence(literal(name), _COLON, value), name in required) for name, value in named.items())
        return sequence(text("{"), Listing(items, _COMMA), text("}"))

    def _map(self, others: Any, low: int, high: int | None, path: Path) -> Expression:
        """Members of any names; one may come twice, so no more than one can be promised."""
        if low > 1:
            raise GrammarError("it can't be honoured above 1 without properties", (*path, "minProperties"))
        member = sequence(_STRING, _COLON, self.of(others, (*path, "additionalProperties")))
        return sequence(text("{"), _items(member, low, high), text("}"))


def _items(item: Expression, low: int, high: int | None) -> Expression:
    """`low` to `high` items with commas between."""
    if high == 0:
        return EMPTY if not low else NEVER
    if high is None and low <= 1:
        some: Expression = Separated(item, _COMMA)
    else:
        some = sequence(item, _behind(item, max(low - 1, 0), None if high is None else high - 1))
    return some if low else optional(some)


def _behind(item: Expression, low: int, high: int | None) -> Expression:
    """`low` to `high` items, each behind a comma."""
    if high is not None and high < low:
        return NEVER
    return Repeat(sequence(_COMMA, item), low, high)


@cache
def _anything(depth: int) -> Expression:
    parts = [_STRING, numbers(), text("true"), text("false"), text("null")]
    if depth:
        inner = _anything(depth - 1)
        parts.append(sequence(text("["), _items(inner, 0, None), text("]")))
        parts.append(sequence(text("{"), _items(sequence(_STRING, _COLON, inner), 0, None), text("}")))
    return Choice(tuple(parts))


def _bounds(keywords: Mapping[str, Any], least: str, most: str, path: Path) -> tuple[int, int | None]:
    for name in (least, most):
        value = keywords.get(name, 0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MAX_COUNT or value != int(value):
            raise GrammarError(f"it must be an integer from 0 to {MAX_COUNT}", (*path, name))
    low, high = int(keywords.get(least, 0)), keywords.get(most)
    if high is not None and high < low:
        raise GrammarError(f"it is below {least}", (*path, most))
    return low, None if high is None else int(high)


def _range(keywords: Mapping[str, Any], path: Path) -> tuple[int | None, int | None, bool, bool]:
    """(low, high, low excluded, high excluded); of two bounds on a side the stricter one."""
    values: dict[str, int | None] = {}
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = keywords.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            _wrong_bound(name, path)
        if value is not None and (abs(value) > 10**15 or value != int(value)):
            _wrong_bound(name, path)
        values[name] = None if value is None else int(value)
    low, high = values["minimum"], values["maximum"]
    above, below = values["exclusiveMinimum"], values["exclusiveMaximum"]
    excluded_low = above is not None and (low is None or above >= low)
    excluded_high = below is not None and (high is None or below <= high)
    return above if excluded_low else low, below if excluded_high else high, excluded_low, excluded_high


def _wrong_bound(name: str, path: Path) -> NoReturn:
    raise GrammarError("only whole numbers of up to 15 digits can be honoured", (*path, name))


def _type_of(value: Any) -> set[str]:
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
