"""JSON Schemas, as expressions over the bytes of the JSON texts that satisfy them.

The expression may match fewer texts than the schema, never others: one order of properties, no white space but one
blank behind `,` and `:`, no properties beyond those named, numbers of up to 15 digits, and limits on depth where a
schema has none. A keyword that it can't honour is a GrammarError with the path to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from .automaton import Automaton, Work
from .errors import GrammarError
from .expression import (
    EMPTY,
    NEVER,
    Bytes,
    Choice,
    Expression,
    Listing,
    Repeat,
    Without,
    choice,
    optional,
    sequence,
    text,
)
from .json_bounds import Path, counts, range_of
from .json_disjoint import disjoint
from .json_lists import COMMA, behind, every_order, items_of, one_order
from .json_strings import STRING, matching, string_of
from .json_values import MAX_VALUES, identity, literal, types_of, values_of
from .numbers import MAX_MULTIPLE, multiples, numbers, reals

ANY_DEPTH = 3
"""Depth of lists and objects inside a value that a schema says nothing about."""
REF_DEPTH = 4
"""How often a definition may stand inside itself."""
MAX_DEPTH = 32
MAX_SCHEMAS = 10_000
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_NOTES = frozenset((
    "title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$defs", "definitions",
    "deprecated", "readOnly", "writeOnly", "discriminator",
))  # fmt: skip
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "object": frozenset((
        "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
    )),
}  # fmt: skip
MAX_ORDERS = 5
"""Most values of a list without equal items for which every order is possible; of more they come in the schema's."""
MAX_PATTERNS = 8
MAX_APART = 64
"""Most schemas of a oneOf that are compared in pairs."""
_FIRST_BYTES = {"string": '"', "boolean": "tf", "null": "n", "array": "[", "object": "{", "number": "-0123456789"}
_COLON = sequence(text(":"), optional(text(" ")))


def expression_of(schema: Any) -> Expression:
    """The texts that satisfy a schema, which is what `json.loads` makes of one. Raises GrammarError."""
    try:
        return _Schemas(schema).of(schema, ())
    except RecursionError as error:  # references lead from one definition to the next
        raise GrammarError("it is nested too deeply, references included") from error


