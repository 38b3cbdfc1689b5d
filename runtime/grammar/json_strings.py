"""Strings of JSON, as a schema's pattern, format and lengths have them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from .characters import in_json
from .errors import GrammarError
from .expression import Both, Expression, Repeat, sequence, text
from .json_bounds import Path, counts
from .regex import ANYTHING, inside, whole

_DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ"
_FORMATS = {
    "date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}  # fmt: skip
_QUOTE = text('"')
_CHARACTER = in_json(ANYTHING)
STRING = sequence(_QUOTE, Repeat(_CHARACTER, 0, None), _QUOTE)


def matching(pattern: str, path: Path) -> Expression:
    """Strings in which a pattern matches."""
    try:
        return sequence(_QUOTE, inside(pattern, in_json), _QUOTE)
    except GrammarError as error:
        raise GrammarError(error.reason, path) from error


def string_of(keywords: Mapping[str, Any], path: Path) -> Expression:
    """The strings that pattern, format and both lengths allow. Raises GrammarError."""
    low, high = counts(keywords, "minLength", "maxLength", path)
    parts: list[Expression] = []
    if "pattern" in keywords:
        pattern = keywords["pattern"]
        if not isinstance(pattern, str):
            raise GrammarError("it must be a string", (*path, "pattern"))
        parts.append(matching(pattern, (*path, "pattern")))
    if "format" in keywords:
        if keywords["format"] not in _FORMATS:
            raise GrammarError(f"it must be one of {', '.join(_FORMATS)}", (*path, "format"))
        parts.append(sequence(_QUOTE, whole(_FORMATS[keywords["format"]]), _QUOTE))
    if low or high is not None or not parts:
        parts.append(sequence(_QUOTE, Repeat(_CHARACTER, low, high), _QUOTE))
    return reduce(Both, parts)
