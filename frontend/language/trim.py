"""Cutting a generated text to the value that was asked for."""

from __future__ import annotations

import json
import re
from typing import Any

from ...runtime.errors import shorten
from ..errors import FrontendError

_PATTERNS = {
    int: re.compile(r"\s*([+-]?\d+)"),
    float: re.compile(r"\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"),
    bool: re.compile(r"\s*(true|false)", re.IGNORECASE),
}
_JSON_WORD = re.compile(r"[ \t\n\r]*(true|false)")
_JSON_NUMBER = re.compile(r"[ \t\n\r]*(-?(?:0|[1-9]\d*))(\.\d+)?([eE][+-]?\d+)?")
_JSON_STRING = re.compile(r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
TYPES = (str, int, float, bool)


class NoValueError(FrontendError, ValueError):
    """A text does not begin with a value of the type asked for."""


def trim(text: str, dtype: type | None) -> tuple[str, bool]:
    """The text up to the end of its value, blanks before it left out, and whether that is all of it.

    Raises NoValueError when it begins with no value of that type.
    """
    if dtype is None or dtype is str:
        return text, True
    found = _PATTERNS[dtype].match(text)
    if found is None:
        message = f"the text {shorten(text)} does not begin with {dtype.__name__}"
        raise NoValueError(message, field="dtype", value=text, limit=dtype.__name__)
    return found[1], found[1] == text


def json_value(text: str, dtype: type | None) -> tuple[Any, str]:
    """Value of a hole of a JSON skeleton, and the JSON that stands for it (of a string without the quotes).

    A string ends at its first quote; a number is what JSON allows at the beginning. A hole that holds no value of its
    type becomes null, so that the whole always parses.
    """
    if dtype is None or dtype is str:
        found = _JSON_STRING.match(text)
        inner = found[0] if found else ""
        rest = text[len(inner) :]
        if rest and not rest.startswith('"'):
            inner = json.dumps(text.split('"', 1)[0], ensure_ascii=False)[1:-1]
        return json.loads(f'"{inner}"'), inner
    found = (_JSON_WORD if dtype is bool else _JSON_NUMBER).match(text)
    if found is None:
        return None, "null"
    if dtype is bool:
        return found[1] == "true", found[0]
    end = found.end(1) if dtype is int else found.end()
    return dtype(text[:end]), text[:end]
