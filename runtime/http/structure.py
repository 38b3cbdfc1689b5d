"""What a body says its text must be: OpenAI's `response_format`, and the fields of SGLang and vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .api_error import bad_request
from .wording import shown

_PLAIN = {
    "json_schema": "json_schema", "regex": "regex", "choice": "choice", "guided_json": "json_schema",
    "guided_regex": "regex", "guided_choice": "choice",
}  # fmt: skip
_STRUCTURED = {"json": "json_schema", "regex": "regex", "choice": "choice"}
_ANY_OBJECT = json.dumps({"type": "object"})
_FORMAT, _SCHEMA = "response_format", "response_format.json_schema"
Found = tuple[str, str, Any]
"""The client's name, the sampling parameter, and its value."""


def take_structure(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """`values` with one of `json_schema`, `regex` and `choice` in place of the client's field, and that field's name.

    The name is empty where there is none. Raises ApiError (400) for a form that is wrong, and for two fields.
    """
    rest = dict(values)
    found: list[Found] = [(name, field, rest.pop(name)) for name, field in _PLAIN.items() if _asks(rest.get(name))]
    for name in (*_PLAIN, "structured_outputs", _FORMAT):
        value = rest.pop(name, None)
        if value is not None and name == "structured_outputs":
            found += _structured_outputs(value)
        elif value is not None and name == _FORMAT:
            found += _response_format(value)
    if len(found) > 1:
        raise bad_request(found[1][0], f"{found[1][0]} and {found[0][0]} are given; a request takes one of them")
    for name, field, value in found:
        if field != "choice" and isinstance(value, list):
            raise bad_request(name, f"{name} is {shown(value)}; it must be {_kind(field)}")
        return {**rest, field: value}, name
    return rest, ""


def _kind(field: str) -> str:
    return "a JSON schema" if field == "json_schema" else "a string"


def _asks(value: Any) -> bool:
    return value is not None and value not in ([], "")


def _structured_outputs(value: Any) -> list[Found]:
    """vLLM's: {"json": ...}, {"regex": ...} or {"choice": [...]}."""
    if not isinstance(value, Mapping):
        raise bad_request("structured_outputs", f"structured_outputs is {shown(value)}; it must be an object")
    for name, one in value.items():
        if name not in _STRUCTURED and one not in (None, False, [], ""):
            path = f"structured_outputs.{name}"
            raise bad_request(path, f"{path} is not supported; use one of {', '.join(_STRUCTURED)}")
    asked = [(name, field) for name, field in _STRUCTURED.items() if _asks(value.get(name))]
    return [(f"structured_outputs.{name}", field, value[name]) for name, field in asked]


def _response_format(value: Any) -> list[Found]:
    if not isinstance(value, Mapping):
        raise bad_request(_FORMAT, f"{_FORMAT} is {shown(value)}; it must be an object")
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        words = f"{_FORMAT}.type is {shown(kind)}; it must be one of text, json_object, json_schema"
        raise bad_request(f"{_FORMAT}.type", words)
    _only(value, ("type", "json_schema") if kind == "json_schema" else ("type",), _FORMAT)
    if kind == "text":
        return []
    if kind == "json_object":
        return [(_FORMAT, "json_schema", _ANY_OBJECT)]
    described = value.get("json_schema")
    if not isinstance(described, Mapping):
        raise bad_request(_SCHEMA, f"{_SCHEMA} is {shown(described)}; it must be an object with a schema")
    _only(described, ("name", "description", "schema", "strict"), _SCHEMA)
    schema = described.get("schema")
    if not isinstance(schema, Mapping | bool):
        raise bad_request(f"{_SCHEMA}.schema", f"{_SCHEMA}.schema is {shown(schema)}; it must be a JSON schema")
    return [(f"{_SCHEMA}.schema", "json_schema", schema)]


def _only(value: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
    for name, one in value.items():
        if name not in known and one is not None:
            words = f"{path}.{name} is not supported; {path} may have {', '.join(known)}"
            raise bad_request(f"{path}.{name}", words)