class _Schemas:
    """One document: `root` is where references begin."""

    def __init__(self, root: Any):
        self._root = root
        self._inside: dict[str, int] = {}
        self._schemas = 0
        self._work = Work()

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
        if "not" in keywords:
            return self._not(keywords, path)
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
        name = keywords["$ref"]
        found = self._found(name, (*path, "$ref"))
        if self._inside.get(name, 0) >= REF_DEPTH:
            return NEVER
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            return self.of(found, tuple(name[2:].split("/")) if len(name) > 1 else ())
        finally:
            self._inside[name] -= 1

    def _found(self, name: Any, here: Path) -> Any:
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise GrammarError("only references inside the schema (#/...) can be followed", here)
        found = self._root
        for step in name[2:].split("/") if len(name) > 1 else ():
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise GrammarError(f"there is no {name}", here)
            found = found[key]
        return found

    def _resolved(self, schema: Any) -> Any:
        """A schema behind its references, as far as REF_DEPTH of them lead."""
        for _ in range(REF_DEPTH):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            schema = self._found(schema["$ref"], ("$ref",))
        return schema

    def _enum(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        name = "enum" if "enum" in keywords else "const"
        self._alone(keywords, path, name, "type")
        values = keywords[name] if name == "enum" else [keywords[name]]
        if not isinstance(values, list) or not values:
            raise GrammarError("it must be a list with at least one value", (*path, name))
        kinds = self._types(keywords, path)
        return Choice(tuple(literal(value) for value in values if kinds is None or types_of(value) & set(kinds)))

    def _any_of(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        self._alone(keywords, path, "anyOf")
        return Choice(tuple(self._parts(keywords, "anyOf", path)))

    def _one_of(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        """Exactly one: no value may satisfy two, or where all of them name their values, those of two are left out."""
        self._alone(keywords, path, "oneOf")
        parts, schemas = self._parts(keywords, "oneOf", path), keywords["oneOf"]
        values = [values_of(schema, self._resolved) for schema in schemas]
        if None not in values:
            every = [value for some in values for value in some or ()]
            times = Counter(map(identity, every))
            return Choice(tuple(literal(value) for value in every if times[identity(value)] == 1))
        if len(schemas) > MAX_APART:
            raise GrammarError(f"at most {MAX_APART} schemas can be honoured", (*path, "oneOf"))
        for at, schema in enumerate(schemas):
            if not all(disjoint(schema, other, self._resolved) for other in schemas[:at]):
                words = "a value might satisfy two of its schemas; let their types, constants or required properties"
                raise GrammarError(f"{words} differ, or send anyOf", (*path, "oneOf", at))
        return Choice(tuple(parts))

    def _not(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        """What the other keywords allow, without some types or values."""
        rest = {name: value for name, value in keywords.items() if name != "not"}
        found, here = self.of(rest, path), (*path, "not")
        self.of(keywords["not"], here)
        schema = self._resolved(keywords["not"])
        out = schema["anyOf"] if isinstance(schema, Mapping) and schema.keys() == {"anyOf"} else [schema]
        for one in out if isinstance(out, list) else [out]:
            found = self._less(found, self._resolved(one), rest.get("type") == "integer", here)
        return found

    def _less(self, found: Expression, schema: Any, whole_numbers: bool, here: Path) -> Expression:
        if schema is False:
            return found
        if schema is True or schema == {}:
            return NEVER
        kinds = self._types(schema, here) if isinstance(schema, Mapping) and schema.keys() == {"type"} else None
        if kinds is not None and ("integer" not in kinds or "number" in kinds):
            first = sum(1 << ord(one) for kind in kinds for one in _FIRST_BYTES.get(kind, ""))
            return Without(found, sequence(Bytes(first), Repeat(Bytes.of(0, 255), 0, None)))
        values = values_of(schema, self._resolved)
        if values is not None and all(_spelled_once(value, whole_numbers) for value in values):
            return Without(found, Choice(tuple(literal(value) for value in values)))
        words = (
            "it can only exclude types, and by enum or const strings, booleans, null and (beside type integer) integers"
        )
        raise GrammarError(words, here)

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
            "string": string_of, "integer": self._integer, "number": self._number, "array": self._array,
            "object": self._object, "boolean": lambda *_: choice(text("true"), text("false")),
            "null": lambda *_: text("null"),
        }  # fmt: skip
        return Choice(tuple(makers[kind](keywords, path) for kind in kinds))

    def _integer(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        low, high, above, below = range_of(keywords, path)
        step = keywords.get("multipleOf", 1)
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= MAX_MULTIPLE or step % 1:
            raise GrammarError(f"only whole numbers from 1 to {MAX_MULTIPLE} can be honoured", (*path, "multipleOf"))
        low, high = (None if low is None else low + above), (None if high is None else high - below)
        return NEVER if low is not None and high is not None and low > high else multiples(int(step), low, high)

    def _number(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        if "multipleOf" in keywords:  # of a whole number they are whole
            return self._integer(keywords, path)
        low, high, above, below = range_of(keywords, path)
        return numbers() if low is None and high is None else reals(low, high, above, below)

    def _array(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        low, high = counts(keywords, "minItems", "maxItems", path)
        unique = keywords.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise GrammarError("it must be true or false", (*path, "uniqueItems"))
        if unique and (high is None or high > 1):
            return self._unique(keywords, low, high, path)
        first = keywords.get("prefixItems", [])
        if not isinstance(first, list):
            raise GrammarError("it must be a list of schemas", (*path, "prefixItems"))
        heads = [self.of(schema, (*path, "prefixItems", index)) for index, schema in enumerate(first)]
        heads = heads if high is None else heads[:high]
        item = self.of(keywords.get("items", True), (*path, "items"))
        if not heads:
            return sequence(text("["), items_of(item, low, high), text("]"))
        more = behind(item, max(low - len(heads), 0), None if high is None else high - len(heads))
        body: Expression = EMPTY
        for index in range(len(heads) - 1, -1, -1):
            rest = more if index == len(heads) - 1 else body
            body = sequence(*([COMMA] if index else []), heads[index], rest)
            body = body if index < low else optional(body)
        return sequence(text("["), body, text("]"))

    def _unique(self, keywords: Mapping[str, Any], low: int, high: int | None, path: Path) -> Expression:
        """A list without equal items, of those that its schema names."""
        items = keywords.get("items", True)
        self.of(items, (*path, "items"))
        values = None if "prefixItems" in keywords else values_of(items, self._resolved)
        if values is None:
            words = f"only where items has at most {MAX_VALUES} values: an enum, const, booleans, integers of a range"
            raise GrammarError(f"it can be honoured {words}", (*path, "uniqueItems"))
        most = min(len(values), len(values) if high is None else high)
        graph = every_order if len(values) <= MAX_ORDERS else one_order
        return sequence(text("["), graph([literal(value) for value in values], low, most), text("]"))

    def _object(self, keywords: Mapping[str, Any], path: Path) -> Expression:
        properties, required = keywords.get("properties", {}), keywords.get("required", [])
        others = keywords.get("additionalProperties", True)
        if not isinstance(properties, Mapping):
            raise GrammarError("it must be an object of schemas", (*path, "properties"))
        if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
            raise GrammarError("it must be a list of names", (*path, "required"))
        low, high = counts(keywords, "minProperties", "maxProperties", path)
        patterns = self._patterns(keywords, path)
        if not properties and not required and patterns is None:
            return self._map(others, low, high, path)
        named = {name: self.of(schema, (*path, "properties", name)) for name, schema in properties.items()}
        for name in required:
            if name not in named:
                if patterns is not None:
                    raise GrammarError(
                        f"{name} must be among properties, beside patternProperties", (*path, "required")
                    )
                named[name] = self.of(others, (*path, "additionalProperties"))
        if low > max(len(set(required)), patterns is not None and not named):
            raise GrammarError("it can't be honoured above the number of required ones", (*path, "minProperties"))
        if high is not None and high < len(named):
            raise GrammarError("it can't be honoured below the number of properties", (*path, "maxProperties"))
        items = [(sequence(literal(name), _COLON, value), name in required) for name, value in named.items()]
        if patterns is not None:
            free = _members(patterns, list(named))
            most = None if high is None else high - len(named)
            if most != 0:
                items.append((items_of(free, 1, most), low > len(set(required))))
        return sequence(text("{"), Listing(tuple(items), COMMA), text("}"))

    def _patterns(self, keywords: Mapping[str, Any], path: Path) -> list[tuple[Expression, Expression]] | None:
        """(names, values) of patternProperties; None where there are none."""
        patterns, here = keywords.get("patternProperties"), (*path, "patternProperties")
        if patterns is None or patterns == {}:
            return None
        if not isinstance(patterns, Mapping):
            raise GrammarError("it must be an object of schemas", here)
        if len(patterns) > MAX_PATTERNS:
            raise GrammarError(f"at most {MAX_PATTERNS} patterns can be honoured", here)
        names = {pattern: matching(pattern, (*here, pattern)) for pattern in patterns}
        for pattern, expression in names.items():
            properties = keywords.get("properties", {})
            automaton = Automaton.of(expression, self._work) if properties else None
            for name in properties:
                if automaton and automaton.accepts(json.dumps(name, ensure_ascii=False).encode()):
                    words = f"the property {name} matches it, and would have to satisfy both schemas"
                    raise GrammarError(words, (*here, pattern))
        return [(names[pattern], self.of(schema, (*here, pattern))) for pattern, schema in patterns.items()]

    def _map(self, others: Any, low: int, high: int | None, path: Path) -> Expression:
        """Members of any names; one may come twice, so no more than one can be promised."""
        if low > 1:
            raise GrammarError("it can't be honoured above 1 without properties", (*path, "minProperties"))
        member = sequence(STRING, _COLON, self.of(others, (*path, "additionalProperties")))
        return sequence(text("{"), items_of(member, low, high), text("}"))


def _members(patterns: list[tuple[Expression, Expression]], named: list[str]) -> Expression:
    """A member whose name matches one of the patterns and no other, and is none of those named."""
    parts = []
    for at, (names, value) in enumerate(patterns):
        others = [other for number, (other, _) in enumerate(patterns) if number != at]
        out = Choice((*others, *(literal(name) for name in named)))
        parts.append(sequence(Without(names, out) if out.parts else names, _COLON, value))
    return Choice(tuple(parts))


def _spelled_once(value: Any, whole_numbers: bool) -> bool:
    """Whether the expressions here have one text for it."""
    if isinstance(value, bool | str) or value is None:
        return True
    return whole_numbers and isinstance(value, int)


@cache
def _anything(depth: int) -> Expression:
    parts = [STRING, numbers(), text("true"), text("false"), text("null")]
    if depth:
        inner = _anything(depth - 1)
        parts.append(sequence(text("["), items_of(inner, 0, None), text("]")))
        parts.append(sequence(text("{"), items_of(sequence(STRING, _COLON, inner), 0, None), text("}")))
    return Choice(tuple(parts))
